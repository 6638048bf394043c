"""The law of `unet`: which blocks save and which add back, what the mixes mean, and that it reduces to known pieces."""

import numpy as np
import pytest
import torch
from model_fixtures import logits_of, random_arrays, random_tokens, tiny_config

from trit.layers.embed import embed_tokens, token_logits
from trit.models.unet import param_specs
from trit.ops import torch_ops


def names(cfg):
    return [spec.name for spec in param_specs(cfg)]


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
def test_second_half_has_skips_and_an_odd_middle_block_none(layers):
    cfg = tiny_config(num_layers=layers)
    with_skip = [i for i in range(layers) if f"block{i}.skip" in names(cfg)]
    assert with_skip == list(range(layers - layers // 2, layers))


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_a_skip_brings_back_its_mirror_block(layers):
    """Skips pair last with first: with both branches of all other blocks silent, the output shows the sum by hand."""
    cfg = tiny_config(num_layers=layers, x0_mix_init=0.0)
    arrays = random_arrays(param_specs(cfg))
    for i in range(layers):
        arrays[f"block{i}.attn_scale"][:] = 0.0
        arrays[f"block{i}.mlp_scale"][:] = 0.0
        arrays[f"block{i}.mix"][:] = 0.0
        arrays[f"block{i}.mix"][0] = i  # block i multiplies the stream by i + 1
    for i in range(layers - layers // 2, layers):
        arrays[f"block{i}.skip"][:] = 1.0
    tokens = random_tokens(cfg, 2, 7)
    factor, saved = 1.0, []
    for i in range(layers):
        if i >= layers - layers // 2:
            factor += saved.pop()
        factor *= i + 1
        if i < layers // 2:
            saved.append(factor)
    assert not saved
    # The stream is the embedding times a number, which the last normalisation hides: a channel mask on one skip makes it visible.
    arrays[f"block{layers - 1}.skip"][::2] = 0.0
    p = {name: torch.from_numpy(array) for name, array in arrays.items()}
    x = embed_tokens(torch_ops, p, cfg, torch.from_numpy(tokens))
    first = 1.0  # the stream that block 0 saved and the last block adds, in units of the embedding
    factors = torch.full((cfg.model.model_dim,), factor)
    factors[::2] = factor - first * layers
    wanted = token_logits(torch_ops, p, cfg, x * factors).numpy()
    assert np.abs(logits_of(cfg, arrays, tokens) - wanted).max() <= 1e-5


def test_x0_mix_of_one_forgets_the_stream():
    """A block whose mix is (0, 1) starts again from the embedding, so nothing before it matters."""
    cfg = tiny_config(num_layers=1, value_residual="false")
    arrays = random_arrays(param_specs(cfg))
    cfg_two = tiny_config(num_layers=2, value_residual="false")
    two = random_arrays(param_specs(cfg_two), 1)
    for name, array in arrays.items():
        two[name.replace("block0", "block1")] = array
    share = cfg.arch.x0_mix_init
    two["block1.mix"][0], two["block1.mix"][1] = -(1.0 - share), 1.0 - share
    two["block1.skip"][:] = 0.0
    arrays["block0.mix"][:] = two["block1.mix"]
    tokens = random_tokens(cfg, 2, 9)
    assert np.abs(logits_of(cfg, arrays, tokens) - logits_of(cfg_two, two, tokens)).max() <= 1e-6


def test_silent_branches_leave_the_embedding():
    """With zero branch gains every block passes a multiple of the embedding on, so the logits are those of the bare embedding."""
    cfg = tiny_config(num_layers=3)
    arrays = random_arrays(param_specs(cfg))
    for name in arrays:
        if name.endswith(("attn_scale", "mlp_scale", "mix")) and "value_mix" not in name:
            arrays[name][:] = 0.0
        if name.endswith(".skip"):
            arrays[name][:] = 1.0
    tokens = random_tokens(cfg, 2, 9)
    p = {name: torch.from_numpy(array) for name, array in arrays.items()}
    wanted = token_logits(torch_ops, p, cfg, embed_tokens(torch_ops, p, cfg, torch.from_numpy(tokens))).numpy()
    assert np.abs(logits_of(cfg, arrays, tokens) - wanted).max() <= 1e-5


def test_mix_starts_at_the_share_the_settings_name():
    """The stored mix is a distance from (1 - x0_mix_init, x0_mix_init), zero at the start."""
    for spec in param_specs(tiny_config(engram_buckets=64)):
        if spec.name.endswith(".mix"):
            assert spec.value == 0.0 and spec.shape == (2, 32)


def test_exclusion_acts_on_the_last_layers_only():
    base = tiny_config(num_layers=2)
    arrays = random_arrays(param_specs(base))
    tokens = random_tokens(base, 2, 9)
    logits = [logits_of(tiny_config(num_layers=2, xsa_layers=n), arrays, tokens) for n in (0, 1, 2)]
    assert np.abs(logits[0] - logits[1]).max() > 1e-4 and np.abs(logits[1] - logits[2]).max() > 1e-4
    for n in (1, 2):
        silent = dict(arrays)
        for i in range(2 - n, 2):
            silent[f"block{i}.attn_scale"] = np.zeros_like(arrays[f"block{i}.attn_scale"])
        # With the attention of exactly those layers silenced, the exclusion has nothing left to change.
        assert np.array_equal(logits_of(tiny_config(num_layers=2, xsa_layers=n), silent, tokens), logits_of(base, silent, tokens))


def test_engram_enters_before_its_layer():
    cfg = tiny_config(engram_buckets=64, engram_layer=1)
    arrays = random_arrays(param_specs(cfg))
    tokens = random_tokens(cfg, 2, 9)
    silent = arrays | {"engram.value": np.zeros_like(arrays["engram.value"])}
    plain = tiny_config()
    assert np.abs(logits_of(cfg, arrays, tokens) - logits_of(cfg, silent, tokens)).max() > 1e-4
    without = {spec.name: arrays[spec.name] for spec in param_specs(plain)}
    assert np.array_equal(logits_of(cfg, silent, tokens), logits_of(plain, without, tokens))
    assert np.array_equal(logits_of(cfg, arrays, tokens)[:, 0], logits_of(cfg, silent, tokens)[:, 0])
