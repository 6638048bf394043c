"""Products in 8-bit floats: ternary matrices are exact in them, activations and gradients round as documented, evaluation never uses them."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_fixtures import BACKENDS, FLAG_SETS, MODELS, random_arrays, random_tokens, start, takes, tiny_config

from trit.compress.quantize import fake_quantize
from trit.config_load import load
from trit.models import load_arch
from trit.ops import torch_ops

TYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
FP8 = {"fp8": "true", "bitnet_group_size": 4096}


def case(dtype=torch.float32, rows=48, inputs=32, outputs=64):
    """(x (2, rows / 2, I), ternary matrix (O, I) with one scale a row, cotangent of the product)."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, rows // 2, inputs, generator=generator) * torch.logspace(-6, 3, rows).reshape(2, -1, 1)
    codes = torch.randint(-1, 2, (outputs, inputs), generator=generator)
    weight = codes * (torch.rand(outputs, 1, generator=generator) + 0.01)
    return x.to(dtype), weight.to(dtype), torch.randn(2, rows // 2, outputs, generator=generator).to(dtype)


def rounded(x, kind):
    """float64 `x` with each row scaled to the range of the 8-bit floats of `kind` and rounded to them."""
    scale = x.float().abs().amax(-1, keepdim=True) / torch.finfo(TYPES[kind]).max
    return (x.float() / scale).to(TYPES[kind]).double() * scale.double()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_product_and_gradients_are_those_of_rounded_inputs(dtype, tolerance):
    x, weight, cotangent = case(dtype)
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    y = torch_ops.fp8_linear(*leaves)
    assert y.dtype == dtype and y.shape == (2, 24, 64)
    back_x, back_weight = torch.autograd.grad(y, leaves, cotangent)
    scales = weight.abs().amax(1)
    wanted = (
        rounded(x, "e4m3") @ weight.double().t(),
        rounded(cotangent * scales, "e5m2") @ weight.double().sign(),
        cotangent.double().flatten(0, 1).t() @ x.double().flatten(0, 1),
    )
    for found, exact in zip((y, back_x, back_weight), wanted):
        error = (found.double() - exact).abs().amax(-1)
        assert (error <= tolerance * exact.abs().amax(-1)).all(), float(error.max())


def test_each_row_rounds_alone():
    """A token's product must not know of the tokens after it."""
    x, weight, _ = case()
    y = torch_ops.fp8_linear(x, weight)
    x[:, 12:] *= 1000.0
    assert torch.equal(torch_ops.fp8_linear(x, weight)[:, :12], y[:, :12])


def test_the_edges_of_the_range():
    _, weight, _ = case()
    zeros = torch.zeros(3, 32, requires_grad=True)
    y = torch_ops.fp8_linear(zeros, weight)
    assert not y.any() and not torch.autograd.grad(y, zeros, torch.zeros_like(y))[0].any()
    tiny = torch.full((1, 32), 1e-25)
    assert torch.allclose(torch_ops.fp8_linear(tiny, weight), tiny @ weight.t(), rtol=0.1, atol=1e-26)
    # A gradient that is no number must stay one: the step is then skipped.
    assert torch_ops.fp8_linear(torch.full((1, 32), float("inf")), weight).isnan().any()


def test_a_compiled_function_holds_the_products_whole():
    x, weight, cotangent = case()
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    compiled = torch.compile(torch_ops.fp8_linear, fullgraph=True, backend="aot_eager")
    ours, theirs = (function(*leaves) for function in (compiled, torch_ops.fp8_linear))
    assert torch.allclose(ours, theirs, rtol=1e-5)
    assert all(torch.allclose(*pair, rtol=1e-5) for pair in zip(*(torch.autograd.grad(y, leaves, cotangent) for y in (ours, theirs))))


@pytest.mark.parametrize("name,flags", [row for row in MODELS if takes(row.values[0], FP8)])
def test_every_matrix_of_a_stream_is_exact_in_eight_bits(name, flags):
    """Whatever an architecture multiplies with `project` in its forward has one magnitude a row, or train.fp8 would change it."""
    cfg = tiny_config(name, **FLAG_SETS[flags] | FP8 | {"engram_row_dim": 16})
    arch, seen = load_arch(name), []
    specs = arch.param_specs(cfg)
    p = {key: torch.from_numpy(array) for key, array in random_arrays(specs).items()}
    q = fake_quantize(torch_ops, cfg, specs, p, {})
    watched = SimpleNamespace(**vars(torch_ops))
    watched.fp8_linear = lambda x, weight: seen.append(weight) or torch_ops.fp8_linear(x, weight)
    tokens = torch.from_numpy(random_tokens(cfg, 2, 32))
    ours, theirs = (arch.forward(ops, {**q, "fp8": True} if ops is watched else q, cfg, tokens)[0] for ops in (watched, torch_ops))
    for weight in seen:
        assert torch.equal(weight.abs(), weight.abs().amax(1, keepdim=True) * (weight != 0))
    assert len(seen) > cfg.model.num_layers
    difference = float((ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt())
    assert 1e-4 < difference < 0.15, difference


def test_training_in_eight_bits_learns_alike_and_scores_without_them():
    cfg, plain = tiny_config(**FP8), tiny_config(bitnet_group_size=64)
    rows = random_tokens(cfg, 4, 33)
    ours, theirs = start(cfg), start(plain)
    found = [[backend.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)() for _ in range(12)] for backend in (ours, theirs)]
    assert found[0] != found[1] and np.allclose(*found, atol=0.05) and found[0][-1][0] < found[0][0][0] - 0.5
    side, arrays = BACKENDS["torch"], ours.export()
    process = side.module.Process(0, 1, "cpu")
    losses = [
        side.module.evaluator(side.ops, load_arch("unet"), each, arrays, process).losses(rows[:, :-1], rows[:, 1:]) for each in (cfg, plain)
    ]
    assert np.array_equal(*losses)


@pytest.mark.slow  # a C++ compiler takes minutes for a step
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_compiled_step_in_eight_bits_equals_the_plain_one(dtype):
    cfg = tiny_config(**FP8, num_layers=1, compute_dtype=dtype)
    rows = random_tokens(cfg, 4, 33)
    pair = start(cfg), start(dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, compile=True)))
    found = [[backend.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)() for _ in range(3)] for backend in pair]
    assert np.allclose(*found, atol=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bitnet_group_size": 16}, "quant.bitnet_group_size=16 cuts rows.*64 or more"),
        ({"matrix_scheme": "int"}, "quant.matrix_scheme=int is not exact.*ternary"),
        ({"rotate_matrices": "true"}, "quant.rotate_matrices=True makes matrices.*false"),
        ({"full_precision_fraction": 0.3}, "quant.full_precision_fraction=0.3 trains matrices.*0"),
        ({"embed_dim": 24}, r"train.fp8=True multiplies by 16.*embed.up \(32, 24\)"),
    ],
)
def test_settings_that_would_round_matrices_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        tiny_config(**FP8 | change)


def test_a_backend_without_the_units_refuses():
    with pytest.raises(ValueError, match="train.fp8=True: MLX multiplies no 8-bit floats; .* or set train.fp8=false"):
        start(tiny_config(**FP8), "mlx")
    module = BACKENDS["torch"].module
    assert module.check_fp8_units(module.Process(0, 1, "cpu")) is None


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0)])
def test_gpus_before_ada_are_refused(monkeypatch, capability):
    module = BACKENDS["torch"].module
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    process = module.Process(0, 1, "cuda:0")
    if capability >= (8, 9):
        module.check_fp8_units(process)
    else:
        with pytest.raises(ValueError, match="needs a GPU that multiplies 8-bit floats"):
            module.check_fp8_units(process)


def test_the_record_preset_can_train_in_eight_bits():
    load("configs/ternary_10x768.toml", {}, ["train.fp8=true", "quant.bitnet_group_size=3072"])
