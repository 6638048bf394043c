"""Nudges in the complex plane: the cell as an analytic function, and a contrast of N phases whose error falls with the N-th power of the nudge.

The house's own `cell` runs on a vocabulary without conjugates, so there is no second force that could drift from the first.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from cell_fixtures import OPS, cell_config, operator

from trit.layers.equilibrium import cell, hidden_scores
from trit.layers.implicit import free_phase, solved_adjoint, token_losses, transposed


def complex_softmax(x):
    """Shares, shifted by the largest real part of what is seen: hidden scores are what they are before the shift is chosen."""
    powers = torch.exp(x - x.real.amax(-1, keepdim=True))
    return powers / powers.sum(-1, keepdim=True)


COMPLEX = SimpleNamespace(**vars(OPS))
COMPLEX.rms_norm = lambda x: x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)
COMPLEX.linear = lambda x, weight: x @ weight.to(x.dtype).T
COMPLEX.rotary = lambda x, table: torch.complex(OPS.rotary(x.real, table), OPS.rotary(x.imag, table))
COMPLEX.sigmoid = lambda x: 1 / (1 + torch.exp(-x))
COMPLEX.softmax = complex_softmax

CASE = operator(cell_config(), gain=1.25)


def complex_cell(z):
    return cell(COMPLEX, CASE.p, CASE.cfg, z, CASE.tables)


def test_on_the_real_axis_it_is_the_cell():
    for z in (CASE.x, -3 * CASE.x):
        found = complex_cell(z.to(torch.complex128))
        assert float((found.real - CASE.cell(z)).abs().max()) < 1e-12 and float(found.imag.abs().max()) == 0.0


def test_it_is_analytic():
    """A step along i turns the derivative by i (Cauchy and Riemann)."""
    z, v, step = CASE.x.to(torch.complex128), torch.randn(CASE.x.shape, dtype=torch.float64), 1e-6
    along, across = (complex_cell(z + unit * step * v) - complex_cell(z - unit * step * v) for unit in (1.0, 1j))
    assert float((across - 1j * along).abs().max()) < 1e-8 * step + 1e-12
    assert float((along / (2 * step) - OPS.pushforward(CASE.cell, [CASE.x], [v])[1]).abs().max()) < 1e-6


def test_a_later_score_moves_no_share():
    """BUG6: whatever stands at a hidden place. Negative control: a shift chosen over the hidden scores too lets all shares vanish."""
    scores = torch.complex(torch.randn(3, 6, 6, dtype=torch.float64), torch.randn(3, 6, 6, dtype=torch.float64))
    seen = torch.ones(6, 6).tril().bool()

    def shares(scores):
        return COMPLEX.softmax(scores + hidden_scores(COMPLEX, scores, seen))

    wild = scores + 1e4 * (~seen)
    assert torch.equal(shares(wild), shares(scores)) and not shares(wild)[:, ~seen].any()
    assert float((shares(scores).sum(-1) - 1).abs().max()) < 1e-12
    early = torch.exp(wild - wild.real.amax(-1, keepdim=True)) * seen
    early = early / early.sum(-1, keepdim=True)
    assert not torch.isfinite(early.real).all()


def phases(rest, ell, count, radius, steps):
    """Contrast of `count` relaxations, nudged by the points of a circle; the correction acts on real and imaginary parts alike."""
    _, transpose = OPS.pullback(CASE.cell, rest)

    def skew(v):
        return OPS.pushforward(CASE.cell, [rest], [v])[1] - transpose(v)[0]

    total = 0.0
    for k in range(count):
        point = complex(math.cos(2 * math.pi * k / count), math.sin(2 * math.pi * k / count))
        z = rest.to(torch.complex128)
        for _ in range(steps):
            v = z - rest
            pull = CASE.x - (1 + CASE.cfg.arch.leak) * z + complex_cell(z)
            z = z + CASE.cfg.arch.relax_rate * (pull - radius * point * ell - torch.complex(skew(v.real), skew(v.imag)))
        total = total + z / point
    return -(total / (count * radius)).real


def test_more_phases_bear_stronger_nudges():
    rest = free_phase(OPS, CASE.p, CASE.cfg, CASE.x, CASE.tables).state
    value, transpose = OPS.pullback(lambda z: token_losses(OPS, CASE.q, CASE.cfg, z, CASE.targets), rest)
    ell = transpose(torch.ones_like(value))[0]
    exact = solved_adjoint(OPS, CASE.cfg, transposed(OPS, CASE.p, CASE.cfg, rest, CASE.tables), ell)[0]

    def error(count, radius):
        return float((phases(rest, ell, count, radius, 60) - exact).norm() / exact.norm())

    two, four = error(2, 0.06), error(4, 0.06)
    assert four < 0.2 * two < 0.02
    assert 3.0 < two / error(2, 0.03) < 5.0


@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "isolate_documents": "true"}])
def test_other_shapes_are_analytic_too(settings):
    case = operator(cell_config(**settings))
    found = cell(COMPLEX, case.p, case.cfg, case.x.to(torch.complex128), case.tables)
    assert float((found.real - case.cell(case.x)).abs().max()) < 1e-12
