"""The law of `energy`: states move down the slope of an energy that has a lower bound and never rises, whatever the weights."""

import numpy as np
import pytest
import torch
from model_fixtures import random_arrays, random_tokens, tiny_config

from trit.bundle.bundle import shaken_text
from trit.dynamics.precise import precise_ops
from trit.layers.associative import (
    SQUARINGS,
    associative_energy,
    associative_tables,
    associative_velocity,
    largest_gain,
    memory_field,
    relaxed,
)
from trit.models import energy
from trit.ops import torch_ops

NAME = "energy"


def built(grown=1.0, **settings):
    """(vocabulary, weights in float64, configuration, tokens (2, 20)): matrices `grown` times their start, nothing at a constant."""
    cfg = tiny_config(NAME, **settings)
    arrays = random_arrays(energy.param_specs(cfg))
    groups = {spec.name: spec.group for spec in energy.param_specs(cfg)}
    p = {name: torch.tensor(array * (grown if groups[name] == "matrix" else 1.0)).double() for name, array in arrays.items()}
    tokens = random_tokens(cfg, 2, 20)
    tokens[:, 7] = 1  # a document begins
    return precise_ops(), p, cfg, torch.tensor(tokens)


def field_of(ops, p, cfg, tokens, seed=0):
    """(states, field, tables) of layer0 for a stream drawn at random, the states too."""
    generator = torch.Generator().manual_seed(seed)
    x, v = (torch.randn((*tokens.shape, cfg.model.model_dim), generator=generator, dtype=torch.float64) for _ in range(2))
    tables = associative_tables(ops, cfg, tokens)
    return v, memory_field(ops, p, cfg, "layer0", x, tokens, tables), tables


@pytest.mark.parametrize("settings", [{}, {"isolate_documents": "true"}, {"num_heads": 2, "mlp_mult": 5}], ids=str)
def test_velocity_is_minus_the_slope_of_the_energy(settings):
    ops, p, cfg, tokens = built(2.0, **settings)
    v, field, tables = field_of(ops, p, cfg, tokens)
    v.requires_grad_(True)
    energies = associative_energy(ops, p, cfg, "layer0", v, field, tables, tokens)
    (slope,) = torch.autograd.grad(energies.sum(), v)
    moved = associative_velocity(ops, p, cfg, "layer0", v, field, tables)
    assert moved.dtype == torch.float64 and float((moved + slope).detach().abs().max()) <= 1e-9 * float(slope.abs().max())


def test_a_state_has_an_energy_of_its_own():
    """No position's energy knows another's state: nothing can come back from a later position."""
    ops, p, cfg, tokens = built()
    v, field, tables = field_of(ops, p, cfg, tokens)
    before = associative_energy(ops, p, cfg, "layer0", v, field, tables, tokens)
    v[:, 11] += 1.0
    moved = (associative_energy(ops, p, cfg, "layer0", v, field, tables, tokens) - before).abs()
    assert float(moved[:, 11].min()) > 1e-3 and float(moved[:, :11].max()) == float(moved[:, 12:].max()) == 0


@pytest.mark.parametrize("rate", [-1.0, 0.0, 20.0], ids=["slow", "one", "almost two"])
@pytest.mark.parametrize("grown", [0.3, 1.0, 10.0])
def test_energy_never_rises_on_the_way_whatever_the_weights(grown, rate):
    """Every position, every layer, every step, at the largest steps that a channel may take."""
    ops, p, cfg, tokens = built(grown, relaxation_steps=12, engram_buckets=64)
    for i in range(cfg.model.num_layers):
        p[f"layer{i}.rate"] += rate
    with torch.no_grad():
        found = energy.energy_of(ops, p, cfg, tokens)
    assert len(found) == cfg.model.num_layers and all(len(energies) == 13 for energies in found)
    for energies in found:
        path = torch.stack(energies)
        assert float(path.diff(dim=0).max()) <= 1e-9 * max(1.0, float(path.abs().max()))
        assert float((path[-1] - path[0]).max()) < -1e-3


def test_a_step_beyond_two_can_climb():
    """The law's edge: the curvature reaches 1, so that 2.5 slopes lead up."""
    ops, p, cfg, tokens = built(0.05)
    v, field, tables = field_of(ops, p, cfg, tokens)
    there = v + 2.5 * associative_velocity(ops, p, cfg, "layer0", v, field, tables)
    ends = [associative_energy(ops, p, cfg, "layer0", each, field, tables, tokens) for each in (v, there)]
    assert float((ends[1] - ends[0]).max()) > 1


def test_states_come_to_rest():
    ops, p, cfg, tokens = built(relaxation_steps=200, pattern_gain=0.8)
    with torch.no_grad():
        v, field, tables = field_of(ops, p, cfg, tokens)
        path = relaxed(ops, p, cfg, "layer0", field, tables)
        speeds = [float(associative_velocity(ops, p, cfg, "layer0", v, field, tables).abs().max()) for v in (path[0], path[-1])]
    assert speeds[0] > 1 and speeds[1] < 1e-6


@pytest.mark.parametrize("shape", [(128, 32), (32, 32), (8, 32)])
def test_the_gain_is_bounded_from_above_and_closely(shape):
    for grown in (1e-3, 1.0, 1e3):
        x = grown * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for matrix in (x, x[:, :1] @ x[:1], torch.sign(x) * (x.abs() > 0.5 * grown)):
            true = float(torch.linalg.matrix_norm(matrix.double(), 2))
            ratio = float(largest_gain(torch_ops, matrix)) / true
            assert 1 - 1e-5 <= ratio <= shape[1] ** (0.5 ** (SQUARINGS + 1)) + 1e-5
    zero = torch.zeros(shape, requires_grad=True)
    (slope,) = torch.autograd.grad(largest_gain(torch_ops, zero), zero)
    assert float(largest_gain(torch_ops, zero)) < 1e-9 and bool(slope.isfinite().all())


def test_the_energy_has_a_lower_bound_because_of_that():
    """Far out along the patterns' strongest direction it grows as the square; with a gain above 1 it would fall without end."""
    ops, p, cfg, tokens = built(5.0, pattern_gain=0.99)
    v, (drive, rows, shrink), tables = field_of(ops, p, cfg, tokens)
    for sign in (1.0, -1.0):
        # A matrix whose strongest direction opens every hinge: the same row everywhere.
        p["layer0.patterns"] = (sign * p["layer0.patterns"][:1]).repeat(len(p["layer0.patterns"]), 1)
        far = 1e6 * p["layer0.patterns"][:1] / p["layer0.patterns"][:1].norm() + 0 * v
        kept = 0.99 / largest_gain(ops, p["layer0.patterns"])
        low, lower = (
            associative_energy(ops, p, cfg, "layer0", far, (drive, rows, gain), tables, tokens) for gain in (kept, 1.02 / 0.99 * kept)
        )
        assert float(low.min()) > 0 and float(lower.max()) < 0


def test_a_pattern_completes_itself():
    """By hand: memories hold a token's neighbour before it in one half and itself in the other; a state that begins with a token alone ends
    with what followed that token before, one relaxation, no layer in between."""
    cfg = tiny_config(NAME, num_heads=1, num_kv_heads=1, partial_rope_dims=2, relaxation_steps=2)
    ops, p, _, _ = built()
    width, half, kinds = 32, 17, 15  # channels 0 and 1 carry positions: neither half uses them
    eye = torch.eye(width, dtype=torch.float64)
    move = torch.zeros((width, width), dtype=torch.float64)
    move[range(half, half + kinds), range(2, 2 + kinds)] = 1.0  # a token's channel, taken to the half of answers
    own = eye.clone()
    own[:2] = 0
    weights = {"gain": torch.ones(width).double(), "drive": own, "memory": torch.cat([move, own], 1), "query": eye}
    weights |= {"sharpness": torch.full((1, 1, 1), 2.0).double(), "patterns": 0 * p["layer0.patterns"] + 1e-9}
    weights |= {"threshold": torch.zeros(len(p["layer0.patterns"])).double() - 1.0, "rate": torch.zeros(width).double()}
    p = {f"layer0.{name}": array for name, array in weights.items()}
    order = torch.randperm(kinds, generator=torch.Generator().manual_seed(5))
    for asked in (0, 3, 9):
        tokens = torch.cat([order, order[asked : asked + 1]])[None]
        x = torch.nn.functional.one_hot(tokens + 2, width).double()
        tables = associative_tables(ops, cfg, tokens)
        field = memory_field(ops, p, cfg, "layer0", x, tokens, tables)
        answers = relaxed(ops, p, cfg, "layer0", field, tables)[-1][0, -1, half : half + kinds].clone()
        answers[order[asked]] = 0.0  # its own memory, of the position itself, holds it
        assert int(answers.argmax()) == int(order[asked + 1]) and float(answers.max()) > 2 * float(answers.sort().values[-2])


def test_the_energy_itself_is_not_counted():
    """What only a test asks for does not ship; nor do masks and shifts of documents where there are none."""
    text = shaken_text(tiny_config(NAME))
    for word in ("associative_energy", "energy_of", "check_associative", "banded_attention", "flash_attention", "document_starts"):
        assert f"def {word}(" not in text, word
    assert "def associative_velocity(" in text


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"relaxation_steps": 0}, "arch.relaxation_steps=0 must be 1 or more"),
        ({"pattern_gain": 1.0}, "arch.pattern_gain=1.0 must lie between 0 and 1: from 1 on the energy has no lower bound"),
        ({"pattern_gain": 0.0}, "arch.pattern_gain=0.0 must lie between 0 and 1"),
        ({"carry": "true"}, "has no part with a state"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(NAME, **settings)


def test_states_of_the_forward_are_those_of_the_energies():
    """`energy_of` follows the forward: after the last layer both have the same stream, read off the logits."""
    ops, p, cfg, tokens = built(engram_buckets=64)
    with torch.no_grad():
        x, _ = energy.forward(ops, p, cfg, tokens)
        before = np.array([[float(e.sum()) for e in layer] for layer in energy.energy_of(ops, p, cfg, tokens)])
        p["layer0.out"] = 1.5 * p["layer0.out"]
        after = np.array([[float(e.sum()) for e in layer] for layer in energy.energy_of(ops, p, cfg, tokens)])
        assert float((energy.forward(ops, p, cfg, tokens)[0] - x).abs().max()) > 1e-3
    assert np.abs(after[0] - before[0]).max() == 0 and np.abs(after[1] - before[1]).min() > 0
