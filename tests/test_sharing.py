"""Shared blocks: a model of copies in fewer tensors. Its layers keep their own scales; its gradients are sums over the copies'."""

import numpy as np
import pytest
from model_fixtures import BACKBONE, BACKENDS, largest_difference, load_arch, logits_of, random_arrays, random_tokens, start, tiny_config

from trit.layers.backbone import mixers_of
from trit.layers.sharing import PER_LAYER, Tally, block_map
from trit.params import parameter_count

DEPTH = {"num_layers": 4, "grad_clip_norm": 0}
MODELS = [(name, blocks) for name in BACKBONE for blocks in (2, 4) if name in ("unet", "koopman_ssm") or blocks == 2]


def pair(name, blocks, **extra):
    """(shared config, unshared config, shared weights, {unshared name: shared name})."""
    shared, plain = tiny_config(name, shared_blocks=blocks, **DEPTH, **extra), tiny_config(name, **DEPTH, **extra)
    homes = {spec.name: spec.name for spec in load_arch(name).param_specs(plain)}
    for i, block in enumerate(block_map(shared, mixers_of(shared))):
        for key in homes:
            layer, _, part = key.partition(".")
            if layer == f"block{i}" and part not in PER_LAYER:
                homes[key] = f"shared{block}.{part}"
    return shared, plain, random_arrays(load_arch(name).param_specs(shared)), homes


@pytest.mark.parametrize("layers,layer_map,blocks,wanted", [
    (4, "a", 1, [0, 0, 0, 0]),
    (5, "a", 2, [0, 1, 0, 1, 0]),
    (4, "ak", 2, [0, 1, 0, 1]),
    (6, "ka", 4, [0, 2, 1, 3, 0, 2]),
    (6, "akksaa", 3, [0, 1, 1, 2, 0, 0]),
])  # fmt: skip
def test_layers_take_the_blocks_of_their_mixer_in_turn(layers, layer_map, blocks, wanted):
    cfg = tiny_config("hybrid", num_layers=layers, layer_map=layer_map, shared_blocks=blocks, **({} if "k" in layer_map else PLAIN_KOOPMAN))
    assert block_map(cfg, mixers_of(cfg)) == wanted


PLAIN_KOOPMAN = {"koopman_state_dim": 128, "koopman_horizon": 2048.0}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name,blocks", MODELS)
def test_a_shared_model_equals_one_of_copies(name, blocks, backend):
    shared, plain, arrays, homes = pair(name, blocks)
    tokens = random_tokens(shared, 2, 33)
    copies = {key: arrays[home] for key, home in homes.items()}
    assert np.array_equal(logits_of(shared, arrays, tokens, backend), logits_of(plain, copies, tokens, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name,blocks", MODELS)
def test_gradients_are_the_sums_over_layers(name, blocks, backend):
    """The first moments of one step are gradients, up to one factor. Scales, mixes and skips of layers get their own."""
    shared, plain, arrays, homes = pair(name, blocks)
    rows = random_tokens(shared, 4, 33)
    found = []
    for cfg, weights in ((shared, arrays), (plain, {key: arrays[home] for key, home in homes.items()})):
        trained = start(cfg, backend, weights)
        trained.step(rows[:, :-1], rows[:, 1:], 1.0, False, False)()
        found.append({key[10:-2]: array for key, array in trained.state().items() if key.startswith("optimizer/") and key.endswith("/0")})
    sums = dict.fromkeys(arrays, 0.0)
    for key, home in homes.items():
        sums[home] = sums[home] + found[1][key]
    for key, gradient in found[0].items():
        assert np.abs(gradient - sums[key]).max() <= 1e-5 * max(1.0, np.abs(gradient).max()), key
    scales = [found[0][f"block{i}.mlp_scale"] for i in range(4)]
    assert all(np.abs(scales[0] - other).max() > 1e-6 for other in scales[1:])


@pytest.mark.parametrize("name,blocks", MODELS)
def test_the_table_holds_each_block_once(name, blocks):
    shared, plain, _, homes = pair(name, blocks)
    specs, alone = (load_arch(name).param_specs(cfg) for cfg in (shared, plain))
    assert sorted(spec.name for spec in specs) == sorted(set(homes.values()))
    spared = {}
    for spec in alone:
        spared.setdefault(homes[spec.name], []).append(spec._replace(name=homes[spec.name]))
    assert all(spec in spared[spec.name] and len(set(spared[spec.name])) == 1 for spec in specs)
    count = parameter_count(alone) - sum((len(group) - 1) * parameter_count(group[:1]) for group in spared.values())
    assert parameter_count(specs) == count and (count < parameter_count(alone)) == (blocks < 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_calibration_sees_the_mean_over_all_uses(backend):
    """Of a shared matrix the mean over its layers; of one that recurs the mean over its visits."""
    shared, plain, arrays, homes = pair("unet", 2)
    side, tokens = BACKENDS[backend], random_tokens(shared, 2, 32)
    process = side.module.Process(0, 1, "cpu")
    one = side.module.observe(side.ops, load_arch("unet"), shared, arrays, tokens, process)
    copies = {key: arrays[home] for key, home in homes.items()}
    two = side.module.observe(side.ops, load_arch("unet"), plain, copies, tokens, process)
    means = {home: np.mean([two[key] for key in two if homes[key] == home], 0) for home in one}
    assert {homes[key] for key in two} == one.keys() and largest_difference(one, means) < 1e-4
    deep, flat = (tiny_config(num_layers=n, value_residual="false", **extra) for n, extra in ((1, {"recurrent_layers": "0"}), (2, {})))
    arrays = random_arrays(load_arch("unet").param_specs(deep))
    copies = arrays | {key.replace("block0.", "block1."): x for key, x in arrays.items()} | {"block1.skip": np.zeros(32, np.float32)}
    one, two = (side.module.observe(side.ops, load_arch("unet"), cfg, p, tokens, process) for cfg, p in ((deep, arrays), (flat, copies)))
    for part in ("attn.qkv", "attn.out", "mlp.in", "mlp.out"):
        assert np.abs(one[f"block0.{part}"] - (two[f"block0.{part}"] + two[f"block1.{part}"]) / 2).max() < 1e-4


@pytest.mark.parametrize("uses", [1, 2, 3, 7])
def test_a_tally_is_the_mean_over_any_number_of_uses(uses):
    moments, means = np.random.default_rng(uses).normal(size=(uses, 2, 3, 3)), {}
    tally = Tally(means, lambda name: name.partition(".")[2])
    for use, parts in enumerate(moments):
        for part, moment in zip("ab", parts):
            tally[f"{use}.{part}"] = moment
    assert means.keys() == {"a", "b"} and all(np.allclose(means[part], moments[:, i].mean(0)) for i, part in enumerate("ab"))


@pytest.mark.parametrize(
    "name,layers,blocks,possible", [("unet", 3, 4, "1 or 2 or 3"), ("hybrid", 4, 3, "2 or 4"), ("unet", 2, -1, "1 or 2")]
)
def test_blocks_that_cannot_be_shared_are_one_clear_error(name, layers, blocks, possible):
    with pytest.raises(ValueError, match=f"arch.shared_blocks={blocks} must be 0 .* {possible}$"):
        tiny_config(name, num_layers=layers, shared_blocks=blocks)
