"""From the same weights both array libraries write the same artifact, byte for byte, and either scores it alike."""

import numpy as np
import pytest
from model_fixtures import BACKENDS, TINY_ARCH, evaluating, random_arrays, tiny_config
from pack_fixtures import same
from record_fixtures import counted_and_package

from trit.bundle.bundle import bundle
from trit.compress.pack import unpack
from trit.compress.quantize import dequantize, group_sum, quantize, scale_table, stored_scale
from trit.eval.temperature import artifact_specs
from trit.models import arch_names, load_arch
from trit.submission import find_calibration, make_artifact, score_arrays, train_weights
from trit.train.log import Log

SIDES = list(BACKENDS.values())
# Half a million weights: of as many groups, plain sums would scale some differently in the two libraries.
BROAD = {"model_dim": 256, "num_layers": 2, "mlp_mult": 4, "embed_dim": 64, "bitnet_group_size": 128, "engram_buckets": 4096}
SCHEMES = {
    "float_scales": {},
    "scale_grid": {"scale_steps": 8, "scalar_bits": 6, "engram_bits": 2},
    "least_squares": {"ternary_scale": "least_squares", "engram_bits": 1},
    "integers": {"matrix_scheme": "int", "matrix_bits": 4, "embed_bits": 6},
    "rotated": {"rotate_matrices": "true", "rotate_embedding": "true", "scale_steps": 8},
    "padded": {"bitnet_group_size": 96, "engram_group_size": 96, "embed_group_size": 24},
}


@pytest.mark.parametrize("size", [1, 2, 3, 24, 63, 64, 128, 1000])
def test_a_groups_sum_is_the_same_bits_everywhere_and_right(size):
    x = np.random.default_rng(size).normal(0, 1, (200, size)).astype(np.float32)
    left, right = (side.ops.to_numpy(group_sum(side.ops, side.ops.from_numpy(x))) for side in SIDES)
    assert left.shape == (200, 1) and np.array_equal(left, right)
    assert np.abs(left[:, 0] - x.astype(np.float64).sum(1)).max() <= 1e-6 * np.abs(x).sum(1).max()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 8, 12, 16])
def test_every_scale_rounds_alike(steps):
    """A scale is a float16 before its place in the grid is sought, so that all of them can be tried: the two libraries' logarithms differ."""
    cfg = tiny_config(scale_steps=steps)
    scales = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)[:, None]
    left, right = (side.ops.to_numpy(stored_scale(side.ops, cfg, side.ops.from_numpy(scales))) for side in SIDES)
    assert np.array_equal(left, right) and np.isin(left, scale_table(steps)).all()


def broad(scheme):
    """(architecture, config, random weights) of one row of SCHEMES."""
    arch, cfg = load_arch("unet"), tiny_config(**BROAD | SCHEMES[scheme])
    return arch, cfg, random_arrays(artifact_specs(arch, cfg))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_weights_round_to_the_same_codes_and_scales(scheme):
    """All that the packer, which is numpy alone, is given."""
    arch, cfg, arrays = broad(scheme)
    assert sum(array.size for array in arrays.values()) > 1_000_000
    left, right = (
        quantize(side.ops, cfg, artifact_specs(arch, cfg), {name: side.ops.from_numpy(array) for name, array in arrays.items()}, {})
        for side in SIDES
    )
    assert same(left, right)


@pytest.mark.parametrize("scheme", [pytest.param(scheme, marks=[pytest.mark.slow] * (scheme != "padded")) for scheme in SCHEMES])
def test_the_same_weights_make_the_same_bytes(scheme):
    arch, cfg, arrays = broad(scheme)
    left, right = (make_artifact(side.ops, arch, cfg, arrays, {}) for side in SIDES)
    assert left == right


@pytest.mark.parametrize("name", arch_names())
def test_what_either_library_made_either_scores_alike(name, shard_folder):
    """Trained and calibrated on each side; its artifact loads to the same weights and scores within 1e-4 bits per byte on the other."""
    cfg = evaluating(name, "all", vocab_size=260, calibration_evals=3, iterations=10, **TINY_ARCH.get(name, {}))
    arch = load_arch(name)
    specs = artifact_specs(arch, cfg)
    for side in SIDES:
        process = side.module.Process(0, 1, "cpu")
        arrays, _ = train_weights(side.ops, side.module, arch, cfg, process, shard_folder, 1, Log(1))
        calibration = find_calibration(side.ops, side.module, arch, cfg, process, arrays, shard_folder, Log(1))
        artifact = make_artifact(side.ops, arch, cfg, arrays, calibration)
        tensors, scores = unpack(cfg, specs, artifact), []
        for judge in SIDES:
            loaded = dequantize(judge.ops, cfg, specs, tensors)
            score, _ = score_arrays(judge.ops, judge.module, arch, cfg, process, loaded, shard_folder, "byte260", Log(1))
            scores.append(score.bpb)
        assert abs(scores[0] - scores[1]) <= 1e-4


def test_the_counted_file_for_mlx_trains_and_scores_alone(data, tmp_path):
    """Without PyTorch in it, to the package's losses bit for bit."""
    cfg = evaluating("unet", "all", vocab_size=260, iterations=8, **{"grad_accum_steps": 2, "ema_decay": 0.9, "calibration_evals": 3})
    assert "torch" not in bundle(cfg, library="mlx", codecs=("brotli",)).source
    alone, package, steps = counted_and_package(cfg, data, tmp_path, "mlx")
    assert steps == 8 and len(alone) > 1000 and np.array_equal(alone, package)


def test_a_weight_on_the_edge_of_the_dead_zone_falls_the_same_way():
    """Groups of which many weights lie exactly on the threshold."""
    cfg = tiny_config(**BROAD)
    spec = next(spec for spec in load_arch("unet").param_specs(cfg) if spec.scheme == "ternary")
    values = np.random.default_rng(0).choice(np.float32([0.25, 0.5, 1.0]), spec.shape)
    codes = [quantize(side.ops, cfg, [spec], {spec.name: side.ops.from_numpy(values)}, {})[spec.name].codes for side in SIDES]
    assert np.array_equal(*codes) and set(np.unique(codes[0])) == {0, 1}
