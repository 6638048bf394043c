"""A text that goes on token by token from a cache: exactly as a joint pass, or from earlier tokens' rests (equilibrium.md A8.6)."""

import numpy as np
import pytest
import torch
from cell_fixtures import OPS, cell_config, operator
from model_fixtures import BACKENDS, random_arrays, random_tokens, tiny_config

from trit.layers.appending import appended
from trit.layers.equilibrium import deployed
from trit.layers.relaxation import residual
from trit.models import equilibrium


def one_by_one(ops, p, cfg, tokens, exact):
    """States (B, T, D) of tokens (B, T), each from the cache of those before it."""
    states, cache = [], None
    for t in range(tokens.shape[1]):
        state, cache = appended(ops, p, cfg, tokens[:, : t + 1], cache, exact)
        states.append(state)
    return ops.concat(states, 1)


@pytest.mark.parametrize("settings", [{}, {"engram_buckets": 64, "isolate_documents": "true"}])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_exact_cache_gives_the_joint_pass(backend, settings):
    """Two cells, steps that are far from any rest, 32 bits."""
    cfg, side = tiny_config("equilibrium", num_layers=2, relax_steps=5, **settings), BACKENDS[backend]
    arrays, rows = random_arrays(equilibrium.param_specs(cfg)), random_tokens(cfg, 2, 24)
    rows[:, ::7] = 1  # a document begins
    p, tokens = {name: side.ops.from_numpy(x) for name, x in arrays.items()}, side.ops.from_numpy(rows)
    joint = side.ops.to_numpy(deployed(side.ops, p, cfg, tokens))
    found = side.ops.to_numpy(one_by_one(side.ops, p, cfg, tokens, True))
    assert np.abs(found - joint).max() <= 1e-5 * max(np.abs(joint).max(), 1.0)


def test_the_cache_of_rests_is_as_good_as_the_rest():
    """With g the worst residual of the joint pass, states are apart by less than ten times g; where nothing is at rest yet they are far apart."""
    one = operator(cell_config(num_layers=2), gain=1.0)
    gaps = {}
    for steps in (2, 40, 60):
        cfg = cell_config(num_layers=2, relax_steps=steps)
        joint = deployed(OPS, one.q, cfg, one.tokens)
        g = float(residual(OPS, one.force(joint), joint).max())
        gaps[steps] = float(((one_by_one(OPS, one.q, cfg, one.tokens, False) - joint).norm(dim=-1) / joint.norm(dim=-1)).max())
        assert steps == 2 or gaps[steps] <= 10 * g, (gaps[steps], g)
    assert gaps[2] > 0.05 > 0.01 > gaps[40] > 5 * gaps[60]


def test_a_cache_of_the_other_form_is_one_clear_error():
    one = operator(cell_config(relax_steps=4), rows=1)
    _, cache = appended(OPS, one.q, one.cfg, one.tokens[:, :1], None, True)
    with pytest.raises(ValueError, match="a cache of 4 steps; settled decoding keeps 1"):
        appended(OPS, one.q, one.cfg, one.tokens[:, :2], cache, False)
    assert torch.is_tensor(cache[0][0][0]) and cache[0][0][0].shape[2] == 1
