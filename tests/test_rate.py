"""The rate penalty: counts what is kept, pulls only what is near the dead zone, makes artifacts smaller when trained with."""

import numpy as np
import pytest
import torch
from model_fixtures import BACKENDS, tiny_config

from trit.compress.quantize import quantize
from trit.ops import torch_ops
from trit.params import ParamSpec
from trit.train.rate import kept_share

SPECS = [
    ParamSpec("t", (40, 64), scheme="ternary", bits=2, group_size=32),
    ParamSpec("i", (30, 16), group="engram", scheme="int", bits=2, group_size=48, clip=2.0),
    ParamSpec("four", (8, 8), scheme="int", bits=4, group_size=8),
    ParamSpec("half", (5,)),
]


def weights(seed=0):
    generator = np.random.default_rng(seed)
    return {spec.name: generator.standard_normal(spec.shape).astype(np.float32) for spec in SPECS}


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_share_of_codes_that_are_not_zero(backend):
    ops, cfg, arrays = BACKENDS[backend].ops, tiny_config(), weights()
    p = {name: ops.from_numpy(array) for name, array in arrays.items()}
    soft = float(ops.to_numpy(kept_share(ops, cfg, SPECS, p)))
    tensors = quantize(ops, cfg, SPECS, p, {})
    codes = np.concatenate([tensors[name].codes.reshape(-1) for name in ("t", "i")])
    exact = (codes != 0).sum() / (40 * 64 + 30 * 16)
    assert abs(soft - exact) < 0.08
    # and where all weights lie far from the edge it is exact
    p["t"], p["i"] = ops.from_numpy(np.full((40, 64), 0.3, np.float32)), ops.from_numpy(np.tile(np.float32([0] * 15 + [3]), (30, 1)))
    assert abs(float(ops.to_numpy(kept_share(ops, cfg, SPECS, p))) - (40 * 64 * 0.982 + 30) / (40 * 64 + 480)) < 0.02


@pytest.mark.parametrize("factor", [0.01, 0.3, 20.0])
def test_it_does_not_depend_on_the_size_of_weights(factor):
    p = {name: torch.tensor(array) for name, array in weights(2).items()}
    larger = {name: factor * x for name, x in p.items()}
    for specs in (SPECS, SPECS[:1], SPECS[1:2]):
        shares = [float(kept_share(torch_ops, tiny_config(), specs, each)) for each in (p, larger)]
        assert 0.1 < shares[0] < 0.9 and shares[1] == pytest.approx(shares[0], abs=1e-5)


def test_it_pulls_towards_zero_and_only_near_the_edge():
    cfg = tiny_config()
    p = {name: torch.tensor(array, requires_grad=True) for name, array in weights(1).items()}
    kept_share(torch_ops, cfg, SPECS, p).backward()
    assert p["four"].grad is None and p["half"].grad is None
    for name in ("t", "i"):
        gradient, value = p[name].grad, p[name].detach()
        assert (gradient * value.sign() >= 0).all()  # a step against it shrinks the weight
        far = value.abs() > 3 * value.abs().mean()
        assert gradient[far].abs().max() < 0.05 * gradient.abs().max()
