"""One-pass evaluation: long segments under banded attention are what a plain mask over the whole of them gives, and cost no square.

What every evaluator part must fulfil (once each, from the past alone, any batch, both backends) `test_score` runs on it too.
"""

from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import torch
from model_fixtures import BACKENDS, evaluating, logits_of, random_arrays, random_tokens, tiny_config
from op_cases import masked_attention, normal

from trit.data.token_ids import BOS_ID
from trit.eval.score import score_tokens
from trit.eval.temperature import artifact_specs, scored_losses
from trit.layers import attention
from trit.layers.attention import banded_attention
from trit.layers.document import visible_blocks
from trit.models import arch_names, load_arch
from trit.ops import mlx_ops, torch_ops

SHAPES = [(1, 1), (9, 1), (9, 2), (17, 4), (33, 8), (50, 16), (13, 64)]  # tokens, width of the band
FLAGS = {
    "plain": {},
    "isolated": {"isolate_documents": "true"},
    "everything": {"num_layers": 3, "xsa_layers": 3, "engram_buckets": 64, "engram_layer": 1, "isolate_documents": "true"},
}


def band_of(width, isolated=False):
    """What `visible_blocks` reads of a `Config`."""
    return SimpleNamespace(eval=SimpleNamespace(eval_seq_len=width), model=SimpleNamespace(isolate_documents=isolated))


def whole_mask(tokens, width, isolated):
    """bool (B, 1, T, T): True where a query sees a key, by counting."""
    positions = np.arange(tokens.shape[1])
    distance = positions[:, None] - positions
    document = np.cumsum(tokens == BOS_ID, 1) * isolated
    return ((distance >= 0) & (distance < width))[None, None] & (document[:, None, :, None] == document[:, None, None])


def text_of(rows, length, seed=0):
    """int32 (rows, length) token ids with some document starts."""
    tokens = np.random.default_rng(seed).integers(BOS_ID + 1, 64, (rows, length)).astype(np.int32)
    tokens[np.random.default_rng(seed).random(tokens.shape) < 0.06] = BOS_ID
    return tokens


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("length,width", SHAPES)
def test_banded_attention_is_attention_under_the_whole_mask(length, width, isolated):
    tokens, weights = text_of(2, length), normal(2, 4, length, 8)
    arrays = normal(2, 4, length, 8), normal(2, 2, length, 8), normal(2, 2, length, 8)
    mask = whole_mask(tokens, width, isolated)
    wanted, gradients = masked_attention(*arrays, mask), []
    for backend, side in BACKENDS.items():
        blocks = visible_blocks(side.ops, band_of(width, isolated), side.ops.from_numpy(tokens))
        assert max(block.shape[3] for block in blocks) <= width + max(width // 4, 1)  # no square of the length
        found = banded_attention(side.ops, *map(side.ops.from_numpy, arrays), blocks)
        assert np.abs(side.ops.to_numpy(found) - wanted).max() < 1e-5, backend
    for ops, both in ((torch_ops, False), (torch_ops, True)):
        leaves = [torch.from_numpy(x).requires_grad_() for x in arrays]
        seen = torch.from_numpy(mask) if both else visible_blocks(ops, band_of(width, isolated), torch.from_numpy(tokens))
        found = ops.masked_attention(*leaves, seen) if both else banded_attention(ops, *leaves, seen)
        gradients.append([x.numpy() for x in torch.autograd.grad((found * torch.from_numpy(weights)).sum(), leaves)])
    blocks = visible_blocks(mlx_ops, band_of(width, isolated), mx.array(tokens))
    loss = mx.grad(lambda *x: (banded_attention(mlx_ops, *x, blocks) * mx.array(weights)).sum(), argnums=(0, 1, 2))
    gradients.append([np.array(x) for x in loss(*map(mx.array, arrays))])
    for other in gradients[1:]:
        assert all(np.abs(left - right).max() < 1e-4 for left, right in zip(gradients[0], other))


def test_a_band_wider_than_a_kernels_tile_is_exact():
    """Fused kernels take keys some hundred at a time: here whole tiles are hidden from some queries."""
    arrays, tokens = [normal(1, 1, 2500, 8) for _ in range(3)], np.zeros((1, 2500), np.int32)
    for side in BACKENDS.values():
        found = banded_attention(
            side.ops, *map(side.ops.from_numpy, arrays), visible_blocks(side.ops, band_of(1100), side.ops.from_numpy(tokens))
        )
        assert np.abs(side.ops.to_numpy(found) - masked_attention(*arrays, whole_mask(tokens, 1100, False))).max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("name", arch_names())
def test_one_segment_is_a_forward_under_the_whole_mask(name, flags, backend, monkeypatch):
    cfg, side, tokens = tiny_config(name, eval_segment_tokens=200, **FLAGS[flags]), BACKENDS[backend], text_of(1, 150)[0]
    arrays = random_arrays(load_arch(name).param_specs(cfg))
    model = side.module.evaluator(side.ops, load_arch(name), cfg, arrays, side.module.Process(0, 1, "cpu"))
    losses, counts, _ = score_tokens(side.ops, load_arch(name), cfg, model, tokens)
    mask = whole_mask(tokens[None, :-1], cfg.eval.eval_seq_len, cfg.model.isolate_documents)
    monkeypatch.setattr(attention, "banded_attention", lambda ops, q, k, v, _: ops.masked_attention(q, k, v, ops.from_numpy(mask)))
    logits = logits_of(cfg, arrays, tokens[None, :-1], backend)[0].astype(np.float64)
    wanted = np.log(np.exp(logits).sum(-1)) - logits[np.arange(149), tokens[1:]]
    assert (counts == 1).all() and np.abs(losses - wanted).max() < 1e-5


@pytest.mark.parametrize("yarn", [32, 256])
def test_one_layer_in_one_pass_is_a_window_for_every_token(yarn):
    """Where nothing but attention mixes positions, a band is the window of each token, wherever it lies: so are rotary positions."""
    one_layer = {"num_layers": 1, "yarn_max_len": yarn, "eval_seq_len": 32, "train_seq_len": 32}
    tokens, losses = random_tokens(tiny_config(), 1, 1500)[0], []
    for form in ({"eval_stride": 1}, {"eval_segment_tokens": 100}, {"eval_segment_tokens": 1400, "eval_chunk_tokens": 3000}):
        cfg, side = tiny_config(**one_layer | form), BACKENDS["torch"]
        arch = load_arch("unet")
        model = side.module.evaluator(side.ops, arch, cfg, random_arrays(arch.param_specs(cfg)), side.module.Process(0, 1, "cpu"))
        losses.append(score_tokens(side.ops, arch, cfg, model, tokens)[0])
    assert np.abs(losses[0] - losses[1]).max() < 1e-4 and np.abs(losses[0] - losses[2]).max() < 1e-4


def test_windows_of_training_and_adaptation_are_as_without_segments():
    tokens = text_of(2, 32)
    for flags in FLAGS.values():
        plain, segments = (tiny_config(eval_segment_tokens=n, **flags) for n in (0, 200))
        arrays = random_arrays(load_arch("unet").param_specs(plain))
        assert (logits_of(plain, arrays, tokens) == logits_of(segments, arrays, tokens)).all()


def test_a_segments_logits_exist_window_by_window():
    segments, seen = evaluating("unet", "one_pass"), []
    plain, arch = evaluating("unet", "one_pass", eval_segment_tokens=0), load_arch("unet")

    def readout(ops, p, cfg, stream):
        seen.append(stream.shape[1])
        return arch.readout(ops, p, cfg, stream)

    weights = {name: torch.from_numpy(x) for name, x in random_arrays(artifact_specs(arch, segments)).items()}
    width = segments.eval.eval_seq_len
    inputs, targets = (torch.from_numpy(text_of(3, width, seed)) for seed in (0, 1))
    watched = SimpleNamespace(forward=arch.forward, readout=readout)
    wanted = scored_losses(torch_ops, arch, plain, weights, inputs, targets, 5)
    assert torch.allclose(scored_losses(torch_ops, watched, segments, weights, inputs, targets, 5), wanted, atol=1e-5)
    inputs, targets = (torch.from_numpy(text_of(1, 96, seed)) for seed in (0, 1))
    assert scored_losses(torch_ops, watched, segments, weights, inputs, targets, 5).shape == (1, 91)
    assert max(seen) <= width and sum(seen) == width - 5 + 91
