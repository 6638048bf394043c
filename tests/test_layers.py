"""Laws of single layers: rotary positions, value residual, exclusion of the own value, the engram's first positions, taps."""

import dataclasses

import numpy as np
import pytest
import torch
from model_fixtures import random_arrays, random_tokens, tiny_config

from trit.eval.temperature import model_logits
from trit.layers.attention import attention_layer, attention_specs, attention_tables, rope_frequencies
from trit.layers.embed import token_logits
from trit.layers.engram import engram_layer, engram_rows, engram_specs
from trit.layers.mlp import mlp_layer, mlp_specs
from trit.models import arch_names, load_arch
from trit.ops import torch_ops

LENGTH = 24


def tensors(specs, seed=0):
    """Random float32 parameters of `specs`."""
    return {name: torch.from_numpy(array) for name, array in random_arrays(specs, seed).items()}


def run_attention(cfg, p, exclude_self, first_values=None, seed=2):
    x = torch.from_numpy(np.random.default_rng(seed).normal(0, 1, (2, LENGTH, cfg.model.model_dim)).astype(np.float32))
    return attention_layer(torch_ops, p, cfg, "a", x, attention_tables(torch_ops, cfg, x[..., 0]), first_values, exclude_self)


@pytest.mark.parametrize("yarn", [32, 256])
def test_rotary_scores_depend_on_the_distance_alone(yarn):
    cfg = tiny_config(yarn_max_len=yarn)
    generator = np.random.default_rng(0)
    q, k = (torch.from_numpy(generator.normal(0, 1, (1, 1, 1, 8)).astype(np.float32)).expand(1, 1, LENGTH, 8) for _ in range(2))
    (table,) = attention_tables(torch_ops, cfg, q[:, 0, :, 0])
    turned_q, turned_k = torch_ops.rotary(q, table), torch_ops.rotary(k, table)
    scores = (turned_q @ turned_k.transpose(-1, -2))[0, 0].numpy()
    for distance in range(LENGTH):
        assert np.ptp(np.diagonal(scores, -distance)) <= 1e-5
    assert np.allclose(turned_q.norm(dim=-1), q.norm(dim=-1), atol=1e-5)
    assert torch.equal(turned_q[..., 4:], q[..., 4:]) and torch.equal(turned_q[:, :, 0], q[:, :, 0])
    assert np.ptp(scores[:, 0]) > 1e-3


def test_yarn_slows_low_frequencies_only():
    base, long = (rope_frequencies(torch_ops, tiny_config(yarn_max_len=n, partial_rope_dims=8), torch.zeros(1)) for n in (32, 256))
    slowed = (base / long).numpy()
    assert slowed[0] == slowed[1] == 1.0
    # From a quarter of the frequencies on, evenly up to as many times as the windows are longer.
    assert np.allclose(slowed, 1 + np.maximum(np.arange(4) / 4 - 0.25, 0) / 0.75 * (256 / 32 - 1))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_excluding_the_own_value_leaves_an_orthogonal_output(kv_heads):
    cfg = tiny_config(xsa_layers=1, num_kv_heads=kv_heads)
    p = tensors(attention_specs(cfg, "a", True))
    p["a.out"], p["a.out.gain"] = torch.eye(32), torch.ones(32)
    shares = []
    for exclude in (False, True):
        out, values = run_attention(cfg, p, exclude)
        heads = out.reshape(2, LENGTH, kv_heads, 4 // kv_heads, 8)
        own = values.permute(0, 2, 1, 3).reshape(2, LENGTH, kv_heads, 1, 8)
        shares.append((heads * own).sum(-1).abs().max() / own.norm(dim=-1).max())
    assert shares[0] > 0.1 and shares[1] < 1e-3
    # The first token attends to nothing but itself, so nothing is left of it; the share's epsilon lets a trace pass.
    assert run_attention(cfg, p, True)[0][:, 0].norm() < 0.2 * run_attention(cfg, p, False)[0][:, 0].norm()


def test_value_residual_mixes_own_and_first_values():
    cfg = tiny_config()
    assert "a.value_mix" not in [spec.name for spec in attention_specs(cfg, "a", True)]
    p = tensors(attention_specs(cfg, "a", False))
    own = run_attention(cfg, p, False)[1]
    first = torch.from_numpy(np.random.default_rng(9).normal(0, 1, own.shape).astype(np.float32))
    for logit, share in ((30.0, 1.0), (0.0, 0.5), (-30.0, 0.0)):
        p["a.value_mix"] = torch.tensor([logit])
        assert torch.allclose(run_attention(cfg, p, False, first)[1], share * own + (1 - share) * first, atol=1e-6)


def test_engram_adds_nothing_where_no_order_has_its_tokens_yet():
    cfg = tiny_config(engram_buckets=64, engram_orders=3)
    p = tensors(engram_specs(cfg))
    tokens = torch.from_numpy(random_tokens(cfg, 2, 9))
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    added = engram_layer(torch_ops, p, cfg, x, tokens)
    assert (added[:, 0] == 0).all() and (added[:, 1:].abs().max(-1).values > 0).all()
    rows, masks = engram_rows(torch_ops, cfg, tokens)
    assert rows.shape == (2, 9, 6) and masks.shape == (9, 6)
    for table in range(6):
        order = table // 2
        assert masks[:, table].tolist() == [0.0] * (order + 1) + [1.0] * (8 - order)
        # Only the last order + 2 tokens decide the row.
        changed = tokens.clone()
        changed[:, : 8 - order - 1] += 1
        assert torch.equal(engram_rows(torch_ops, cfg, changed)[0][:, 8, table], rows[:, 8, table])
        changed[:, 8 - order - 1] += 1
        assert not torch.equal(engram_rows(torch_ops, cfg, changed)[0][:, 8, table], rows[:, 8, table])


def test_mlp_squares_a_leaky_relu_and_normalises():
    cfg = tiny_config()
    p = tensors(mlp_specs(cfg, "m"))
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    hidden = torch.nn.functional.leaky_relu(x @ p["m.in"].T, 0.5) ** 2
    hidden = hidden / torch.sqrt((hidden**2).mean(-1, keepdim=True) + 1e-6) * p["m.out.gain"]
    assert torch.allclose(mlp_layer(torch_ops, p, cfg, "m", x), hidden @ p["m.out"].T, atol=1e-5)
    # RMS normalisation makes the output blind to the size of the input.
    assert torch.allclose(mlp_layer(torch_ops, p, cfg, "m", 4 * x), mlp_layer(torch_ops, p, cfg, "m", x), atol=1e-4)


def test_logits_are_bounded_by_the_soft_cap():
    cfg = tiny_config(logit_softcap=3.0, embed_dim=32)
    p = {"embed": torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * 100, "vocab_bias": torch.zeros(64)}
    logits = token_logits(torch_ops, p, cfg, torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1)))
    assert logits.abs().max() <= 3.0 and logits.abs().max() > 2.9


@pytest.mark.parametrize("name", arch_names())
def test_taps_see_the_input_of_every_stored_matrix(name):
    cfg = tiny_config(name, engram_buckets=64)
    specs = load_arch(name).param_specs(cfg)
    p = tensors(specs)
    p["taps"] = {}
    tokens, untapped = torch.from_numpy(random_tokens(cfg, 2, 16)), {k: x for k, x in p.items() if k != "taps"}
    plain = model_logits(torch_ops, load_arch(name), cfg, untapped, tokens)
    tapped = model_logits(torch_ops, load_arch(name), cfg, p, tokens)
    assert torch.equal(plain, tapped)
    for spec in specs:
        if spec.group == "matrix":
            moment = p["taps"][spec.name]
            assert moment.shape == (spec.shape[-1],) * 2 and torch.equal(moment, moment.T) and (moment.diagonal() >= 0).all()


def test_bfloat16_stays_bfloat16_up_to_the_logits():
    cfg = dataclasses.replace(tiny_config(engram_buckets=64), train=dataclasses.replace(tiny_config().train, compute_dtype="bfloat16"))
    p = {name: x.bfloat16() for name, x in tensors(load_arch("unet").param_specs(cfg)).items()}
    p["taps"] = {}
    logits = model_logits(torch_ops, load_arch("unet"), cfg, p, torch.from_numpy(random_tokens(cfg, 2, 16)))
    assert logits.dtype == torch.float32 and torch.isfinite(logits).all()
