"""Carried state: windows one after another are one long window, rows stay apart, nothing peeks, and what is off or forgotten is gone."""

import contextlib

import numpy as np
import pytest
import torch
from covering import covering
from model_fixtures import (
    BACKENDS,
    TINY_CAPSULES,
    TINY_FEEDBACK,
    largest_difference,
    load_arch,
    logits_of,
    random_arrays,
    random_tokens,
    start,
    tiny_config,
)
from torch._dynamo.utils import counters

from trit.data.loader import StreamLoader, TokenLoader, open_loader
from trit.data.token_ids import BOS_ID
from trit.train import torch_backend
from trit.train.carry import first_states, kept_streams, own_states
from trit.train.chance import kept_blocks
from trit.train.log import Log
from trit.train.loop import warm_up
from trit.train.loss import training_loss
from trit.train.phases import Moment
from trit.train.run import run_training

CARRY = {"carry": "true"}
LOCAL = {"layer_map": "s", "skc_mix_init": 0.0}
CASES = {
    "koopman": ("koopman_ssm", {}),
    "koopman_isolated": ("koopman_ssm", {"isolate_documents": "true", "koopman_conv_kernel": 6}),
    "koopman_one_tap": ("koopman_ssm", {"koopman_conv_kernel": 1, "koopman_rank": 0, "isolate_documents": "true"}),
    "koopman_recurrent": ("koopman_ssm", {"num_layers": 3, "recurrent_layers": "0,1", "recurrence": 3}),
    "koopman_shared": ("koopman_ssm", {"num_layers": 4, "shared_blocks": 2, "parallel": "true"}),
    "skc_local": ("skc", LOCAL),
    "skc_local_isolated": ("skc", LOCAL | {"isolate_documents": "true"}),
    "skc_local_one_tap": ("skc", LOCAL | {"skc_conv_kernel": 1}),
    "skc": ("skc", {"layer_map": "s", "skc_block": 4, "capsule_rank": 2}),
    "skc_isolated": ("skc", {"layer_map": "s", "skc_block": 4, "isolate_documents": "true", "skc_rollout": 2}),
    "capsules": ("koopman_ssm", TINY_CAPSULES | {"capsule_block": 4, "num_layers": 3}),
    "capsules_isolated": ("koopman_ssm", TINY_CAPSULES | {"capsule_block": 4, "isolate_documents": "true", "recurrent_layers": "1"}),
    "mixed": ("hybrid", {"layer_map": "ks", "skc_mix_init": 0.0, "skc_state_dim": 64, "skc_block": 8, "isolate_documents": "true"}),
}
BLOCKED = ("skc", "skc_isolated", "capsules", "capsules_isolated")
# Of a kernel of 6 the last document of a window of 12 tokens is shorter; a window may begin with one; row 1 has none in the second.
DOCUMENTS = {0: (3, 10, 12, 13, 24), 1: (9, 30)}


def case(name, seed=0, **extra):
    """(config with train.carry, architecture, random weights)."""
    model, settings = CASES[name]
    cfg = tiny_config(model, **CARRY | settings | extra)
    arch = load_arch(model)
    return cfg, arch, random_arrays(arch.param_specs(cfg), seed)


def text(cfg, length, seed=0):
    tokens = np.maximum(random_tokens(cfg, 2, length, seed), BOS_ID + 1)
    for row, places in DOCUMENTS.items():
        tokens[row, [place for place in places if place < length]] = BOS_ID
    return tokens


def windows(cfg, arch, arrays, tokens, sizes, backend="torch", states=None):
    """(logits (B, T, V), states that the last window leaves) of a text cut into windows of `sizes`, each with what the one before left."""
    ops, found = BACKENDS[backend].ops, []
    states = [np.zeros((len(tokens), *shape), np.float32) for shape in arch.carry_shapes(cfg)] if states is None else states
    states = [ops.from_numpy(state) for state in states]
    begin = 0
    for size in sizes:
        p = {name: ops.from_numpy(array) for name, array in arrays.items()} | {"carry": states}
        stream, _ = arch.forward(ops, p, cfg, ops.from_numpy(tokens[:, begin : begin + size]))
        found.append(ops.to_numpy(arch.readout(ops, p, cfg, stream)))
        begin += size
    return np.concatenate(found, 1), [ops.to_numpy(state) for state in states]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_that_carry_are_one_long_window(backend, name):
    """Also windows shorter than the convolution; where blocks of 4 are carried, of whole blocks. A window that carries nothing differs."""
    cfg, arch, arrays = case(name)
    tokens = text(cfg, 36)
    whole = logits_of(cfg, arrays, tokens, backend)
    for sizes in ((16, 20), (12, 12, 12)) if name in BLOCKED else ((18, 18), (12, 12, 12), (2, 1, 1, 20, 2, 10)):
        found, _ = windows(cfg, arch, arrays, tokens, sizes, backend)
        assert np.abs(found - whole).max() <= 1e-5
    assert np.abs(logits_of(cfg, arrays, tokens[:, 16:], backend) - whole[:, 16:]).max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_nothing_carried_is_a_window_without_carry(name):
    """Bit for bit, with zeros carried in, in an evaluation with the setting on, and with it off. Where blocks are carried, to rounding:
    there is one block more to sum over."""
    cfg, arch, arrays = case(name)
    off = tiny_config(CASES[name][0], **CASES[name][1])
    assert off.train.carry is False
    tokens = text(cfg, 20)
    wanted = logits_of(off, arrays, tokens)
    evaluated, carried = logits_of(cfg, arrays, tokens), windows(cfg, arch, arrays, tokens, (20,))[0]
    assert np.array_equal(evaluated, carried) and np.abs(evaluated - wanted).max() <= (1e-5 if name in BLOCKED else 0.0)
    partial = np.abs(logits_of(cfg, arrays, tokens[:, :15]) - logits_of(off, arrays, tokens[:, :15]))
    assert partial.max() <= 1e-5, "a window that ends inside a block, as evaluations have"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_later_tokens_and_other_rows_reach_nothing(backend, name):
    """Through two windows: what is changed in one row shows in that row alone, and from its place on alone."""
    cfg, arch, arrays = case(name)
    tokens = text(cfg, 24)
    before, states = windows(cfg, arch, arrays, tokens, (12, 12), backend)
    for place in (4, 11, 15):
        changed = tokens.copy()
        changed[0, place] = 5 + (changed[0, place] + 1) % 40
        after, others = windows(cfg, arch, arrays, changed, (12, 12), backend)
        assert np.array_equal(after[1], before[1]) and np.array_equal(after[0, :place], before[0, :place])
        assert not np.array_equal(after[0, place:], before[0, place:])
        assert all(np.array_equal(a[1], b[1]) for a, b in zip(others, states))
    swapped, others = windows(cfg, arch, arrays, tokens[::-1].copy(), (12, 12), backend)
    assert np.abs(swapped[::-1] - before).max() <= 1e-5 and all(np.abs(a[::-1] - b).max() <= 1e-5 for a, b in zip(others, states))


def test_a_document_that_begins_forgets_what_was_carried():
    """Bit for bit from the document's start on; and what a window leaves is nothing of the documents before its last."""
    cfg, arch, arrays = case("koopman_isolated")
    tokens = text(cfg, 12)
    plain, left = windows(cfg, arch, arrays, tokens, (12,))
    noise = [np.random.default_rng(3).standard_normal(state.shape).astype(np.float32) for state in left]
    noisy, left_noisy = windows(cfg, arch, arrays, tokens, (12,), states=noise)
    assert np.array_equal(noisy[0, 3:], plain[0, 3:]) and np.array_equal(noisy[1, 9:], plain[1, 9:])
    assert (noisy[0, :3] != plain[0, :3]).any(1).all() and (noisy[1, :9] != plain[1, :9]).any(1).all()
    assert all(np.array_equal(a, b) for a, b in zip(left, left_noisy))
    for state in left:  # the last documents are 2 and 3 tokens long
        assert (state[0, 1:4] == 0).all() and (state[0, 4:] != 0).any(1).all() and (state[1, 1:3] == 0).all() and (state[1, 3:] != 0).any()


@pytest.mark.parametrize("extra", [{}, {"loss_chunk_tokens": 24}, {"compute_dtype": "bfloat16"}])
def test_no_gradient_reaches_what_was_carried(extra):
    cfg, arch, arrays = case("koopman", **extra)
    ops, tokens = BACKENDS["torch"].ops, torch.from_numpy(text(cfg, 25))
    p = {name: torch.from_numpy(array).requires_grad_() for name, array in arrays.items()}
    seen = {name: ops.cast(x, cfg.train.compute_dtype) for name, x in p.items()}
    zeros = [torch.zeros(2, *shape) for shape in arch.carry_shapes(cfg)]
    _, _, left = training_loss(ops, arch, cfg, seen | {"carry": zeros}, tokens[:, :12], tokens[:, 1:13])
    assert len(left) == 2 and all(x.dtype == torch.float32 and x.grad_fn is None and not x.requires_grad for x in left)
    assert all((x == 0).all() for x in zeros), "what was given is not written to"
    objective, _, _ = training_loss(ops, arch, cfg, seen | {"carry": left}, tokens[:, 12:24], tokens[:, 13:25])
    moved = [x.clone().requires_grad_() for x in left]
    again, _, _ = training_loss(ops, arch, cfg, seen | {"carry": moved}, tokens[:, 12:24], tokens[:, 13:25])
    assert objective == again and all((x != 0).any() for x in torch.autograd.grad(again, moved)), "the test could see a gradient"


def at(step, rows=4, joined=1.0):
    return Moment(False, 1, step, 0.0, np.full(rows, joined, np.float32))


STEPS_ALIKE = [{}, {"grad_accum_steps": 2, "num_layers": 3}, {"compile": "true", "num_layers": 1}]


# Compiled, MLX hands every fused kernel to a C++ compiler; torch's compiled step and MLX's plain ones are fast.
@pytest.mark.parametrize(
    "extra,backend", covering([STEPS_ALIKE, BACKENDS], fast=lambda extra, backend: backend == "torch" or "compile" not in extra)
)
def test_a_step_begins_with_what_the_rows_left_and_resets_exactly_the_chosen(extra, backend, monkeypatch):
    """The states after a step are those of the forward by hand: rows that are kept from the state before, the others from zero."""
    monkeypatch.setattr(torch_backend, "compiled", lambda function: torch.compile(function, fullgraph=True, dynamic=False, backend="eager"))
    cfg, arch, arrays = case("koopman", carry_reset=0.5, matrix_scheme="fp16", embed_bits=16, **extra)
    trained, ops = start(cfg, backend, arrays), BACKENDS[backend].ops
    tokens, seen = random_tokens(cfg, 4, 32 * 5 + 1), set()
    states = list(first_states(arch, cfg).values())
    for step in range(5):
        inputs, targets = (tokens[:, i + 32 * step : i + 32 * step + 32] for i in (0, 1))
        kept = kept_streams(cfg, at(step), 4, 0, 1)
        seen |= set(kept.ravel())
        known = trained.state()
        weights = {name[2:]: array for name, array in known.items() if name.startswith("p/")}
        p = {name: ops.from_numpy(array.astype(np.float16).astype(np.float32)) for name, array in weights.items()}
        carried = [ops.from_numpy(state * kept) for state in states]
        arch.forward(ops, p | {"carry": carried}, cfg, ops.from_numpy(inputs))
        trained.step(np.ascontiguousarray(inputs), np.ascontiguousarray(targets), 1.0, True, False, at(step))()
        after = trained.state()
        states = [after[f"carry/{number}"] for number in range(len(states))]
        assert max(np.abs(a - ops.to_numpy(b)).max() for a, b in zip(states, carried)) <= 1e-5
    assert seen == {0.0, 1.0}


def test_resets_come_with_their_probability_for_the_same_rows_on_any_ranks():
    cfg, _, _ = case("koopman")
    whole = np.stack([kept_streams(cfg, at(step, 8), 8, 0, 1) for step in range(500)])
    assert whole.dtype == np.float32 and whole.shape == (500, 8, 1, 1) and set(whole.ravel()) == {0.0, 1.0}
    assert abs(whole.mean() - 0.8) < 0.02 and (np.abs(whole.mean(0) - 0.8) < 0.07).all()
    for rank in range(2):
        part = np.stack([kept_streams(cfg, at(step), 4, rank, 2) for step in range(500)])
        assert np.array_equal(part, whole[:, 4 * rank : 4 * rank + 4])
    assert (kept_streams(cfg, at(3, 8, 0.0), 8, 0, 1) == 0).all() and (kept_streams(cfg, Moment(False, 1, 3, 0.0), 8, 0, 1) == 0).all()
    always, _, _ = case("koopman", carry_reset=0.0, drop_path=0.2)
    assert (kept_streams(always, at(3, 8), 8, 0, 1) == 1).all()
    both = [kept_blocks(always, at(step), 4, 0, 1)[0].ravel() > 0 for step in range(50)]
    assert not np.array_equal(both, [kept_streams(cfg, at(step), 4, 0, 1).ravel() > 0 for step in range(50)]), "draws of their own"


def test_a_step_that_fails_leaves_no_state():
    cfg, arch, arrays = case("koopman")
    for backend in BACKENDS:
        spoilt = arrays | {"vocab_bias": arrays["vocab_bias"] * np.float32("nan")}
        trained, rows = start(cfg, backend, spoilt), random_tokens(cfg, 4, 33)
        assert not np.isfinite(trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False, at(0))()[1])
        assert all((array == 0).all() for name, array in trained.state().items() if name.startswith("carry/"))
        healthy = start(cfg, backend, arrays)
        healthy.step(rows[:, :-1], rows[:, 1:], 1.0, True, False, at(0))()
        assert all((array != 0).any() for name, array in healthy.state().items() if name.startswith("carry/"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_warm_up_leaves_no_trace(backend):
    cfg, _, arrays = case("koopman", warmup_steps=2, full_precision_fraction=0.1)
    trained, rows = start(cfg, backend, arrays), random_tokens(cfg, 4, 33)
    trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False, at(0))()
    before = trained.state()
    assert (before["carry/1"] != 0).any()
    warm_up(cfg, trained, 1)
    assert largest_difference(before, trained.state()) == 0


def test_states_of_a_checkpoint_are_cut_by_rank_and_micro_batch():
    cfg, arch, _ = case("koopman", grad_accum_steps=2, train_batch_tokens=256)
    flat = first_states(arch, cfg)
    assert {name: array.shape for name, array in flat.items()} == {f"carry/{n}": (8, 4, 32) for n in range(2)}
    flat = {name: array + np.arange(8, dtype=np.float32)[:, None, None] for name, array in flat.items()}
    for rank in range(2):
        found = own_states(cfg, flat, rank, 2)
        assert [[sorted(set(x.ravel())) for x in micro] for micro in found] == [
            [[4 * rank, 4 * rank + 1]] * 2,
            [[4 * rank + 2, 4 * rank + 3]] * 2,
        ]


def reached(cfg, backend, folder, stop, resumed=None, wrap=lambda step: step):
    """(backend, last saved) of a run that is interrupted in its step number `stop`, or ends."""
    trained, saved, left = start(cfg, backend), [], [stop + cfg.train.warmup_steps]
    inner = wrap(trained.step)

    def step(*arguments):
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        return inner(*arguments)

    specs = load_arch(cfg.model.name).param_specs(cfg)
    with contextlib.suppress(KeyboardInterrupt):
        run_training(cfg, specs, trained._replace(step=step), folder, 1, Log(1), resumed, lambda *s: saved.append(s))
    return trained, saved[-1]


@pytest.mark.parametrize("backend,stops", [("torch", (1, 4, 7)), ("mlx", (4,))])
def test_a_run_resumes_bit_for_bit(backend, stops, shard_folder):
    cfg, _, _ = case("koopman", iterations=8, grad_accum_steps=2, drop_path=0.2)
    straight, _ = reached(cfg, backend, shard_folder, 1000)
    for stop in stops:
        _, saved = reached(cfg, backend, shard_folder, stop)
        assert saved[1] == saved[3] == stop
        resumed, _ = reached(cfg, backend, shard_folder, 1000, saved)
        assert largest_difference(straight.state(), resumed.state()) == 0
        forgotten = {name: array * (not name.startswith("carry/")) for name, array in saved[0].items()}
        other, _ = reached(cfg, backend, shard_folder, 1000, (forgotten, *saved[1:]))
        assert largest_difference(straight.state(), other.state()) > 0


def test_nothing_compiles_on_the_clock(monkeypatch, shard_folder):
    monkeypatch.setattr(torch_backend, "compiled", lambda function: torch.compile(function, fullgraph=True, dynamic=False, backend="eager"))
    cfg, _, _ = case("koopman", num_layers=1, compile="true", iterations=6, grad_accum_steps=2)
    torch._dynamo.reset()
    graphs = []

    def counted(step):
        def inner(*arguments):
            wait = step(*arguments)
            graphs.append(counters["stats"]["unique_graphs"])
            return wait

        return inner

    reached(cfg, "torch", shard_folder, 1000, wrap=counted)
    assert len(graphs) == cfg.train.warmup_steps + 6 and len(set(graphs[cfg.train.warmup_steps - 1 :])) == 1


@pytest.mark.parametrize("name", ["mixed", "skc_isolated", "capsules_isolated"])
def test_both_backends_train_alike(shard_folder, name):
    cfg, _, _ = case(name, iterations=5, num_layers=2, full_precision_fraction=0.99)
    states = [reached(cfg, backend, shard_folder, 1000)[0].state() for backend in BACKENDS]
    for name, array in states[0].items():
        if name.startswith(("p/", "carry/")):
            assert np.abs(array - states[1][name]).max() < 5e-3, name


def texts():
    return [np.arange(a, b, dtype=np.uint16) for a, b in ((0, 333), (333, 350), (350, 750))]


def taken(count, rows=4, rank=0, world=1, position=0, seed=3, run=0):
    """[(inputs, targets, joined)] of `count` steps, and the loader."""
    loader = StreamLoader(texts(), 16, rows, seed, rank, world, position, run)
    try:
        return [(*loader.next_batch(), loader.joined) for _ in range(count)], loader
    finally:
        loader.close()


@pytest.mark.parametrize("run,length", [(0, 10), (3, 3), (500, 10)])
def test_rows_go_on_with_their_text(run, length):
    """Tokens are places in the text: where a row is joined, its first token follows its last target, and nowhere else. 43 windows."""
    found, loader = taken(120, run=run)
    assert loader.run == length and int(loader.ends[-1]) == 43
    joined = np.stack([row for _, _, row in found])
    firsts, lasts = (np.stack([batch[0][:, place] for batch in found]).astype(int) for place in (0, -1))
    targets = np.stack([batch[1][:, -1] for batch in found])
    assert np.array_equal(targets, lasts + 1) and joined.dtype == np.float32 and joined.shape == (120, 4)
    follows = np.concatenate([np.zeros((1, 4), bool), firsts[1:] == targets[:-1]])
    assert (follows >= joined).all() and (follows > joined).mean() < 0.05, "two runs may meet by chance"
    assert abs(joined.mean() - (1 - 1 / length)) < 0.08
    changes = [step for step in range(1, 120) if not joined[step].all()]
    assert all(joined[step].any() for step in changes[:4]), "rows do not change at the same step"


def test_an_epoch_takes_no_window_twice_and_leaves_few_out():
    for run in (0, 3):
        loader = StreamLoader(texts(), 16, 4, 3, run=run)
        loader.close()
        for epoch in range(3):
            places = [loader.place(epoch, number, step) for number in range(43 // loader.run) for step in range(loader.run)]
            assert len({number for number, _, _ in places}) == len(places) > 43 - loader.run
            starts = sorted(int(loader.shards[shard][start]) for _, shard, start in places)
            assert np.diff(starts).min() >= 16
        assert loader.place(0, 0, 0) != loader.place(1, 0, 0)
        runs = [divmod(turn * 4 + row, 43 // loader.run) for turn in range(9) for row in range(4)]
        assert len(set(runs)) == 36, "every run goes to one row"


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_resumes_and_seeds(world):
    whole, _ = taken(12, run=3)
    parts = [taken(12, rank=rank, world=world, run=3)[0] for rank in range(world)]
    for step, batch in enumerate(whole):
        for part in range(3):
            assert np.array_equal(np.concatenate([rank[step][part] for rank in parts]), batch[part])
    again, _ = taken(7, position=5, run=3)
    assert all(np.array_equal(a, b) for x, y in zip(again, whole[5:], strict=True) for a, b in zip(x, y, strict=True))
    assert not np.array_equal(taken(1, seed=4, run=3)[0][0][0], whole[0][0])


def test_settings_choose_the_loader(shard_folder):
    for extra, kind in (({}, TokenLoader), (CARRY, StreamLoader)):
        loader = open_loader(tiny_config("koopman_ssm", **extra), shard_folder, 1)
        loader.close()
        assert type(loader) is kind and getattr(loader, "run", 16) == 16
    with pytest.raises(ValueError, match="reads 64 texts at once, but the training split holds 43 windows of 16 tokens; .* at most 688"):
        taken(1, rows=64)


@pytest.mark.parametrize("model,settings,message", [
    ("unet", {}, "model.name=unet has no part with a state; take model.name=koopman_ssm"),
    ("hybrid", {"layer_map": "a"}, "model.name=hybrid has no part with a state"),
    ("koopman_ssm", {"seq_schedule": "8:0.5"}, "the same rows in every step, which train.seq_schedule='8:0.5' changes"),
    ("koopman_ssm", {"batch_schedule": "64:0.5"}, "the same rows in every step, which train.batch_schedule='64:0.5' changes"),
    ("koopman_ssm", {"recurrent_layers": "1", "recurrence_start": 0.5}, "train.recurrence_start=0.5 changes; set it to 0"),
    ("skc", {"skc_block": 64}, "carries whole blocks: arch.skc_block=64 must divide train.train_seq_len=32"),
    ("unet", {"capsules": 4, "capsule_block": 12}, "carries whole blocks: arch.capsule_block=12 must divide train.train_seq_len=32"),
    ("koopman_ssm", {"carry_reset": 1.0}, "train.carry_reset=1.0 must be at least 0"),
    ("koopman_ssm", {"carry_windows": 1}, "train.carry_windows=1 must be 2 or more"),
    ("koopman_ssm", {"carry": "false", "carry_windows": 3}, "train.carry_windows=3 does nothing while train.carry=False"),
    ("koopman_ssm", {"carry_reset": -0.1}, "train.carry_reset=-0.1 must be at least 0"),
    ("koopman_ssm", {"carry": "false", "carry_reset": 0.1}, "train.carry_reset=0.1 does nothing while train.carry=False"),
])  # fmt: skip
def test_what_cannot_be_carried_is_one_clear_error(model, settings, message):
    clean = {"koopman_state_dim": 128, "koopman_horizon": 2048.0} if settings.get("layer_map") == "a" else {}
    with pytest.raises(ValueError, match=message):
        tiny_config(model, **CARRY | clean | settings)


def test_feedback_visits_carry_on_their_own():
    """Each visit of a block has a state of its own: the decoder's second pass does not read its first one's."""
    cfg, arch, arrays = case("koopman", num_layers=3, recurrent_layers="2", **TINY_FEEDBACK)
    assert len(arch.carry_shapes(cfg)) == 2 + 2 + 2
    tokens = text(cfg, 24)
    _, left = windows(cfg, arch, arrays, tokens, (12,))
    assert len({state.tobytes() for state in left}) == 6
    assert np.isfinite(windows(cfg, arch, arrays, tokens, (12, 12))[0]).all()
