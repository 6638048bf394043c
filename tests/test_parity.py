"""torch, MLX and numpy say the same: every op of the vocabulary with its gradient, every architecture, the rounding rule, the hash."""

import inspect
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import torch
from model_fixtures import (
    BACKENDS,
    FLAG_SETS,
    MODELS,
    evaluating,
    largest_difference,
    logits_of,
    random_arrays,
    random_tokens,
    start,
    tiny_config,
)
from op_cases import CASES

from trit.compress.quantize import dequantize, fake_quantize, quantize
from trit.layers.engram import engram_rows
from trit.models import load_arch
from trit.ops import mlx_ops, torch_ops
from trit.train import mlx_backend

NUMPY_OPS = SimpleNamespace(
    cast=lambda x, dtype: x.astype(dtype),
    arange=lambda count, like: np.arange(count, dtype=np.float32),
    pad=np.pad,
    stack=lambda parts, axis: np.stack(parts, axis),
)


def vocabulary(ops):
    """{name: function} of an ops module, imports aside."""
    return {name: value for name, value in vars(ops).items() if inspect.isfunction(value) and value.__module__ == ops.__name__}


def close(left, right, tolerance):
    """Equal within `tolerance`, relative to the largest magnitude where that exceeds one."""
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    assert left.shape == right.shape
    scale = max(1.0, float(np.abs(right).max(initial=0)))
    assert np.abs(left - right).max(initial=0) <= tolerance * scale


def test_both_backends_speak_the_same_vocabulary_and_every_op_has_a_case():
    torch_names, mlx_names = vocabulary(torch_ops), vocabulary(mlx_ops)
    assert torch_names.keys() == mlx_names.keys()
    for name, function in torch_names.items():
        assert inspect.signature(function) == inspect.signature(mlx_names[name]), name
    assert {case.op for case in CASES} == torch_names.keys()


def labels(cases):
    return [f"{case.op}-{index}" for index, case in enumerate(cases)]


@pytest.mark.parametrize("case", CASES, ids=labels(CASES))
def test_op_agrees_with_numpy_on_both_backends(case):
    wanted = case.reference(*case.inputs)
    for side in BACKENDS.values():
        found = side.ops.to_numpy(case.call(side.ops, *(side.ops.from_numpy(x) for x in case.inputs)))
        close(found, wanted, 1e-5)
        if np.asarray(wanted).dtype == np.int64:
            assert found.dtype == np.int64


@pytest.mark.parametrize("case", [case for case in CASES if case.gradients], ids=labels([case for case in CASES if case.gradients]))
def test_op_has_the_same_gradient_on_both_backends(case):
    floating = [i for i, x in enumerate(case.inputs) if x.dtype == np.float32]
    weights = np.random.default_rng(1).normal(0, 1, np.shape(case.reference(*case.inputs))).astype(np.float32)
    tensors = [torch.from_numpy(x.copy()) for x in case.inputs]
    for i in floating:
        tensors[i].requires_grad_()
    (case.call(torch_ops, *tensors) * torch.from_numpy(weights)).sum().backward()
    for i in floating:
        gradient = mx.grad(lambda *xs: (case.call(mlx_ops, *xs) * mx.array(weights)).sum(), argnums=i)(*map(mx.array, case.inputs))
        left = np.zeros(case.inputs[i].shape) if tensors[i].grad is None else tensors[i].grad.numpy()
        close(np.array(gradient), left, 1e-4)


@pytest.mark.parametrize("name,flags", MODELS)
def test_architecture_has_the_same_logits_and_losses_on_both_backends(name, flags):
    cfg = tiny_config(name, **FLAG_SETS[flags])
    arrays = random_arrays(load_arch(name).param_specs(cfg))
    tokens = random_tokens(cfg, 2, 33)
    assert np.abs(logits_of(cfg, arrays, tokens) - logits_of(cfg, arrays, tokens, "mlx")).max() <= 1e-4
    losses, moments, curvatures = [], [], []
    for side in BACKENDS.values():
        process = side.module.Process(0, 1, "cpu")
        losses.append(side.module.evaluator(side.ops, load_arch(name), cfg, arrays, process).losses(tokens[:, :-1], tokens[:, 1:]))
        moments.append(side.module.observe(side.ops, load_arch(name), cfg, arrays, tokens, process))
        curvatures.append(side.module.squared_gradients(side.ops, load_arch(name), cfg, arrays, tokens[:, :-1], tokens[:, 1:], process))
    assert losses[0].dtype == losses[1].dtype == np.float32 and losses[0].shape == losses[1].shape == (2, 32)
    assert np.abs(losses[0] - losses[1]).max() <= 1e-4
    assert largest_difference(*moments) <= 1e-3
    for spec in load_arch(name).param_specs(cfg):
        left, right = (found[spec.name] for found in curvatures)
        assert left.shape == spec.shape and np.abs(left - right).max() <= 1e-3 * max(left.max(), 1e-6), spec.name


@pytest.mark.parametrize(
    "scheme",
    [
        {},
        {"matrix_scheme": "int"},
        {"matrix_scheme": "fp16"},
        {"ternary_scale": "least_squares", "engram_bits": 1},
        {"scale_steps": 8, "scalar_bits": 6},
        {"rotate_matrices": "true", "rotate_embedding": "true"},
    ],
)
def test_rounding_is_the_same_on_both_backends(scheme):
    cfg = tiny_config(engram_buckets=64, **scheme)
    specs = load_arch("unet").param_specs(cfg)
    arrays = random_arrays(specs)
    found = []
    for side in BACKENDS.values():
        p = {name: side.ops.from_numpy(array) for name, array in arrays.items()}
        trained = {name: side.ops.to_numpy(x) for name, x in fake_quantize(side.ops, cfg, specs, p, {}).items()}
        stored = dequantize(side.ops, cfg, specs, quantize(side.ops, cfg, specs, p, {}))
        assert all(np.array_equal(trained[name], stored[name]) for name in trained)
        found.append(trained)
    for spec in specs:
        # A weight on the very edge between two codes may fall either way: the order of a sum moves its group's scale by one bit.
        apart = np.abs(found[0][spec.name] - found[1][spec.name]) > 1e-5
        assert apart.mean() <= 1e-3, spec.name


@pytest.mark.parametrize("extra", [{}, {"grad_accum_steps": 2, "engram_buckets": 64}])
def test_training_is_the_same_on_both_backends_and_moves_between_them(extra):
    cfg = tiny_config(ema_decay=0.9, **extra)
    left, right = start(cfg, "torch"), start(cfg, "mlx")
    batches = [random_tokens(cfg, 4, 33, seed) for seed in range(4)]
    for rows in batches[:3]:
        one = left.step(rows[:, :-1], rows[:, 1:], 0.1, True, True)()
        two = right.step(rows[:, :-1], rows[:, 1:], 0.1, True, True)()
        assert np.allclose(one, two, atol=1e-4)
    assert largest_difference(left.state(), right.state()) <= 1e-3
    # A run begun on either side goes on on the other: same keys, same shapes, bit for bit through restore.
    for before, after in ((left, start(cfg, "mlx")), (right, start(cfg, "torch"))):
        after.restore(before.state())
        assert largest_difference(before.state(), after.state()) == 0.0
        after.step(batches[3][:, :-1], batches[3][:, 1:], 0.1, True, True)
        before.step(batches[3][:, :-1], batches[3][:, 1:], 0.1, True, True)
        assert largest_difference(before.export(), after.export()) <= 1e-3


@pytest.mark.slow  # Without a GPU, MLX hands every fused kernel to a C++ compiler.
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_compiled_mlx_step_equals_the_plain_one(device):
    """As on a GPU the optimiser's step is compiled too."""
    settings = {"num_layers": 1, "matrix_scheme": "fp16"}
    rows = random_tokens(tiny_config(), 4, 33)
    plain, compiled = start(tiny_config(**settings), "mlx"), start(tiny_config(compile="true", **settings), "mlx", device=device)
    for _ in range(2):
        for backend in (plain, compiled):
            backend.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)
    assert largest_difference(plain.export(), compiled.export()) <= 1e-4


@pytest.mark.slow
def test_compiled_mlx_evaluation_equals_the_plain_one():
    plain, compiled = (evaluating("unet", "plain", eval_compile=choice) for choice in ("false", "true"))
    arrays, process = random_arrays(load_arch("unet").param_specs(plain)), mlx_backend.Process(0, 1, "cpu")
    sides = [mlx_backend.evaluator(mlx_ops, load_arch("unet"), cfg, arrays, process) for cfg in (plain, compiled)]
    for rows, first in ((4, 0), (3, 0), (4, 16)):
        tokens = random_tokens(plain, rows, 33, rows)
        left, right = (side.losses(tokens[:, :-1], tokens[:, 1:], None, first) for side in sides)
        assert np.abs(left - right).max() <= 1e-5


@pytest.mark.parametrize("split", [{"grad_accum_steps": 4}, {"loss_chunk_tokens": 48}])
def test_a_step_in_parts_gives_the_gradient_of_the_whole_batch(split):
    """48 positions at a time: the last chunk of 128 is shorter."""
    rows = random_tokens(tiny_config(), 4, 33)
    for side in BACKENDS:
        whole, parts = start(tiny_config(), side), start(tiny_config(**split), side)
        one = whole.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()
        two = parts.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()
        assert np.allclose(one, two, atol=1e-5)
        moments = [{n: x for n, x in backend.state().items() if n.startswith("optimizer/")} for backend in (whole, parts)]
        assert largest_difference(*moments) <= 1e-5


def hashed_rows(cfg, tokens):
    """Rows of every backend, and the numpy reference, as one list."""
    with np.errstate(over="ignore"):
        found = [engram_rows(NUMPY_OPS, cfg, tokens)[0]]
    return found + [side.ops.to_numpy(engram_rows(side.ops, cfg, side.ops.from_numpy(tokens))[0]) for side in BACKENDS.values()]


def mixed(x):
    """The hash's mixing step on a Python integer modulo 2**64, with logical shifts."""
    x = x * -7046029254386353131 % 2**64
    x ^= x >> 29
    x = x * -4658895280553007687 % 2**64
    return x ^ x >> 32


def test_hash_is_the_documented_one():
    cfg = tiny_config(engram_buckets=3000, engram_orders=2, engram_heads=2, vocab_size=65536)
    tokens = np.array([[7, 65535, 12]], np.int32)
    bigram = mixed(13 * 65599 + 65536)
    trigram = mixed(bigram * 65599 + 8 + 1)
    keys = [(key + (head + 1) * 1000003) % 2**64 for key in (bigram, trigram) for head in range(2)]
    wanted = [mixed(key) % 2**63 % 3000 + 3000 * table for table, key in enumerate(keys)]
    for rows in hashed_rows(cfg, tokens):
        assert rows[0, 2].tolist() == wanted


def test_hash_rows_are_identical_everywhere():
    cfg = tiny_config(engram_buckets=3000, engram_orders=3, vocab_size=65536)
    tokens = np.random.default_rng(3).integers(0, 65536, (2, 500)).astype(np.int32)
    reference, *others = hashed_rows(cfg, tokens)
    assert reference.min() >= 0 and reference.max() < 3000 * 6
    for table in range(6):
        assert (reference[..., table] // 3000 == table).all()
    for rows in others:
        assert np.array_equal(rows, reference)


@pytest.mark.parametrize("buckets", [4096, 3000])
@pytest.mark.parametrize("kind", ["random", "neighbours"])
def test_hash_spreads_evenly_and_heads_are_independent(kind, buckets):
    count, generator = 70_000, np.random.default_rng(5)
    cfg = tiny_config(engram_buckets=buckets, engram_orders=1, engram_heads=2, vocab_size=65536)
    if kind == "random":
        pairs = np.unique(generator.integers(0, 1024, (2 * count, 2)), axis=0)
        pairs = generator.permutation(pairs)[:count]
    else:
        pairs = np.stack([np.arange(count) // 300, np.arange(count) % 300], 1)
    tokens = torch.from_numpy(pairs.astype(np.int32))
    rows = engram_rows(torch_ops, cfg, tokens)[0][:, 1].numpy() - np.array([0, buckets])
    for head in rows.T:
        for part in (buckets, count):
            occupied = len(np.unique(head[:part]))
            assert occupied >= 0.95 * buckets * (1 - (1 - 1 / buckets) ** part)
        loads = np.bincount(head, minlength=buckets)
        chi_square = ((loads - count / buckets) ** 2).sum() / (count / buckets)
        assert abs(chi_square - buckets) < 6 * np.sqrt(2 * buckets)
    # Independent heads fill the square of both buckets evenly, seen through a coarse grid.
    grid = np.bincount((rows[:, 0] * 32 // buckets) * 32 + rows[:, 1] * 32 // buckets, minlength=1024)
    chi_square = ((grid - count / 1024) ** 2).sum() / (count / 1024)
    assert abs(chi_square - 1023) < 6 * np.sqrt(2 * 1023)


def test_bfloat16_training_is_alike_on_both_backends():
    cfg = tiny_config(compute_dtype="bfloat16", engram_buckets=64, xsa_layers=1)
    rows = random_tokens(cfg, 4, 33)
    results = [
        [backend.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)() for _ in range(3)]
        for backend in (start(cfg, "torch"), start(cfg, "mlx"))
    ]
    assert np.allclose(*results, atol=0.03) and results[0][2][0] < results[0][0][0]
