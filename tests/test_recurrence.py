"""Depth recurrence: a block visited several times is as many blocks with the same weights, late in training as in every evaluation."""

import numpy as np
import pytest
from model_fixtures import BACKBONE, BACKENDS, largest_difference, logits_of, random_arrays, random_tokens, start, tiny_config

from trit.models import load_arch
from trit.train.phases import Moment

SHALLOW, DEEP = Moment(True, 1, 0, 0.0), Moment(False, 1, 0, 0.9)


def copies(arrays, layers):
    """Weights of a model of that many blocks, all equal to block 0 of `arrays`; nothing comes over the skips."""
    found = {name: array for name, array in arrays.items() if not name.startswith("block0.")}
    for i in range(layers):
        found |= {name.replace("block0.", f"block{i}."): array for name, array in arrays.items() if name.startswith("block0.")}
        found[f"block{i}.skip"] = np.zeros(32, np.float32)
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("visits", [1, 2, 3])
@pytest.mark.parametrize("name", ["unet", "koopman_ssm", "skc"])
def test_visits_equal_copies_of_the_block(name, visits, backend):
    own = {"layer_map": "s"} if name == "skc" else {}
    common = {"value_residual": "false", **own}
    cfg = tiny_config(name, num_layers=1, recurrent_layers="0", recurrence=visits, **common)
    unrolled = tiny_config(name, num_layers=visits, **common)
    arrays, tokens = random_arrays(load_arch(name).param_specs(cfg)), random_tokens(cfg, 2, 33)
    wanted = logits_of(unrolled, copies(arrays, visits), tokens, backend)
    assert np.abs(logits_of(cfg, arrays, tokens, backend) - wanted).max() <= 2e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BACKBONE)
def test_early_steps_are_those_of_a_model_that_does_not_recur(name, backend):
    """Bit for bit, weights and moments; a late step is that of one that always does."""
    late = tiny_config(name, recurrent_layers="0,1", recurrence_start=0.5)
    rows = random_tokens(late, 4, 33)
    for moment, other in ((SHALLOW, {}), (DEEP, {"recurrent_layers": "0,1"})):
        one, two = start(late, backend), start(tiny_config(name, **other), backend)
        assert one.step(rows[:, :-1], rows[:, 1:], 1.0, True, False, moment)() == two.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()
        assert largest_difference(one.state(), two.state()) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_has_the_depth_of_the_end_of_training(backend):
    """The loss of a late step is the evaluator's loss of the same weights; that of an early step is another."""
    cfg = tiny_config(recurrent_layers="1", recurrence=3, recurrence_start=0.5, matrix_scheme="fp16", embed_bits=16)
    side, arch, rows = BACKENDS[backend], load_arch("unet"), random_tokens(cfg, 4, 33)
    arrays = random_arrays(arch.param_specs(cfg))
    scored = side.module.evaluator(side.ops, arch, cfg, arrays, side.module.Process(0, 1, "cpu")).losses(rows[:, :-1], rows[:, 1:]).mean()
    losses = [start(cfg, backend, arrays).step(rows[:, :-1], rows[:, 1:], 1.0, False, False, moment)()[0] for moment in (DEEP, SHALLOW)]
    assert abs(losses[0] - scored) < 1e-5 < 1e-3 < abs(losses[1] - scored)


@pytest.mark.parametrize("name", BACKBONE)
def test_the_table_of_tensors_does_not_change(name):
    assert load_arch(name).param_specs(tiny_config(name)) == load_arch(name).param_specs(tiny_config(name, recurrent_layers="1"))


@pytest.mark.parametrize("settings,message", [
    ({"recurrent_layers": "2"}, "must be different layers, 0 to 1"),
    ({"recurrent_layers": "1,1"}, "must be different layers"),
    ({"recurrent_layers": "1", "recurrence": 0}, "must be 1"),
    ({"recurrence_start": 0.3}, "name layers in arch.recurrent_layers"),
    ({"recurrent_layers": "1", "recurrence_start": 1.0}, "below 1: evaluation always recurs"),
])  # fmt: skip
def test_impossible_settings_are_one_clear_error(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**settings)
