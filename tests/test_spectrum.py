"""Modes of a relaxation: that of the whole Jacobian are those of its tokens' blocks, by either way to them, and mean what they are said to."""

import numpy as np
import pytest
from equilibrium_fixtures import TINIEST
from model_fixtures import random_arrays, random_tokens, tiny_config

from trit.dynamics.probe_operator import Operator
from trit.dynamics.spectrum import (
    ATTRACTOR,
    CONTRACTING,
    EULER,
    FFN,
    FLIP,
    HOPF,
    MEANING,
    NO_EVIDENCE,
    SLOW,
    STEADY,
    arnoldi,
    asymmetry,
    block_asymmetry,
    dense,
    matched,
    outcome,
    story,
    summary,
)
from trit.layers.newton import critical_steps
from trit.models import load_arch


def operator_of(rows=2, gain=1.0, **changed):
    """An operator of weights that are nowhere constant, attention's and the feed-forward's output `gain` times as strong."""
    cfg = tiny_config("equilibrium", **TINIEST | {"norm_cap": 0} | changed)
    arrays = random_arrays(load_arch("equilibrium").param_specs(cfg))
    for name in arrays:
        if name.endswith((".output", ".contract")):
            arrays[name] = arrays[name] * np.float32(gain)
    return Operator(cfg, arrays, random_tokens(cfg, rows, cfg.train.train_seq_len + 1))


def turning(a, b):
    """A block (2, 2) with the eigenvalues a +- b i."""
    return np.array([[a, -b], [b, a]])


@pytest.mark.parametrize("changed", [{}, {"num_layers": 2}, {"isolate_documents": "true"}], ids=["one cell", "two cells", "documents"])
def test_the_whole_jacobian_has_the_modes_of_its_blocks(changed):
    operator = operator_of(1, 3.0, train_seq_len=4, **changed)
    z, at_rest = operator.rest()
    assert at_rest.all()
    batch, length, width = operator.shape
    written = dense(operator.along(z), length * width)
    blocks = operator.blocks(z)[0]
    by_place = written.reshape(length, width, length, width)
    for t in range(length):
        assert np.abs(by_place[t, :, t] - blocks[t]).max() < 1e-12
        assert (by_place[t, :, t + 1 :] == 0).all()
    assert length < 2 or np.abs(by_place[1:, :, 0]).max() > 1e-3  # earlier tokens do matter
    assert matched(np.linalg.eigvals(written), np.linalg.eigvals(blocks).reshape(-1)) < 1e-8


def test_arnoldi_by_products_agrees_with_the_blocks():
    operator = operator_of(1, 3.0)
    z, at_rest = operator.rest()
    assert at_rest.all() and np.prod(operator.shape) > 100
    wanted = summary(np.linalg.eigvals(operator.blocks(z)).reshape(-1), operator.rate)
    along, back, size = operator.along(z), operator.back(z), int(np.prod(operator.shape))
    assert abs(arnoldi(along, size, "LR", 60) - wanted.rightmost) < 1e-5
    assert abs(arnoldi(back, size, "LR", 60) - wanted.rightmost) < 1e-5
    assert abs(arnoldi(lambda v: v + operator.rate * along(v), size, "LM", 60) - wanted.factor) < 1e-5


def test_products_are_derivatives_and_transposes_of_each_other():
    operator, generator = operator_of(2, 3.0), np.random.default_rng(0)
    z, _ = operator.rest()
    u, v = generator.normal(size=(2, *operator.shape))
    along, back = operator.along(z), operator.back(z)
    assert abs((u * along(v)).sum() - (back(u) * v).sum()) < 1e-10 * abs((u * along(v)).sum()) + 1e-10
    step = 1e-5 * operator.ops.constant(v.tolist(), z)
    finite = operator.ops.to_numpy(operator.force(z + step) - operator.force(z - step)) / 2e-5
    assert np.abs(finite - along(v)).max() < 1e-7


@pytest.mark.parametrize("a,b", [(-2.0, 0.0), (-0.5, 8.0), (-0.3, 3.5), (-0.1, 10.0)])
def test_a_step_is_stable_up_to_the_critical_length_and_no_further(a, b):
    block = turning(a, b)
    limit = float(critical_steps(block))
    assert limit == pytest.approx(-2 * a / (a * a + b * b), rel=1e-12)
    sizes = []
    for rate in (0.98 * limit, 1.02 * limit):
        z = np.array([1.0, 0.3])
        start = np.linalg.norm(z)
        for _ in range(4000):
            z = z + rate * block @ z
            if np.linalg.norm(z) > 1e30:
                break
        sizes.append(np.linalg.norm(z) / start)
        assert (abs(summary(np.linalg.eigvals(block), rate).factor) < 1) == (rate < limit)
    assert sizes[0] < 0.99 < 1.01 < sizes[1]


def test_no_step_is_stable_where_a_mode_grows_by_itself():
    assert critical_steps(turning(0.1, 3.0)) == 0 and critical_steps(np.diag([-1.0, 0.0])) == 0
    both = np.stack([turning(-1.0, 1.0), turning(-0.5, 8.0)])
    assert np.allclose(critical_steps(both), [1.0, 1.0 / 64.25])


STABLE, PAIR, GROWING = [-2.0, -1.0 + 1.0j, -1.0 - 1.0j], [-0.5 + 8.0j, -0.5 - 8.0j], [0.1 + 3.0j, 0.1 - 3.0j]


@pytest.mark.parametrize(
    "modes,rate,wanted",
    [
        (STABLE, 0.25, CONTRACTING),
        (STABLE + PAIR, 0.25, EULER),
        (STABLE + PAIR, 0.01, CONTRACTING),  # the cure that the word promises
        (STABLE + GROWING, 0.25, HOPF),
        (STABLE + GROWING, 1e-6, HOPF),  # which nothing cures
        (STABLE + [0.0], 0.25, STEADY),
        (STABLE + [0.2], 0.01, STEADY),
        (STABLE + [-9.0], 0.25, FLIP),
        (STABLE + [-9.0], 0.2, CONTRACTING),
    ],
)
def test_what_a_spectrum_is_called(modes, rate, wanted):
    assert outcome(np.array(modes, complex), rate) == wanted and wanted in MEANING


def test_spectra_of_what_is_no_rest_are_no_evidence_and_arriving_matters():
    for modes in (STABLE, PAIR, GROWING):
        assert outcome(np.array(modes, complex), 0.25, at_root=False) == NO_EVIDENCE
    assert outcome(np.array([], complex), 0.25) == NO_EVIDENCE
    assert outcome(np.array(STABLE), 0.25, settled=False) == ATTRACTOR
    assert outcome(np.array(PAIR), 0.25, settled=False) == EULER
    slowest = np.array([-2.0, -0.02])  # 0.995 a step
    assert outcome(slowest, 0.25, settled=False, steps=1000) == SLOW and outcome(slowest, 0.25, settled=False, steps=9000) == ATTRACTOR


def test_what_survives_without_attention_is_the_feed_forwards():
    assert story([CONTRACTING, CONTRACTING, EULER]) == EULER
    assert story([EULER, CONTRACTING, EULER]) == FFN
    assert story([HOPF, EULER]) == EULER and story([EULER, CONTRACTING]) == CONTRACTING
    assert story([CONTRACTING, CONTRACTING]) == CONTRACTING and story([NO_EVIDENCE, NO_EVIDENCE]) == NO_EVIDENCE


def test_asymmetry_is_that_of_the_matrix():
    matrix = np.random.default_rng(1).normal(size=(40, 40))
    matrix = matrix + 2.0 * matrix.T  # more symmetric than not
    exact = np.linalg.norm(matrix - matrix.T) / np.linalg.norm(matrix + matrix.T)
    assert block_asymmetry(matrix[None])[0] == pytest.approx(exact, rel=1e-12)
    assert asymmetry(lambda v: matrix @ v, lambda v: matrix.T @ v, (40,), draws=400) == pytest.approx(exact, rel=0.05)
    even = matrix + matrix.T
    assert asymmetry(lambda v: even @ v, lambda v: even.T @ v, (40,)) < 1e-14
    assert block_asymmetry(turning(0.0, 2.0)[None])[0] > 1e100


def test_modes_are_matched_as_near_as_can_be_and_pairs_named_by_their_upper_one():
    values = np.array([1.0, 2.0 + 1.0j, 2.0 - 1.0j, -3.0])
    assert matched(values, values[[3, 1, 0, 2]]) == 0 and matched(values, values + 0.25) == 0.25
    found = summary(np.array([-3.0, -1.0 - 2.0j, -1.0 + 2.0j]), 0.5)
    assert found.rightmost == -1.0 + 2.0j and found.factor == 0.5 + 1.0j
