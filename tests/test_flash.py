"""FlashAttention behind one op: chosen once with its reason printed, equal to torch's attention, and never trusted untried.

No GPU is here: stand-ins for the packages register custom operators as the packages do, and compute with plain products.
"""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_fixtures import BACKENDS, random_arrays, random_tokens, start, tiny_config

from trit.models import load_arch
from trit.ops import torch_flash, torch_ops


def shares(q, k, causal):
    """Shares (B, H, T, T) that queries give to keys, of heads q and k (B, T, H, D)."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1)


def widened(q, k, v):
    """The heads in float32, keys and values repeated to as many as there are queries."""
    return q.float(), *(x.float().repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))


def plain_heads(q, k, v, causal=True):
    """Attention of heads (B, T, H, D), written out."""
    wide_q, wide_k, wide_v = widened(q, k, v)
    return torch.einsum("bhqk,bkhd->bqhd", shares(wide_q, wide_k, causal), wide_v).to(q.dtype)


@torch.library.custom_op("trit_test::flash_forward", mutates_args=())
def flash_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    return plain_heads(q, k, v).contiguous()


@flash_forward.register_fake
def _(q, k, v):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@torch.library.custom_op("trit_test::flash_backward", mutates_args=())
def flash_backward(gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
    wide_q, wide_k, wide_v = widened(q, k, v)
    given, gradient = shares(wide_q, wide_k, True), gradient.float()
    slope = torch.einsum("bqhd,bkhd->bhqk", gradient, wide_v)
    slope = given * (slope - (slope * given).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
    back_q = torch.einsum("bhqk,bkhd->bqhd", slope, wide_k)
    back_k, back_v = torch.einsum("bhqk,bqhd->bkhd", slope, wide_q), torch.einsum("bhqk,bqhd->bkhd", given, gradient)
    return [back_q.to(q.dtype)] + [x.unflatten(2, (k.shape[2], -1)).sum(3).to(k.dtype) for x in (back_k, back_v)]


@flash_backward.register_fake
def _(gradient, q, k, v):
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]


class FlashFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return flash_forward(q, k, v)

    @staticmethod
    def backward(ctx, gradient):
        return tuple(flash_backward(gradient, *ctx.saved_tensors))


class WrongGradient(FlashFunction):
    @staticmethod
    def backward(ctx, gradient):
        return tuple(2 * x for x in flash_backward(gradient, *ctx.saved_tensors))


def broken(message):
    def raising(q, k, v, causal):
        raise RuntimeError(message)

    return raising


def breaking(q, k, v, causal):
    torch._dynamo.graph_break()
    return plain_heads(q, k, v)


def install(monkeypatch, generation, module, function):
    """A process that has not chosen yet, on a GPU of a `generation`, with `function` as the `module`'s kernel (None: not installed)."""
    monkeypatch.setattr(torch_flash, "CHOSEN", None)
    monkeypatch.setattr(torch_flash, "gpu_generation", lambda x: generation)
    for name in ("flash_attn", "flash_attn_interface"):
        found = SimpleNamespace(flash_attn_func=function) if name == module and function else None
        monkeypatch.setitem(sys.modules, name, found)


def some_heads(width=16, dtype=torch.bfloat16):
    """q (2, 4, 24, D), k and v (2, 2, 24, D)."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, heads, 24, width, generator=generator).to(dtype) for heads in (4, 2, 2)]


def close(left, right):
    return bool((left.float() - right.float()).abs().max() <= 0.02 * right.float().abs().max())


@pytest.mark.parametrize(("generation", "module", "name"), [(9, "flash_attn_interface", "3"), (8, "flash_attn", "2")])
def test_the_package_for_the_gpu_is_chosen_once_and_printed(monkeypatch, capsys, generation, module, name):
    seen = []

    def kernel(q, k, v, causal):
        seen.append((q, causal))
        return FlashFunction.apply(q, k, v)

    install(monkeypatch, generation, module, kernel)
    q, k, v = (x.requires_grad_() for x in some_heads())
    for _ in range(2):
        found = torch_ops.flash_attention(q, k, v)
    assert capsys.readouterr().out == f"attention: FlashAttention {name}\n"
    wanted = torch_ops.attention(q, k, v)
    assert found.shape == wanted.shape and close(found, wanted)
    gradients = [torch.autograd.grad(x.float().square().sum(), (q, k, v)) for x in (found, wanted)]
    assert all(close(a, b) for a, b in zip(*gradients))
    # (B, T, H, D), as a view of the op's (B, H, T, D): nothing is copied.
    given, causal = seen[-1]
    assert causal is True and given.shape == (2, 24, 4, 16) and given.data_ptr() == q.data_ptr()


REFUSED = {
    "no GPU": (0, None, None, "ValueError no CUDA device"),
    "other GPU": (10, None, None, "ValueError no FlashAttention for GPUs of generation 10"),
    "missing": (9, "flash_attn_interface", None, "ModuleNotFoundError"),
    "version 2 is no gain on Hopper": (9, "flash_attn", plain_heads, "ModuleNotFoundError"),
    "not causal": (9, "flash_attn_interface", lambda q, k, v, causal: plain_heads(q, k, v, False), "ValueError its numbers are wrong"),
    "not a number": (9, "flash_attn_interface", lambda q, k, v, causal: plain_heads(q, k, v) * math.nan, "ValueError its numbers"),
    "wrong gradient": (8, "flash_attn", lambda q, k, v, causal: WrongGradient.apply(q, k, v), "ValueError its numbers are wrong"),
    "fails": (8, "flash_attn", broken("head dimension\nmust be a multiple of 8"), "RuntimeError head dimension\n"),
    "graph break": (9, "flash_attn_interface", breaking, "Unsupported"),
    "old signature": (9, "flash_attn_interface", lambda q, k, v, causal: (plain_heads(q, k, v), None), "AttributeError"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_keeps_torchs_attention_and_says_why(monkeypatch, capsys, case):
    generation, module, function, reason = REFUSED[case]
    install(monkeypatch, generation, module, function)
    heads = some_heads()
    for _ in range(2):
        assert torch.equal(torch_ops.flash_attention(*heads), torch_ops.attention(*heads))
    line = capsys.readouterr().out
    assert line.startswith("attention: scaled_dot_product_attention, ") and reason in line and line.count("\n") == 1, line


def test_single_precision_keeps_torchs_attention_and_leaves_the_choice_open(monkeypatch, capsys):
    install(monkeypatch, 9, "flash_attn_interface", broken("never asked"))
    heads = some_heads(dtype=torch.float32)
    assert torch.equal(torch_ops.flash_attention(*heads), torch_ops.attention(*heads))
    assert torch_flash.CHOSEN is None and capsys.readouterr().out == ""


def test_a_compiled_function_holds_the_kernel_whole(monkeypatch):
    install(monkeypatch, 9, "flash_attn_interface", lambda q, k, v, causal: FlashFunction.apply(q, k, v))
    heads = [x.requires_grad_() for x in some_heads()]
    eager = torch_ops.flash_attention(*heads)

    def loss(q, k, v):
        return torch_ops.flash_attention(q, k, v).float().square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*heads)
    assert close(compiled, eager.float().square().sum())
    assert torch.isfinite(torch.autograd.grad(compiled, heads)[0]).all()


SETTINGS = {"attention_kernel": "flash", "compute_dtype": "bfloat16"}


def test_a_backend_chooses_before_its_first_step_and_learns_the_same(monkeypatch, capsys):
    install(monkeypatch, 9, "flash_attn_interface", lambda q, k, v, causal: FlashFunction.apply(q, k, v))
    rows = random_tokens(tiny_config(), 4, 33)
    backend = start(tiny_config(**SETTINGS))
    assert capsys.readouterr().out == "attention: FlashAttention 3\n"
    other = start(tiny_config(compute_dtype="bfloat16"))
    found = [[each.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)() for _ in range(3)] for each in (backend, other)]
    assert np.allclose(*found, atol=0.03)


def test_evaluation_without_training_chooses_too(monkeypatch, capsys):
    install(monkeypatch, 9, "flash_attn_interface", lambda q, k, v, causal: FlashFunction.apply(q, k, v))
    cfg, side = tiny_config(**SETTINGS), BACKENDS["torch"]
    arrays, tokens = random_arrays(load_arch("unet").param_specs(cfg)), random_tokens(cfg, 2, 33)
    process = side.module.Process(0, 1, "cpu")
    losses = [
        side.module.evaluator(side.ops, load_arch("unet"), each, arrays, process).losses(tokens[:, :-1], tokens[:, 1:])
        for each in (cfg, tiny_config(compute_dtype="bfloat16"))
    ]
    assert np.allclose(*losses, atol=0.05) and capsys.readouterr().out == "attention: FlashAttention 3\n"
    # Calibration measures in float32, whatever was chosen.
    side.module.observe(side.ops, load_arch("unet"), cfg, arrays, tokens, process)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_in_32_bits_is_closer_than_in_16(backend):
    """It alone rounds nothing: with everything else in bfloat16, the losses come nearer to those in float32."""
    cfg, tokens, losses = tiny_config(compute_dtype="bfloat16"), random_tokens(tiny_config(), 8, 33), []
    arrays, side = random_arrays(load_arch("unet").param_specs(cfg)), BACKENDS[backend]
    for settings in ({}, {"compute_dtype": "bfloat16"}, {"compute_dtype": "bfloat16", "attention_kernel": "float32"}):
        model = side.module.evaluator(side.ops, load_arch("unet"), tiny_config(**settings), arrays, side.module.Process(0, 1, "cpu"))
        losses.append(model.losses(tokens[:, :-1], tokens[:, 1:]))
    exact, rounded, mixed = losses
    assert (mixed != rounded).any() and np.abs(mixed - exact).mean() < np.abs(rounded - exact).mean() + 1e-4 < 0.02


def test_isolated_documents_want_the_masked_kernel():
    with pytest.raises(ValueError, match="train.attention_kernel=float32 has no mask .*sdpa"):
        tiny_config(attention_kernel="float32", isolate_documents="true")


@pytest.mark.parametrize("change", [{"compute_dtype": "float32"}, {"isolate_documents": "true"}])
def test_settings_it_cannot_serve_are_refused(change):
    with pytest.raises(ValueError, match="train.attention_kernel=flash .*set"):
        tiny_config(**SETTINGS | change)
