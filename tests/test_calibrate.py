"""Calibration takes what helps on both halves of the held-out text, no other change, and spends what it is given."""

from types import SimpleNamespace

import numpy as np
import pytest
from pack_fixtures import storage

from trit.compress.calibrate import CALIBRATION_CANDIDATES, calibrate, stored_arrays
from trit.ops import torch_ops
from trit.params import ParamSpec
from trit.train.log import Log

SPECS = [ParamSpec(f"w{i}", (8, 16), scheme="ternary", bits=2, group_size=16) for i in range(4)]
LENGTH, ROWS = 8, 6


def calibrated(wants, evaluations=100, seconds=1e9, rows=ROWS):
    """(choices, losses of both halves before and after, evaluations made) where each half of the text loses less, the larger `wants` times
    the weights' magnitude is."""
    generator, cfg, calls = np.random.default_rng(3), storage(), []
    cfg.train = SimpleNamespace(train_seq_len=LENGTH)
    cfg.compress.calibration_evals, cfg.compress.calibration_seconds = evaluations, seconds
    arrays = {spec.name: generator.standard_normal(spec.shape).astype(np.float32) for spec in SPECS}
    p = {name: torch_ops.from_numpy(array) for name, array in arrays.items()}

    def halves(weights):
        size = sum(np.abs(weights[spec.name]).mean() for spec in SPECS)
        return np.array([10.0 - want * size for want in wants])

    def make_losses(weights):
        calls.append(1)
        return lambda inputs, targets: np.repeat(halves(weights), len(inputs) // 2)[:, None] * np.ones((1, LENGTH))

    tokens = np.arange(rows * LENGTH + 1)
    found = calibrate(torch_ops, cfg, SPECS, arrays, make_losses, lambda weights, inputs: {}, tokens, Log(rank=1))
    before, after = (halves(stored_arrays(torch_ops, cfg, SPECS, p, choices)) for choices in ({}, found))
    return found, before, after, len(calls)


@pytest.mark.parametrize("wants", [(1.0, 1.0), (-1.0, -1.0), (3.0, 0.1)])
def test_a_change_that_helps_on_both_halves_is_taken(wants):
    found, before, after, _ = calibrated(wants)
    assert found and set(found) <= {spec.name for spec in SPECS} and set(found.values()) <= set(CALIBRATION_CANDIDATES)
    assert (after < before).all()


@pytest.mark.parametrize("wants", [(3.0, -1.0), (-1.0, 3.0), (1.0, -3.0), (1.0, 0.0)])
def test_a_change_that_one_half_pays_for_is_not(wants):
    assert calibrated(wants)[0] == {}


@pytest.mark.parametrize("evaluations", [1, 2, 5, 11])
def test_it_makes_as_many_evaluations_as_it_is_given(evaluations):
    assert calibrated((1.0, 1.0), evaluations)[3] == evaluations


def test_without_evaluations_time_or_text_nothing_changes():
    assert calibrated((1.0, 1.0), 0)[0::3] == ({}, 0) and calibrated((1.0, 1.0), rows=1)[0::3] == ({}, 0)
    assert calibrated((1.0, 1.0), seconds=0.0)[0::3] == ({}, 1)
