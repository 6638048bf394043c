"""Gradient rules against one another and against known answers, and the ten faults of the published trainer, each with what it did."""

import numpy as np
import pytest
import torch
from cell_fixtures import OPS, cell_config, cosine, operator
from scipy.sparse.linalg import LinearOperator, gmres

from trit.layers.equilibrium import cell, drive, force, own_cell
from trit.layers.homeostat import jacobian_gradients, residual_gradients, whole_norm
from trit.layers.implicit import at_rest, free_phase, nudged_adjoint, rho_of, solved_adjoint, token_losses, transposed, unrolled
from trit.layers.newton import own_blocks
from trit.layers.noise import even_noise
from trit.layers.relaxation import residual
from trit.models import equilibrium
from trit.models.equilibrium import estimate_gradients
from trit.ops import torch_ops

GAIN = 1.25
EXACT = operator(cell_config(gradient="adjoint"), gain=GAIN)


def estimated(rule=at_rest, case=EXACT, **settings):
    """`Estimate` of the same operator under other settings."""
    cfg = cell_config(**settings)
    return rule(OPS, case.q, cfg, case.tokens, case.targets, case.names)


ADJOINT = estimated(gradient="adjoint")


def rest_and_loss(case=EXACT):
    """(rest, gradient of the summed loss there, function to it)."""
    z = free_phase(OPS, case.p, case.cfg, case.x, case.tables).state

    def gradient(z):
        value, transpose = OPS.pullback(lambda z: token_losses(OPS, case.q, case.cfg, z, case.targets), z)
        return transpose(torch.ones_like(value))[0]

    return z, gradient(z), gradient


REST, ELL, LOSS_GRADIENT = rest_and_loss()
TRANSPOSE = transposed(OPS, EXACT.p, EXACT.cfg, REST, EXACT.tables)


def test_the_adjoint_solves_its_equation():
    """AC2: by SciPy's GMRES on transposed products, and by the dense Jacobian of one text."""
    shape = REST.shape

    def product(v):
        return TRANSPOSE(torch.from_numpy(v).reshape(shape)).numpy().ravel()

    size = REST.numel()
    found, fault = gmres(LinearOperator((size, size), product, dtype=np.float64), -ELL.numpy().ravel(), rtol=1e-11, restart=100, maxiter=40)
    a = torch.from_numpy(found).reshape(shape)
    assert fault == 0 and float(rho_of(OPS, TRANSPOSE, a, ELL).max()) < 1e-10
    ours = estimated_adjoint()
    assert float((ours - a).abs().max()) < 1e-7 * float(a.abs().max())
    one = operator(EXACT.cfg, rows=1, gain=GAIN)
    whole = torch.func.jacrev(one.force)(REST[:1]).reshape(size // 3, size // 3)
    dense = torch.linalg.solve(whole.T, -ELL[0].ravel()).reshape(shape[1:])
    assert float((dense - a[0]).abs().max()) < 1e-8 * float(a.abs().max())


def estimated_adjoint():
    return solved_adjoint(OPS, EXACT.cfg, TRANSPOSE, ELL)[0]


def test_the_adjoints_gradient_is_that_of_a_long_way_back():
    """AC2: backpropagation through 600 steps, which come to rest."""
    long = estimated(unrolled, gradient="bptt", relax_steps=600)
    assert float(long.residuals.max()) < 1e-9
    assert cosine(ADJOINT.gradients, long.gradients) > 0.99999
    assert float(torch.tensor([(ADJOINT.gradients[k] - long.gradients[k]).abs().max() for k in EXACT.names]).max()) < 1e-6
    short = estimated(unrolled, gradient="bptt", relax_steps=4)
    assert cosine(ADJOINT.gradients, short.gradients) < cosine(ADJOINT.gradients, long.gradients)


@pytest.mark.parametrize("rule", ["asym_ep", "asym_ep_tracked"])
@pytest.mark.parametrize("tolerance,least", [(0.05, 0.99), (0.025, 0.999)])
def test_a_contrast_of_nudged_relaxations_gives_the_adjoints_gradient(rule, tolerance, least):
    """AC3."""
    found = estimated(gradient=rule, adjoint_tolerance=tolerance)
    assert float(found.residuals.max()) <= 1e-7 and 0 < float(found.rho.max()) <= tolerance
    assert cosine(found.gradients, ADJOINT.gradients) >= least
    fresh = estimated(gradient=rule, adjoint_tolerance=tolerance, fresh_nudge="true")
    assert cosine(fresh.gradients, ADJOINT.gradients) >= least


@pytest.mark.parametrize("rule", ["asym_ep", "asym_ep_tracked"])
def test_the_error_of_a_contrast_falls_with_the_square_of_the_nudge(rule):
    """What is even in the nudge cancels between the two relaxations."""
    angles = []
    for beta in (0.1, 0.05):
        cfg = cell_config(gradient=rule, nudge=beta, nudge_steps=70, adjoint_tolerance=1e-12)
        a, _, _ = nudged_adjoint(OPS, EXACT.p, cfg, EXACT.x, EXACT.tables, REST, ELL, None)
        angles.append(float((a / a.norm() - EXACT_ADJOINT / EXACT_ADJOINT.norm()).norm()))
    assert 3.0 < angles[0] / angles[1] < 5.0


def contrast(case, rest, ell, beta, steps, mend):
    """The nudged relaxations written out, with `mend` applied to (correction, force) -> what is subtracted."""
    _, transpose = OPS.pullback(case.cell, rest)
    ends = []
    for sign in (1.0, -1.0):
        z = rest
        for _ in range(steps):
            v = z - rest
            ahead = OPS.pushforward(case.cell, [rest], [v])[1]
            pull = case.force(z)
            z = z + case.cfg.arch.relax_rate * (pull - sign * beta * ell - mend(ahead - transpose(v)[0], pull))
        ends.append(z)
    return (ends[1] - ends[0]) / (2 * beta)


EXACT_ADJOINT = estimated_adjoint()


def test_the_correction_must_be_whole():
    """BUG2: clipped to the size of the force, or left out, what the contrast follows is no transpose. And the loop written out is the rule."""
    settings = {"relax_rate": 0.1, "nudge_steps": 10, "adjoint_tolerance": 1e-9}
    case = operator(cell_config(gradient="asym_ep", **settings), rows=2, gain=2.0)  # far from a gradient
    rest, ell, _ = rest_and_loss(case)
    exact = solved_adjoint(OPS, case.cfg, transposed(OPS, case.p, case.cfg, rest, case.tables), ell)[0]
    ours = nudged_adjoint(OPS, case.p, case.cfg, case.x, case.tables, rest, ell, None)[0]
    first = contrast(case, rest, ell, 0.02, 10, lambda skew, pull: skew)
    assert float((first - ours).abs().max()) < 1e-9 * float(ours.abs().max())

    def clipped(skew, pull):
        return skew * (pull.norm() / skew.norm().clamp_min(1e-30)).clamp_max(1.0)

    assert cosine(contrast(case, rest, ell, 0.02, 150, lambda skew, pull: skew), exact) > 0.9995
    assert cosine(contrast(case, rest, ell, 0.02, 150, lambda skew, pull: 0.0), exact) < 0.5
    assert cosine(contrast(case, rest, ell, 0.02, 150, clipped), exact) < 0.2


def with_settings(**settings):
    return cell_config(gradient="asym_ep", **settings)


def test_a_sweep_says_nothing_of_nudges_before_it_has_converged():
    """BUG1: with too few steps the cosine is the same for every nudge, and low; with more steps it rises to 1. rho shows which it is."""

    def run(steps, beta):
        a, rho, _ = nudged_adjoint(
            OPS, EXACT.p, with_settings(nudge=beta, nudge_steps=steps, adjoint_tolerance=1e-12), EXACT.x, EXACT.tables, REST, ELL, None
        )
        return cosine(a, EXACT_ADJOINT), float(rho.max())

    early = [run(4, beta) for beta in (0.002, 0.02, 0.2)]
    assert max(c for c, _ in early) - min(c for c, _ in early) < 2e-3 and min(rho for _, rho in early) > 0.05
    rising = [run(steps, 0.002) for steps in (2, 4, 8, 16, 32, 64)]
    assert all(low[0] < high[0] for low, high in zip(rising[:-1], rising[1:])) and rising[-1][0] >= 0.999
    assert all(low[1] > high[1] for low, high in zip(rising[:-1], rising[1:]))


def test_noise_is_one_realisation_for_all_of_a_step():
    """BUG3: J and its transpose belong to one and the same weights, noisy or not. Fresh noise for each would break that."""
    generator = torch.Generator().manual_seed(0)

    def noisy():
        return {name: x * (1 + 0.05 * torch.randn(x.shape, generator=generator, dtype=x.dtype)) for name, x in EXACT.p.items()}

    u, v = (torch.randn(REST.shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def sides(ahead, back):
        forward = OPS.pushforward(lambda z: cell(OPS, ahead, EXACT.cfg, z, EXACT.tables), [REST], [v])[1]
        backward = OPS.pullback(lambda z: cell(OPS, back, EXACT.cfg, z, EXACT.tables), REST)[1](u)[0]
        return abs(float((u * forward).sum() - (backward * v).sum())) / float(u.norm() * forward.norm())

    one = noisy()
    assert sides(one, one) < 1e-12 < 1e-4 < sides(noisy(), noisy())
    step = 1e-6
    difference = cell(OPS, one, EXACT.cfg, REST + step * v, EXACT.tables) - cell(OPS, one, EXACT.cfg, REST - step * v, EXACT.tables)
    forward = OPS.pushforward(lambda z: cell(OPS, one, EXACT.cfg, z, EXACT.tables), [REST], [v])[1]
    assert float((difference / (2 * step) - forward).abs().max()) < 1e-6


def test_two_objectives_have_two_gradients():
    """BUG4 and the scalar case of A3.8: F = -k (z - 1) from 0, loss z. At rest the loss does not depend on k; after T steps it does."""
    for k, wanted in ((0.1, 3.3553), (1.0, 2.2815e-6)):
        weight = torch.tensor(k, dtype=torch.float64, requires_grad=True)
        z = torch.zeros((), dtype=torch.float64)
        for _ in range(150):
            z = z - 0.1 * weight * (z - 1.0)
        (found,) = torch.autograd.grad(z, weight)
        assert float(found) == pytest.approx(wanted, rel=1e-4)
        _, of_force = OPS.pullback(lambda k: -k * (torch.ones((), dtype=torch.float64) - 1.0), weight.detach())
        assert float(of_force(torch.ones((), dtype=torch.float64) / k)[0]) == 0.0


def test_a_penalty_is_scaled_by_the_losses_gradient_alone():
    """BUG5: the Jacobian's penalty does not change what the residual's adds."""
    case, parts = EXACT, []
    for weight in (0.0, 3.0):
        both = cell_config(residual_penalty=0.5, jacobian_penalty=weight, free_budget=20, residual_gate=10.0)
        q = {**case.q, **equilibrium.update_state(OPS, case.q, both)}
        _, with_both, _ = estimate_gradients(OPS, q, both, case.tokens, case.targets)
        less = cell_config(residual_penalty=0.0, jacobian_penalty=weight, free_budget=20, residual_gate=10.0)
        _, without, _ = estimate_gradients(OPS, q, less, case.tokens, case.targets)
        parts.append({name: with_both[name] - without[name] for name in case.names})
    assert max(float((parts[0][name] - parts[1][name]).abs().max()) for name in case.names) < 1e-10
    task = estimated(free_budget=20, residual_gate=10.0)
    count = case.tokens.numel()
    assert float(whole_norm(OPS, list(parts[0].values()))) == pytest.approx(
        0.5 * float(whole_norm(OPS, list(task.gradients.values()))) / count
    )


def stretched(q, v, scope):
    """J^T v (B, T, D) of single tokens, or J v of whole texts, at the drive of EXACT."""
    if scope == "text":
        return OPS.pushforward(lambda z: cell(OPS, q, EXACT.cfg, z, EXACT.tables), [EXACT.x], [v])[1]
    state = EXACT.x.clone().requires_grad_()
    return torch.autograd.grad(own_cell(OPS, q, EXACT.cfg, state, EXACT.x, EXACT.tables), state, v)[0]


def directions(key, turns, scope, q=EXACT.q):
    """Directions of norm 1 at every token: noise by `key`, turned."""
    z = EXACT.x
    v = even_noise(OPS, (z.shape[0] * z.shape[1], z.shape[2]), key, z).reshape(z.shape).double()
    v = v / v.norm(dim=-1, keepdim=True)
    for _ in range(turns):
        v = stretched(q, v, scope)
        v = v / v.norm(dim=-1, keepdim=True)
    return v


@pytest.mark.parametrize("scope", ["token", "text"])
@pytest.mark.parametrize("turns, bound", [(0, 0.0), (0, 0.3), (3, 0.0), (3, 0.9)])
def test_penalties_have_the_gradients_of_what_they_penalise(turns, bound, scope):
    """Against differences along a random direction."""
    settings = {"jacobian_turns": turns, "jacobian_bound": bound, "jacobian_scope": scope, "jacobian_share": 1.0}
    cfg, generator = cell_config(gradient="adjoint", **settings), np.random.default_rng(0)
    z = EXACT.x
    along = {name: torch.from_numpy(generator.standard_normal(EXACT.q[name].shape)) for name in EXACT.names}
    key = torch.tensor([7])
    noise = directions(key, turns, scope)

    def shifted(step):
        return {name: x + step * along[name] for name, x in EXACT.q.items()}

    def gain(q):
        return float(((stretched(q, noise, scope).norm(dim=-1) - bound).clip(0) ** 2).mean())

    def rest(q):
        pull = force(OPS, q, cfg, z, drive(OPS, q, cfg, EXACT.tokens), EXACT.tables)
        return float(((pull * pull).sum((1, 2)) / (z * z).sum((1, 2))).mean())

    for function, gradients in (
        (gain, jacobian_gradients(OPS, EXACT.q, cfg, EXACT.tokens, z, EXACT.names, key)),
        (rest, residual_gradients(OPS, EXACT.q, cfg, EXACT.tokens, z, EXACT.names)),
    ):
        slope = (function(shifted(1e-5)) - function(shifted(-1e-5))) / 2e-5
        assert slope == pytest.approx(sum(float((g * along[name]).sum()) for name, g in zip(EXACT.names, gradients)), rel=1e-5)


@pytest.mark.parametrize("between_tokens", [False, True])
def test_the_penalty_presses_on_what_grows_alone(between_tokens):
    """Of single tokens it sees the largest mode, of texts also what is handed on; noise is stretched far less than either. What stays below
    the bound is left alone."""
    key, q = torch.tensor([3]), {name: x.clone() for name, x in EXACT.q.items()}
    one = q["cell0.expand"][0] / q["cell0.expand"][0].norm()
    if between_tokens:
        q["cell0.output"] = q["cell0.output"] + 4.0 * one[:, None] * (one @ torch.linalg.pinv(q["cell0.qkv"][-16:]))
    else:
        q["cell0.expand"][0], q["cell0.contract"][:, 0] = 2.0 * one, 2.0 * one
    own = own_blocks(OPS, lambda own, past: own_cell(OPS, q, EXACT.cfg, own, past, EXACT.tables), EXACT.x)
    modes = torch.linalg.eigvals(own).abs().amax(-1)
    for scope in ("token", "text"):
        turned, plain = (stretched(q, directions(key, turns, scope, q), scope).norm(dim=-1).mean() for turns in (3, 0))
        assert turned > (1.5 if scope == "text" or not between_tokens else 1.2) * plain, (scope, turned, plain)
        assert bool(turned > 1.2 * modes.mean()) == (between_tokens and scope == "text"), (scope, turned, modes.mean())
        for bound, presses in ((0.5 * float(turned), True), (1e3, False)):
            bounded = cell_config(gradient="adjoint", jacobian_bound=bound, jacobian_scope=scope)
            found = jacobian_gradients(OPS, q, bounded, EXACT.tokens, EXACT.x, EXACT.names, key)
            assert any(bool(x.any()) for x in found) == presses


LITTLE = operator(cell_config(), rows=2, length=5, gain=GAIN)
WANTED = estimated(case=LITTLE)


@pytest.mark.parametrize("rule", ["bptt", "adjoint", "asym_ep", "asym_ep_tracked"])
@pytest.mark.parametrize("solver", ["euler", "adaptive", "anderson", "freeze", "newton"])
def test_every_pair_of_rule_and_solver_gives_the_same_gradient(rule, solver):
    """BUG7: no rule is silently that of another force or solver."""
    settings = {"adjoint_tolerance": 1e-2, "relax_steps": 120, "free_budget": 3000, "free_tolerance": 1e-6, "residual_gate": 1e-4}
    cfg = cell_config(gradient=rule, free_solver=solver, **settings)
    loss, found, left = estimate_gradients(OPS, LITTLE.q, cfg, LITTLE.tokens, LITTLE.targets)
    assert cosine(found, WANTED.gradients) > 0.9995
    assert float(loss) == pytest.approx(float(WANTED.losses.mean()), abs=1e-4) and left["relaxed"].shape == (8,)


def test_unknown_rules_and_solvers_are_refused():
    for setting in ("gradient", "free_solver"):
        with pytest.raises(ValueError, match=setting):
            cell_config(**{setting: "holomorphic"})


FEW = {
    "vocab_size": 8,
    "embed_dim": 4,
    "model_dim": 4,
    "num_heads": 1,
    "num_kv_heads": 1,
    "mlp_mult": 1,
    "partial_rope_dims": 2,
    "relax_steps": 4,
}


def test_derivatives_carried_forward_are_those_carried_back():
    """AC6: along every weight, to 1e-8; along random directions on average."""
    case = operator(cell_config(**FEW), rows=1, length=4)
    back = estimated(unrolled, case, gradient="bptt", **FEW).gradients
    ahead = estimated(unrolled, case, gradient="eligibility", **FEW).gradients
    assert max(float((back[name] - ahead[name]).abs().max()) for name in case.names) < 1e-8
    drawn = estimated(unrolled, case, gradient="eligibility", directions=40, **FEW).gradients
    assert 0.3 < cosine(drawn, back) < 0.95
    with pytest.raises(ValueError, match="set arch.directions"):
        cell_config(gradient="eligibility")


def test_a_text_that_does_not_come_to_rest_is_left_out_and_counted():
    """A gate for each text: the gradient is that of the others, per token of theirs; with all of them out only the penalties are left."""
    case = EXACT
    settings = {"gradient": "adjoint", "free_budget": 60, "free_tolerance": 1e-12, "adjoint_tolerance": 1e-3}
    loose = cell_config(residual_gate=10.0, **settings)
    reached = at_rest(OPS, case.q, loose, case.tokens, case.targets, case.names).residuals.amax(1)
    assert len(set(reached.tolist())) == 3
    gate = float(reached.sort().values[:2].mean())
    keep = reached <= gate
    gated = cell_config(residual_gate=gate, **settings)
    loss, found, left = estimate_gradients(OPS, case.q, gated, case.tokens, case.targets)
    assert int(left["relaxed"][4]) == 2
    alone = at_rest(OPS, case.q, loose, case.tokens[keep], case.targets[keep], case.names)
    count = case.tokens.shape[1]
    assert max(float((found[name] - alone.gradients[name] / count).abs().max()) for name in case.names) < 1e-6
    shut = cell_config(residual_gate=1e-300, **settings)
    _, nothing, left = estimate_gradients(OPS, case.q, shut, case.tokens, case.targets)
    assert int(left["relaxed"][4]) == 3 and not any(bool(x.any()) for x in nothing.values())


def test_a_text_whose_state_is_no_number_spoils_no_other(monkeypatch):
    """The gradient is that of the other texts, as if it had merely not come to rest."""
    cfg, real = cell_config(gradient="adjoint", adjoint_tolerance=1e-6), free_phase(OPS, EXACT.p, EXACT.cfg, EXACT.x, EXACT.tables)
    wanted = at_rest(OPS, EXACT.q, cfg, EXACT.tokens[1:], EXACT.targets[1:], EXACT.names)
    for value in (float("nan"), float("inf")):
        state, residuals = real.state.clone(), real.residuals.clone()
        state[0, 3], residuals[0, 3:] = value, value
        monkeypatch.setattr("trit.layers.implicit.free_phase", lambda *_, s=state, r=residuals: real._replace(state=s, residuals=r))
        found = at_rest(OPS, EXACT.q, cfg, EXACT.tokens, EXACT.targets, EXACT.names)
        assert found.kept.tolist() == [0, 1, 1] and bool(torch.isfinite(found.losses).all())
        assert max(float((found.gradients[name] - wanted.gradients[name]).abs().max()) for name in EXACT.names) < 1e-6


def test_residuals_have_names_and_belong_to_the_state_they_name():
    """BUG9: the deployed state and the one that training solves for are reported apart; another budget of the solver moves the second alone."""
    ops, found = torch_ops, []
    p = {name: x.float() for name, x in EXACT.q.items()}
    for budget in (10, 200):
        cfg = cell_config(relax_steps=20, free_budget=budget, free_tolerance=1e-6)
        found.append(equilibrium.probe(ops, p, cfg, EXACT.tokens))
    for scope in ("", "_text", "_token"):
        assert found[0]["g_deployed" + scope] == found[1]["g_deployed" + scope]
        assert found[0]["g_free" + scope] > 10 * found[1]["g_free" + scope]
        assert found[0]["r_deployed" + scope] == pytest.approx(0.25 * found[0]["g_deployed" + scope])
    assert found[0]["g_deployed"] <= found[0]["g_deployed_text"] <= found[0]["g_deployed_token"] * 1.0001
    assert {"loss_gap", "critical_step", "free_evaluations", "free_status"} <= found[0].keys()
    z = free_phase(OPS, EXACT.p, EXACT.cfg, EXACT.x, EXACT.tables).state
    assert float(residual(OPS, EXACT.force(z), z).max()) < 1e-9
