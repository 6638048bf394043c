"""The one rounding rule: hand-worked examples, and trained value == unpacked value in every bit for every scheme and layout."""

import numpy as np
import pytest
import torch
from pack_fixtures import random_specs, storage

from trit.compress.pack import pack, unpack
from trit.compress.quantize import (
    SMALLEST_SCALE,
    decode,
    dequantize,
    encode,
    fake_quantize,
    group_layout,
    quantize,
    scale_table,
    stored_scale,
)
from trit.ops import torch_ops as ops
from trit.params import ParamSpec


def settings(threshold=0.5, scale="absmean", scale_steps=0):
    """The part of a Config that rounding reads."""
    return storage(scale_steps, threshold=threshold, scale=scale)


def ternary(shape, size):
    return ParamSpec("w", shape, scheme="ternary", bits=2, group_size=size)


def rounded(spec, values, cfg=None, calibration=None):
    """(codes, scales, stored values) of a tensor given as nested lists or an array."""
    x = torch.tensor(np.asarray(values, np.float32))
    codes, scales = encode(ops, cfg or settings(), spec, x, calibration or {})
    return codes, scales, decode(ops, cfg or settings(), spec, codes, scales)


def test_ternary_by_hand():
    # Group 1: mean magnitude 4.5 / 4 = 1.125, dead zone 0.5625. Group 2: mean 1, dead zone 0.5, which itself is dead.
    codes, scales, values = rounded(ternary((2, 4), 4), [[1, -3, 0.5, 0], [0.5, -0.5, 1, 2]])
    assert codes.tolist() == [[1, -1, 0, 0], [0, 0, 1, 1]] and scales.tolist() == [[1.125], [1.0]]
    assert values.tolist() == [[1.125, -1.125, 0, 0], [0, 0, 1, 1]]
    # Least squares: the mean magnitude of what is kept.
    assert rounded(ternary((1, 4), 4), [[1, -3, 0.5, 0]], settings(scale="least_squares"))[1].tolist() == [[2.0]]
    # Calibration overrules the settings: dead zone 2 * 1.125 keeps the 3 alone.
    codes, scales, _ = rounded(ternary((1, 4), 4), [[1, -3, 0.5, 0]], calibration={"w": (2.0, True)})
    assert codes.tolist() == [[0, -1, 0, 0]] and scales.tolist() == [[3.0]]


def test_integers_by_hand():
    # RMS 2 and clip 3: three bits cover -6 .. 6 in steps of 2; ties go to even, 9 is clipped.
    spec = ParamSpec("w", (1, 4), scheme="int", bits=3, group_size=4, clip=3.0)
    codes, scales, values = rounded(spec, [[2, -2, 2, -2]], settings())
    assert scales.tolist() == [[2.0]] and codes.tolist() == [[1, -1, 1, -1]] and values.tolist() == [[2, -2, 2, -2]]
    codes, scales, _ = rounded(spec._replace(clip=1.0), [[9, 0, 0, 0]], settings())
    assert scales.tolist() == [[1.5]] and codes.tolist() == [[3, 0, 0, 0]]


def test_half_values_and_scales_are_float16():
    x = torch.tensor([[0.1, 1 / 3, 65504.0]])
    assert encode(ops, settings(), ParamSpec("w", (1, 3)), x, {})[0].dtype == torch.float16
    scales = rounded(ternary((1, 3), 3), [[0.1, 0.2, 0.4]])[1]
    assert scales.dtype == torch.float32 and scales.item() == np.float32(np.float16(np.float32(0.7) / 3))


def draw(specs, generator):
    """Weights of very different sizes: Gaussian at several scales, some rows zero, some values at minus zero or below the floor."""
    p = {}
    for spec in specs:
        x = generator.standard_normal(spec.shape) * 10.0 ** generator.integers(-6, 3)
        x *= generator.random(spec.shape) < generator.choice([0.3, 1.0])
        p[spec.name] = torch.tensor(np.where(generator.random(spec.shape) < 0.05, -1e-9, x).astype(np.float32), requires_grad=True)
    return p


@pytest.mark.parametrize("seed", range(40))
def test_trained_value_is_unpacked_value_in_every_bit(seed):
    generator = np.random.default_rng(seed)
    specs = [spec._replace(clip=generator.uniform(1, 4)) for spec in random_specs(generator)]
    specs = [spec._replace(init="constant", value=generator.uniform(-2, 2)) if generator.random() < 0.3 else spec for spec in specs]
    specs = [spec._replace(rotate=spec.scheme != "fp16" and not group_layout(spec)[2] and generator.random() < 0.5) for spec in specs]
    p = draw(specs, generator)
    cfg = settings(generator.uniform(0.1, 1.5), str(generator.choice(["absmean", "least_squares"])), int(generator.choice([0, 3, 8, 160])))
    calibration = {spec.name: (generator.uniform(0.1, 1.9), bool(generator.integers(2))) for spec in specs[::2]}
    trained = fake_quantize(ops, cfg, specs, p, calibration)
    stored = dequantize(ops, cfg, specs, unpack(cfg, specs, pack(cfg, specs, quantize(ops, cfg, specs, p, calibration))))
    for spec in specs:
        value = trained[spec.name].detach().numpy()
        assert value.shape == spec.shape and value.tobytes() == stored[spec.name].tobytes(), spec


@pytest.mark.parametrize("steps", [1, 3, 8, 160])
def test_a_stored_scale_is_the_nearest_in_ratio(steps):
    x = np.exp2(np.random.default_rng(steps).uniform(-13.9, 14.9, (2000, 1))).astype(np.float32)
    found = stored_scale(ops, settings(scale_steps=steps), torch.tensor(x)).numpy().astype(np.float64)
    table, exact = scale_table(steps).astype(np.float64), x.astype(np.float16).astype(np.float64)
    assert np.isin(found, table).all()
    least = np.abs(np.log2(table / exact)).min(1, keepdims=True)
    assert (np.abs(np.log2(found / exact)) <= least + 1e-3).all()  # entries and scales have 11 bits each


@pytest.mark.parametrize("start", [0.0, 0.378, -2.0, 4.0])
@pytest.mark.parametrize("bits, size", [(4, 5), (6, 10), (8, 20)])
def test_a_stored_integer_is_within_half_a_step_of_the_weight_whatever_the_start(bits, size, start):
    spec = ParamSpec("w", (8, 10), "constant", start, scheme="int", bits=bits, group_size=size, clip=6.0)
    x = start + 0.1 * np.random.default_rng(bits).standard_normal((8, 10)).astype(np.float32)
    _, scales, values = rounded(spec, x)
    steps = np.repeat(scales.numpy(), size, 1).reshape(8, 10)
    assert (np.abs(values.numpy() - x) <= steps / 2 + 1e-6).all() and steps.max() < 0.2


@pytest.mark.parametrize("scheme, bits", [("ternary", 2), ("int", 4), ("fp16", 16)])
def test_gradient_is_the_dense_gradient_at_the_stored_value(scheme, bits):
    spec = ParamSpec("w", (5, 7), scheme=scheme, bits=bits, group_size=4)
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    cost = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    value = fake_quantize(ops, settings(), [spec], {"w": x}, {})["w"]
    (torch.sin(value) * cost).sum().backward()
    dense = value.detach().clone().requires_grad_()
    (torch.sin(dense) * cost).sum().backward()
    assert torch.equal(x.grad, dense.grad)


def test_a_ternary_group_has_at_most_three_values():
    spec = ternary((6, 50), 16)
    _, _, values = rounded(spec, np.random.default_rng(0).standard_normal((6, 50)))
    for row in values.numpy():
        for start in range(0, 50, 16):
            group = row[start : start + 16]
            assert len(np.unique(group)) <= 3 and len(np.unique(np.abs(group[group != 0]))) <= 1


@pytest.mark.parametrize("scheme, bits", [("ternary", 2), ("int", 5)])
@pytest.mark.parametrize("shape, size, alone", [((3, 10), 4, (slice(None), slice(8, 10))), ((7, 4), 12, (slice(6, 7), slice(None)))])
def test_a_padded_group_averages_its_real_entries(scheme, bits, shape, size, alone):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    spec = ParamSpec("w", shape, scheme=scheme, bits=bits, group_size=size)
    part = x[alone]
    size_alone = part.shape[1] if shape == (3, 10) else part.size
    _, _, expected = rounded(ParamSpec("w", part.shape, scheme=scheme, bits=bits, group_size=size_alone), part)
    assert torch.equal(rounded(spec, x)[2][alone], expected)


def test_group_layout():
    assert group_layout(ternary((3, 10), 4)) == (9, 4, 2)
    assert group_layout(ternary((3, 10), 10)) == (3, 10, 0)
    assert group_layout(ternary((2, 3, 5), 5)) == (6, 5, 0)
    assert group_layout(ternary((7, 4), 12)) == (3, 12, 2)
    assert group_layout(ternary((5,), 3)) == (2, 3, 1)
    with pytest.raises(ValueError, match="w: group size 6 is neither inside a row of 4 nor a multiple"):
        group_layout(ternary((7, 4), 6))


@pytest.mark.parametrize("scheme, bits", [("ternary", 2), ("int", 4)])
@pytest.mark.parametrize("cfg", [settings(), settings(scale="least_squares")])
def test_scales_never_vanish(scheme, bits, cfg):
    spec = ParamSpec("w", (2, 4), scheme=scheme, bits=bits, group_size=4)
    for size in (0.0, 1e-12, 1e-6):
        _, scales, values = rounded(spec, np.full((2, 4), size), cfg)
        assert (scales == SMALLEST_SCALE).all() and (values == 0).all()
    # and a group at the floor comes back once its weights grow
    assert (rounded(spec, np.full((2, 4), 1e-4), cfg)[0] > 0).all()


@pytest.mark.parametrize("scheme, bits", [("ternary", 2), ("int", 4)])
def test_codes_do_not_depend_on_uniform_shrinking(scheme, bits):
    spec = ParamSpec("w", (20, 64), scheme=scheme, bits=bits, group_size=32)
    x = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    codes, scales, _ = rounded(spec, x)
    for power in (1, 5):  # exact in binary
        shrunk, smaller, _ = rounded(spec, x / 2**power)
        assert torch.equal(codes, shrunk) and torch.equal(scales, smaller * 2**power)
    shrunk, _, _ = rounded(spec, x * np.float32(0.7))  # the scale's 11 bits round elsewhere: only weights on a boundary may move
    assert (codes != shrunk).float().mean() < 0.005


def test_rounding_twice_would_change_the_model():
    # Why loaded values are used as they are: their mean magnitude is not the scale they carry.
    spec = ternary((4, 64), 64)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    tensors = unpack(settings(), [spec], pack(settings(), [spec], quantize(ops, settings(), [spec], {"w": x}, {})))
    once = dequantize(ops, settings(), [spec], tensors)["w"]
    twice = rounded(spec, once)[2].numpy()
    assert not np.array_equal(once, twice) and np.abs(twice).max() < np.abs(once).max()
    assert np.array_equal(once, fake_quantize(ops, settings(), [spec], {"w": x}, {})["w"].numpy())


def test_weights_that_are_not_finite_are_refused_when_packed():
    for spec in (ternary((1, 4), 4), ParamSpec("w", (1, 4), scheme="int", bits=4, group_size=4), ParamSpec("w", (1, 4))):
        for bad in (np.nan, np.inf, 1e9):
            with np.errstate(invalid="ignore", over="ignore"):
                for cfg in (settings(), settings(scale_steps=8)):
                    with pytest.raises(ValueError, match="w: "):
                        tensors = quantize(ops, cfg, [spec], {"w": torch.tensor([[1.0, 2.0, 3.0, bad]])}, {})
                        pack(cfg, [spec], tensors)
