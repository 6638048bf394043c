"""What every architecture must obey, whatever it is inside: shapes, causality, independence of rows, gradients, learning."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_fixtures import (
    BACKENDS,
    FLAG_SETS,
    MODELS,
    TINY_CAPSULES,
    TINY_EXPERTS,
    TINY_FEEDBACK,
    logits_of,
    models_with,
    random_arrays,
    random_tokens,
    start,
    tiny_config,
)

from trit.models import arch_names, load_arch

LENGTHS = (1, 2, 15, 16, 17, 32, 63, 64, 65)


def build(name, flags, **extra):
    """(config, weights that are nowhere constant) of one row of the grid."""
    cfg = tiny_config(name, **(FLAG_SETS[flags] | extra))
    return cfg, random_arrays(load_arch(name).param_specs(cfg))


def future_reach(cfg, arrays, length, arch=None, backend="torch"):
    """Largest change of the logits up to a cut when every token after it is replaced, over several cuts."""
    tokens, other = random_tokens(cfg, 2, length), random_tokens(cfg, 2, length, 1)
    before, worst = logits_of(cfg, arrays, tokens, backend, arch), 0.0
    for cut in sorted({0, length // 2, max(length - 2, 0)}):
        changed = np.concatenate([tokens[:, : cut + 1], other[:, cut + 1 :]], 1)
        after = logits_of(cfg, arrays, changed, backend, arch)
        worst = max(worst, float(np.abs(after[:, : cut + 1] - before[:, : cut + 1]).max()))
    return worst


@pytest.mark.parametrize("name,flags,length", models_with(LENGTHS))
def test_logits_have_the_right_shape_and_type(name, flags, length):
    cfg, arrays = build(name, flags)
    logits = logits_of(cfg, arrays, random_tokens(cfg, 2, length))
    assert logits.shape == (2, length, cfg.model.vocab_size) and logits.dtype == np.float32 and np.isfinite(logits).all()


@pytest.mark.parametrize("name,flags,backend,length", models_with(BACKENDS, LENGTHS[1:]))
def test_logits_never_depend_on_later_tokens(name, flags, backend, length):
    cfg, arrays = build(name, flags)
    assert future_reach(cfg, arrays, length, backend=backend) <= 1e-6


@pytest.mark.parametrize("name,flags", MODELS)
def test_logits_depend_on_earlier_tokens(name, flags):
    """Causality alone would be met by a model that sees nothing."""
    cfg, arrays = build(name, flags)
    tokens = random_tokens(cfg, 1, 20)
    changed = tokens.copy()
    changed[0, 10] = (changed[0, 10] + 1) % cfg.model.vocab_size
    moved = np.abs(logits_of(cfg, arrays, tokens) - logits_of(cfg, arrays, changed)).max(-1)[0]
    assert (moved[:10] == 0).all() and (moved[10:] > 0).all()


@pytest.mark.parametrize("name", arch_names())
def test_gradients_of_its_own_need_what_a_step_finds(name):
    """The loops of both libraries keep what `estimate_gradients` leaves only beside an `update_state`."""
    arch = load_arch(name)
    assert hasattr(arch, "update_state") or not hasattr(arch, "estimate_gradients")


@pytest.mark.parametrize("name", arch_names())
def test_a_forward_compiles_as_one_graph(name):
    cfg, arrays = build(name, "odd_all", num_layers=2, xsa_layers=2)
    ops, arch = BACKENDS["torch"].ops, load_arch(name)
    p, tokens = {key: ops.from_numpy(array) for key, array in arrays.items()}, ops.from_numpy(random_tokens(cfg, 2, 20))

    def stream(p, tokens):
        return arch.forward(ops, p, cfg, tokens)[0]

    assert torch.allclose(torch.compile(stream, fullgraph=True, backend="eager")(p, tokens), stream(p, tokens), atol=1e-5)


def test_causality_check_catches_a_planted_leak():
    cfg, arrays = build("unet", "plain")

    def forward(ops, p, cfg, tokens):
        stream, auxiliary = load_arch("unet").forward(ops, p, cfg, tokens)
        return stream + 1e-4 * ops.reshape(ops.mean(stream, 1), (tokens.shape[0], 1, -1)), auxiliary

    leaking = SimpleNamespace(forward=forward, readout=load_arch("unet").readout)
    assert future_reach(cfg, arrays, 17, leaking) > 1e-6


@pytest.mark.parametrize("name,flags,length", models_with(LENGTHS[:-1]))
def test_a_prefix_alone_gives_the_same_logits(name, flags, length):
    cfg, arrays = build(name, flags)
    tokens = random_tokens(cfg, 2, LENGTHS[-1])
    whole = logits_of(cfg, arrays, tokens)
    assert np.abs(logits_of(cfg, arrays, tokens[:, :length]) - whole[:, :length]).max() <= 2e-5


@pytest.mark.parametrize("name,flags", MODELS)
def test_rows_do_not_see_each_other(name, flags):
    cfg, arrays = build(name, flags)
    tokens = random_tokens(cfg, 4, 17)
    whole = logits_of(cfg, arrays, tokens)
    order = [2, 0, 3, 1]
    assert np.abs(logits_of(cfg, arrays, tokens[order]) - whole[order]).max() <= 2e-5
    for row in range(4):
        assert np.abs(logits_of(cfg, arrays, tokens[row : row + 1]) - whole[row : row + 1]).max() <= 2e-5


@pytest.mark.parametrize("name,flags,backend", models_with(BACKENDS))
def test_every_parameter_gets_a_gradient_through_rounding(name, flags, backend):
    """The first moment of every tensor is non-zero after three steps."""
    cfg = tiny_config(name, **FLAG_SETS[flags])
    trained = start(cfg, backend)
    for seed in range(3):
        rows = random_tokens(cfg, 4, 33, seed)
        trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)
    state = trained.state()
    idle = [spec.name for spec in load_arch(name).param_specs(cfg) if not np.abs(state[f"optimizer/{spec.name}/0"]).max() > 0]
    assert not idle


@pytest.mark.parametrize("name,flags", MODELS)
def test_loss_falls_on_a_repetitive_text(name, flags):
    cfg = tiny_config(name, **FLAG_SETS[flags])
    trained = start(cfg)
    text = np.tile(np.random.default_rng(0).permutation(cfg.model.vocab_size)[:24], 40).astype(np.int32)
    for index in range(30):
        rows = np.stack([text[(index + row) % 24 :][:33] for row in range(4)])
        loss = trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()[0]
        if not index:
            first = loss
        if loss < 0.4 * first:
            break
    assert abs(first - math.log(cfg.model.vocab_size)) < 0.5
    assert loss < 0.5 * first


CANARIES = {"attention": FLAG_SETS["engram_deep"] | {"xsa_layers": 1}, "parts": TINY_CAPSULES | TINY_FEEDBACK | TINY_EXPERTS}


@pytest.mark.parametrize("name,flags", [*((name, "attention") for name in arch_names()), ("unet", "parts")])
def test_random_tokens_cannot_be_predicted(name, flags):
    """Trained and scored on independent tokens, no model beats ln V: if one does, the target leaks into its input."""
    cfg = tiny_config(name, **(CANARIES[flags] | {"vocab_size": 16, "model_dim": 16}))
    trained = start(cfg)
    for seed in range(100):
        rows = random_tokens(cfg, 12, 33, seed)
        trained.step(rows[:, :-1], rows[:, 1:], 1.0 - seed / 100, True, False)
    side = BACKENDS["torch"]
    score = side.module.evaluator(side.ops, load_arch(name), cfg, trained.export(), side.module.Process(0, 1, "cpu")).losses
    fresh = random_tokens(cfg, 128, 33, 1000)
    assert score(fresh[:, :-1], fresh[:, 1:]).mean() >= math.log(cfg.model.vocab_size) - 0.02
