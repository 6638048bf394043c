"""The trained n-gram memory: 4-grams hashed in 64 bits, the gate's bounds and start, steps between which the tables rest."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from model_fixtures import (
    BACKENDS,
    arch_names,
    graphs_of_run,
    largest_difference,
    load_arch,
    logits_of,
    random_arrays,
    random_tokens,
    start,
    tiny_config,
)
from test_parity import mixed

from trit.config_load import load
from trit.layers.engram import engram_layer, engram_rows, engram_specs
from trit.ops import mlx_ops, torch_ops
from trit.train import torch_backend
from trit.train.loop import warm_up
from trit.train.phases import Moment, has_moments, has_phases

MEMORY = {"engram_buckets": 64, "engram_orders": 3}


def wanted_row(past, order, head, cfg):
    """Row of one table for the token ids `past`, newest first (-1 where there is none), in Python integers modulo 2**64."""
    key = past[0] + 1
    for step in range(order + 1):
        key = mixed((key * 65599 + past[step + 1] + 1 + step) % 2**64)
    buckets = cfg.engram.engram_buckets
    return mixed((key + (head + 1) * 1000003) % 2**64) % 2**63 % buckets + buckets * (order * cfg.engram.engram_heads + head)


@pytest.mark.parametrize("ops", [torch_ops, mlx_ops], ids=["torch", "mlx"])
def test_bigrams_to_4_grams_of_the_largest_ids_are_hashed_in_64_bits(ops):
    cfg = tiny_config(engram_buckets=30011, engram_orders=3, engram_heads=2, vocab_size=65536)
    tokens = np.array([[65535, 65535, 65535, 65534, 65535, 0, 1, 65535]], np.int32)
    rows, masks = (ops.to_numpy(x) for x in engram_rows(ops, cfg, ops.from_numpy(tokens)))
    for place in range(8):
        past = [int(tokens[0, place - back]) if back <= place else -1 for back in range(4)]
        for table in range(6):
            order, head = divmod(table, 2)
            assert rows[0, place, table] == wanted_row(past, order, head, cfg)
            # An order is silent until all its tokens are there.
            assert masks[place, table] == (place > order)


@pytest.mark.parametrize("ops", [torch_ops, mlx_ops], ids=["torch", "mlx"])
def test_4_grams_are_silent_at_the_start_of_a_document(ops):
    cfg = tiny_config(isolate_documents="true", **MEMORY)
    tokens = np.array([[9, 9, 9, 9, 1, 9, 9, 9, 9]], np.int32)
    masks = ops.to_numpy(engram_rows(ops, cfg, ops.from_numpy(tokens))[1])[0]
    assert masks.shape == (9, 6)
    assert masks[:, 4].tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 1] and masks[:, 0].tolist() == [0, 1, 1, 1, 0, 1, 1, 1, 1]


def gate_logits(ops, cfg, raw, bias):
    """What the sigmoid of the gate is taken of, float64 (positions,), for a raw scale and a bias."""
    arrays = random_arrays(engram_specs(cfg), 3)
    x = np.random.default_rng(4).normal(0, 1, (1, 9, 32)).astype(np.float32)
    added = []
    for scale, shift in ((raw, bias), (0.378, 60.0)):
        arrays |= {"engram.gate_scale": np.full(1, scale, np.float32), "engram.gate_bias": np.full(1, shift, np.float32)}
        p = {name: ops.from_numpy(array) for name, array in arrays.items()}
        added.append(
            ops.to_numpy(engram_layer(ops, p, cfg, ops.from_numpy(x), ops.from_numpy(random_tokens(cfg, 1, 9)))).astype(np.float64)
        )
    gate = added[0][0, 3:, 0] / added[1][0, 3:, 0]  # the second gate is open
    return np.log(gate / (1.0 - gate))


@pytest.mark.parametrize("ops", [torch_ops, mlx_ops], ids=["torch", "mlx"])
def test_the_slope_of_the_gate_starts_at_one_and_stays_in_its_bounds(ops):
    cfg = tiny_config(**MEMORY)
    cosine = gate_logits(ops, cfg, np.log(np.expm1(0.9)), 0.0)
    assert np.abs(cosine).max() <= 1.0 and np.abs(cosine).max() > 0.05
    for raw, slope in ((0.378, 1.0), (-60.0, 0.1), (0.0, np.log(2.0) + 0.1), (3.0, np.log1p(np.exp(3.0)) + 0.1), (5.0, 4.0), (60.0, 4.0)):
        assert np.abs(gate_logits(ops, cfg, raw, 0.0) - slope * cosine).max() < 2e-3, raw
    assert np.abs(gate_logits(ops, cfg, 0.378, 1.5) - cosine - 1.5).max() < 2e-3
    spec = next(spec for spec in engram_specs(cfg) if spec.name == "engram.gate_scale")
    assert abs(np.log1p(np.exp(spec.value)) + 0.1 - 1.0) < 1e-3


def test_the_gate_starts_where_it_is_set():
    for environ, wanted in (({}, 0.0), ({"ENG_GATE_BIAS_INIT": "1.5"}, 1.5)):
        cfg = load(None, environ, ["engram.engram_buckets=64"])[0]
        assert next(spec for spec in engram_specs(cfg) if spec.name == "engram.gate_bias").value == wanted
    assert start(tiny_config(gate_bias_init=-0.5, **MEMORY)).export()["engram.gate_bias"].tolist() == [-0.5]


def test_resting_tables_are_off_unless_asked_for():
    assert (
        not has_moments(tiny_config(**MEMORY))
        and not has_phases(tiny_config(**MEMORY))
        and has_moments(tiny_config(write_every=2, **MEMORY))
    )
    cfg = load(None, {"ENG_WRITE_EVERY": "4"}, ["engram.engram_buckets=64"])[0]
    assert cfg.engram.write_every == 4


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"write_every": 0, **MEMORY}, "engram.write_every=0 must be 1 .every step. or more"),
        ({"write_every": -2, **MEMORY}, "engram.write_every=-2 must be 1"),
        ({"write_every": 2}, "engram.write_every=2 changes nothing without a memory"),
        ({"gate_bias_init": "nan", **MEMORY}, "engram.gate_bias_init=nan must be a number"),
        ({"write_every": 2, "compile": "true", "warmup_steps": 0, **MEMORY}, "would compile every phase on the clock"),
    ],
)
def test_impossible_settings_are_one_clear_error(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**settings)


def stepped(trained, rows, step=None):
    """(what a step returned, the state after it) of a backend."""
    moment = [] if step is None else [Moment(False, 1, step, 0.0)]
    return trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False, *moment)(), trained.state()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("extra", [{}, {"engram_bits": 1, "rate_penalty": 0.5}, {"grad_accum_steps": 2, "compute_dtype": "bfloat16"}])
def test_tables_move_every_third_step_and_rest_in_between(backend, extra):
    cfg = tiny_config(write_every=3, **MEMORY | extra)
    trained = start(cfg, backend)
    before = trained.state()
    for step in range(7):
        _, after = stepped(trained, random_tokens(cfg, 4, 33, step), step)
        for name in before:
            moved = not np.array_equal(before[name], after[name])
            if "engram.table" in name:
                assert moved == (step % 3 == 0), (name, step)
            elif name.startswith("p/"):
                assert moved, (name, step)
        before = after


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resting_step_changes_no_value_and_no_other_gradient(backend):
    """Without clipping, which weighs all gradients together, every other tensor takes the step that it takes when the tables write."""
    settings = MEMORY | {"grad_clip_norm": 0}
    always, seldom = start(tiny_config(**settings), backend), start(tiny_config(write_every=2, **settings), backend)
    rows = random_tokens(tiny_config(), 4, 33)
    (first, wrote), (written, also) = stepped(always, rows), stepped(seldom, rows, 0)
    assert first == written and largest_difference(wrote, also) == 0
    (loss, norm), always_after = stepped(always, rows)
    (resting_loss, resting_norm), seldom_after = stepped(seldom, rows, 1)
    assert loss == resting_loss and norm > resting_norm
    for name, array in always_after.items():
        if "engram.table" in name:
            assert np.array_equal(seldom_after[name], wrote[name]) and not np.array_equal(array, wrote[name])
        else:
            assert np.allclose(array, seldom_after[name], atol=1e-6, rtol=1e-5), name


def test_torch_compiles_both_kinds_of_steps_before_the_clock(monkeypatch, shard_folder):
    """What traces is what counts, so its code need not be made."""
    monkeypatch.setattr(torch_backend, "compiled", lambda function: torch.compile(function, fullgraph=True, dynamic=False, backend="eager"))
    cfg = tiny_config(num_layers=1, write_every=3, compile="true", iterations=8, **MEMORY)
    graphs = graphs_of_run(cfg, shard_folder)
    assert len(graphs) == 2 + 8 and graphs[1] == graphs[0] + 1 and len(set(graphs[1:])) == 1


def test_mlx_asks_for_both_kinds_of_steps_before_the_clock(monkeypatch):
    """Each function that is compiled, with each shape of its arguments, is asked for in the warm-up; here nothing is made of it."""
    made = []

    def noted(function):
        def inner(*given):
            made.append((id(function), str([getattr(x, "shape", None) for _, x in tree_flatten(given)])))
            return function(*given)

        return inner

    monkeypatch.setattr(mx, "compile", noted)
    cfg = tiny_config(num_layers=1, write_every=3, compile="true", **MEMORY)
    trained = start(cfg, "mlx")
    warm_up(cfg, trained, 1)
    before = set(made)
    made.clear()
    for number in range(7):
        stepped(trained, random_tokens(cfg, 4, 33, number), number)
    assert set(made) == before and len(before) >= 3  # rounding, and the loss of both kinds


@pytest.mark.slow  # MLX hands every fused kernel to a C++ compiler
def test_mlx_traces_both_kinds_of_steps_before_the_clock():
    cfg, traced = tiny_config(num_layers=1, write_every=3, compile="true", **MEMORY), []
    arch = load_arch("unet")

    class Watched:
        """The architecture, noting what its forward is traced with."""

        param_specs, readout = staticmethod(arch.param_specs), staticmethod(arch.readout)

        @staticmethod
        def forward(ops, p, cfg, tokens):
            traced.append("idle" in p)
            return arch.forward(ops, p, cfg, tokens)

    trained = start(cfg, "mlx", arch=Watched)
    warm_up(cfg, trained, 1)
    assert sorted(set(traced)) == [False, True]
    traced.clear()
    for number in range(7):
        stepped(trained, random_tokens(cfg, 4, 33, number), number)
    assert traced == []


@pytest.mark.parametrize("name", arch_names())
def test_a_memory_that_says_nothing_leaves_the_model_as_it_is(name):
    """It is added to the stream of every architecture, and replaces nothing of it."""
    cfg, plain = tiny_config(name, engram_buckets=64), tiny_config(name)
    arrays, tokens = random_arrays(load_arch(name).param_specs(cfg)), random_tokens(cfg, 2, 17)
    silent = arrays | {"engram.value": np.zeros_like(arrays["engram.value"])}
    without = {spec.name: arrays[spec.name] for spec in load_arch(name).param_specs(plain)}
    assert np.array_equal(logits_of(cfg, silent, tokens), logits_of(plain, without, tokens))
    assert largest_difference({"": logits_of(cfg, arrays, tokens)}, {"": logits_of(plain, without, tokens)}) > 1e-4
