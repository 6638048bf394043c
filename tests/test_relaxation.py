"""Solvers: what each of them can and cannot solve, in cases whose answers are known, and that none of what is deployed looks ahead."""

import numpy as np
import pytest
import torch
from cell_fixtures import OPS, cell_config, operator

from trit.layers.anderson import anderson
from trit.layers.equilibrium import force as cell_force
from trit.layers.newton import critical_steps, newton, own_blocks
from trit.layers.relaxation import adapting, norms, residual, stepping, text_residual

SPAN, START = (0.005, 0.1), 0.05


def rotation(a, b):
    """The matrix whose eigenvalues are a + b i and a - b i."""
    return torch.tensor([[a, -b], [b, a]], dtype=torch.float64)


def size(pull, z):
    """|F|, where the rest is the origin and |F| / |z| would never fall."""
    return norms(OPS, pull)


def linear(matrix):
    """(force of a linear system, first state, list of the lengths of all steps that are taken)."""
    noted, before = [], []

    def force(z):
        if before:
            at, pull = before[-1]
            noted.append(float(((z - at) / pull)[0, 0, 0]))
        before.append((z, z @ matrix.T))
        return before[-1][1]

    return force, torch.tensor([[[0.8, 0.6]]], dtype=torch.float64), noted


@pytest.mark.parametrize("factor", [1.0, 1e-3, 1e3])
def test_a_residual_is_a_share_of_the_state_at_each_position(factor):
    z, pull = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]) * factor, torch.tensor([[[0.6, -0.8], [0.0, 4.0]]]) * factor
    assert np.allclose(residual(OPS, pull, z).numpy(), [[0.2, 2.0]])
    assert np.allclose(text_residual(OPS, pull, z).numpy(), (17 / 29) ** 0.5)


@pytest.mark.parametrize("a,b", [(-2.0, 0.0), (-0.3, 3.5), (-0.5, 8.0), (-0.1, 10.0)])
def test_steps_of_one_length_are_stable_up_to_the_critical_one(a, b):
    critical = -2 * a / (a * a + b * b)
    assert critical_steps(rotation(a, b).numpy()[None])[0] == pytest.approx(critical)
    for share, settles in ((0.8, True), (1.2, False)):
        force, start, _ = linear(rotation(a, b))
        found = stepping(OPS, force, start, share * critical, 2000, 1e-9, measure=size)
        assert (float(found.residuals) < 0.95 * float(size(start @ rotation(a, b).T, start))) == settles
    assert critical_steps(rotation(0.1, 1.0).numpy()[None])[0] == 0.0


def adaptive(matrix, budget=4000, tolerance=0.0, span=SPAN):
    force, start, rates = linear(matrix)
    return adapting(OPS, force, start, START, span, budget, tolerance, precision=2e-16, measure=size), rates


def test_an_adaptive_step_grows_where_nothing_overshoots():
    found, rates = adaptive(rotation(-2.0, 0.0), 131, 1e-12)
    assert found.status == ["converged"] and found.evaluations - 1 <= 130 and rates[-1] == pytest.approx(0.1)


def test_slowness_is_no_instability():
    """A slow mode beside a fast one: the step ends at its longest. Negative control: a rule that wants the residual to fall by two percent a
    step takes the slow mode for an overshoot and ends at the shortest."""
    matrix = torch.diag(torch.tensor([-0.2, -2.0], dtype=torch.float64))
    _, rates = adaptive(matrix, 600)
    assert rates[-1] == pytest.approx(0.1)
    z, rate, before = torch.tensor([1.0, 0.7], dtype=torch.float64), START, np.inf
    for _ in range(600):
        pull = matrix @ z
        rate = min(rate * 1.05, SPAN[1]) if float(pull.norm()) <= 0.98 * before else max(rate * 0.7, SPAN[0])
        before, z = float(pull.norm()), z + rate * pull
    assert rate == SPAN[0]


def test_an_adaptive_step_finds_what_a_fixed_one_misses():
    critical = 2 * 0.3 / (0.3**2 + 3.5**2)
    force, start, _ = linear(rotation(-0.3, 3.5))
    assert stepping(OPS, force, start, 0.1, 4000, 1e-4, measure=size).status != ["converged"]
    found, rates = adaptive(rotation(-0.3, 3.5))
    assert found.residuals.max() <= 1e-4 and 0.3 * critical <= np.mean(rates) <= 0.7 * critical


def test_steps_that_overshoot_at_their_shortest_are_reported():
    found, rates = adaptive(rotation(-0.1, 10.0))
    assert found.status == ["floor"] and min(rates) == pytest.approx(SPAN[0])
    assert adaptive(rotation(-0.5, 8.0))[0].status != ["floor"]


def test_a_cycle_is_called_one():
    """A limit cycle of radius 1: the residual neither falls nor grows."""

    def force(z):
        x, y = z[..., :1], z[..., 1:]
        pull = 1.0 - x * x - y * y
        return torch.cat([pull * x - 3 * y, pull * y + 3 * x * (1 + 0.3 * x)], -1)

    found = stepping(OPS, force, torch.tensor([[[0.5, 0.0]]], dtype=torch.float64), 0.05, 900, 1e-6)
    assert found.status == ["cycling"] and found.evaluations == 900
    away = stepping(OPS, lambda z: 2 * z + 1, torch.ones(1, 1, 2, dtype=torch.float64), 0.5, 100, 1e-6, measure=size)
    assert away.status == ["diverged"]


CELL = operator(cell_config())
ROOT = newton(OPS, CELL.own, CELL.x, 1e-12)


def test_newton_finds_the_rest_of_every_position():
    assert ROOT.status == ["converged"] * 3 and float(residual(OPS, CELL.force(ROOT.state), ROOT.state).max()) <= 1e-12


SOLVERS = {
    "euler": lambda force, z: stepping(OPS, force, z, 0.1, 4000, 1e-10),
    "freeze": lambda force, z: stepping(OPS, force, z, 0.1, 4000, 1e-10, freezes=True),
    "adaptive": lambda force, z: adapting(OPS, force, z, 0.05, (0.003, 0.5), 4000, 1e-10, precision=2e-16),
    "adaptive_by_position": lambda force, z: adapting(OPS, force, z, 0.05, (0.003, 0.5), 4000, 1e-10, True, 2e-16),
    "anderson": lambda force, z: anderson(OPS, force, z, 400, 1e-10, ridge=1e-10),
    "anderson_prefix": lambda force, z: anderson(OPS, force, z, 400, 1e-10, True, ridge=1e-10),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_all_solvers_find_the_same_rest(name):
    found = SOLVERS[name](CELL.force, CELL.x)
    assert found.status == ["converged"] * 3 and float(found.residuals.max()) <= 1e-10
    assert float((found.state - ROOT.state).abs().max()) < 1e-8


def test_mixing_takes_half_of_the_evaluations():
    """AC1, at a start: tests/models/test_equilibrium.py asks it of a trained operator."""
    plain = stepping(OPS, CELL.force, CELL.x, 0.1, 4000, 1e-6).evaluations
    for prefix in (False, True):
        assert anderson(OPS, CELL.force, CELL.x, 400, 1e-6, prefix, ridge=1e-10).evaluations <= plain / 2


def test_a_text_that_blew_up_begins_anew_and_moves_no_other():
    """A force with a hill of residuals on the way, for one text of two; the other's path is the same to the bit without it."""

    def force(z):
        return -z * (1 + 40 * torch.exp(-20 * (z - 0.6) ** 2))

    hilly = torch.full((2, 1, 2), 1.0, dtype=torch.float64)
    hilly[1] = -0.3
    both = anderson(OPS, force, hilly, 400, 1e-8, ridge=1e-10, measure=size)
    alone = anderson(OPS, force, hilly[1:], 400, 1e-8, ridge=1e-10, measure=size)
    assert both.status == ["converged"] * 2 and torch.equal(both.state[1:], alone.state)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("gap", [0.3, 0.1, 0.05, 0.02, 0.01])
def test_what_plain_steps_reach_is_never_far_off(gap, prefix):
    """A force that nearly vanishes on the way to its rest at -1: there mixing finds a least residual that is no rest, which plain steps pass."""

    def force(z):
        return -((z - 0.5) ** 2 + gap) * (z + 1)

    start = torch.full((1, 1, 1), 1.5, dtype=torch.float64)
    plain = stepping(OPS, force, start, 0.25, 2000, 1e-8, measure=size)
    mixed = anderson(OPS, force, start, 2000, 1e-8, prefix, ridge=1e-10, measure=size)
    assert mixed.status == ["converged"] and float(mixed.state) == pytest.approx(-1.0)
    assert mixed.evaluations <= 2 * plain.evaluations


def test_blocks_are_those_of_the_whole_jacobian():
    """Upper blocks over positions are exactly 0, those on the diagonal are `own_blocks`."""
    z = ROOT.state[:1]
    one = operator(CELL.cfg, rows=1)
    whole = torch.func.jacrev(lambda z: one.force(z))(z)[0, :, :, 0]  # (T, D, T, D)
    blocks = own_blocks(OPS, one.own, z)[0]
    for t in range(z.shape[1]):
        assert float((whole[t, :, t] - blocks[t]).abs().max()) < 1e-12
        assert not whole[t, :, t + 1 :].any()


def test_several_cells_have_own_blocks_too():
    two = operator(cell_config(num_layers=2), rows=1)
    whole = torch.func.jacrev(lambda z: two.force(z))(two.x)[0, :, :, 0]
    blocks = own_blocks(OPS, two.own, two.x)[0]
    assert float((two.own(two.x, two.x) - two.force(two.x)).abs().max()) < 1e-12
    assert max(float((whole[t, :, t] - blocks[t]).abs().max()) for t in range(two.x.shape[1])) < 1e-12


def reach(solver):
    """(change of positions before the cut, change of the other text) when positions from `cut` on of one text are replaced."""
    cut, found = CELL.x.shape[1] // 2, []
    for changed in (False, True):
        x = CELL.x.clone()
        if changed:
            x[0, cut:] = 0.05 * torch.roll(x[0, cut:], 1, 0)
        found.append(solver(lambda z, x=x: cell_force(OPS, CELL.p, CELL.cfg, z, x, CELL.tables), x).state)
    return float((found[0][0, :cut] - found[1][0, :cut]).abs().max()), float((found[0][1:] - found[1][1:]).abs().max())


CAUSAL = {
    "fixed_steps": lambda force, z: stepping(OPS, force, z, 0.1, 60, 0.0),
    "freeze": lambda force, z: stepping(OPS, force, z, 0.1, 60, 1e-2, freezes=True),
    "adaptive_by_position": lambda force, z: adapting(OPS, force, z, 0.05, (0.003, 0.5), 60, 0.0, True),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_what_looks_at_earlier_positions_only_is_causal_to_the_bit(name):
    assert reach(CAUSAL[name]) == (0.0, 0.0)


def test_mixing_by_prefixes_is_causal_but_for_rounding():
    ahead, across = reach(lambda force, z: anderson(OPS, force, z, 40, 0.0, True, ridge=1e-8))
    assert ahead <= 1e-12 and across == 0.0


LEAKING = {
    "global_stop": lambda force, z: stepping(OPS, force, z, 0.1, 400, 1e-3),
    "mixing_by_texts": lambda force, z: anderson(OPS, force, z, 25, 0.0, ridge=1e-8),
    "adaptive_by_texts": lambda force, z: adapting(OPS, force, z, 0.05, (0.003, 1.2), 60, 0.0),
}


@pytest.mark.parametrize("name", LEAKING)
def test_what_looks_at_a_whole_text_leaks(name):
    assert reach(LEAKING[name])[0] > 1e-6
