"""Gradients of a loss at the rest of a relaxation, without a way back through it: adjoints, and contrasts of two nudged relaxations.

With F(z*, w) = 0 the gradient is the direct one plus that of <a, F(z*, w)> in w, where J^T a = -dL/dz (equilibrium.md A3). The loss is
summed over tokens until the very end, so that a nudge means the same for every shape of batch. Texts that did not come to rest are left
out and counted. All phases of a step see one and the same weights. Shapes: B batch, T time, D width.
"""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

from trit.layers.anderson import anderson
from trit.layers.embed import token_logits
from trit.layers.equilibrium import capped, cell, cell_tables, deployed, drive, force, own_force
from trit.layers.newton import newton
from trit.layers.noise import even_noise
from trit.layers.relaxation import adapting, residual, stepping, text_residual
from trit.setting import setting

ADAPTIVE_SPAN = (0.003, 0.5)  # step lengths of the adaptive solver
RHO_EVERY = 10  # nudged steps between two looks at how far the adjoint's equation is from holding
RHO_GATE = 4.0  # times arch.adjoint_tolerance: a text whose adjoint is worse is left out
FLOAT_RIDGE = 1e-6  # of mixing in 32 bits


@dataclass(frozen=True)
class ImplicitConfig:
    """How gradients are found."""

    gradient: str = setting(
        "adjoint",
        "back through the relaxation; the adjoint at its rest; a contrast of two nudged relaxations, about the rest or tracked about "
        "their mean; forward along single weights or random directions",
        choices=("bptt", "adjoint", "asym_ep", "asym_ep_tracked", "eligibility"),
    )
    free_solver: str = setting(
        "anderson", "what finds the rest in training", choices=("euler", "adaptive", "anderson", "freeze", "newton"), env="FREE_SOLVER"
    )
    free_budget: int = setting(200, "most evaluations of the force that it may take")
    free_tolerance: float = setting(1e-4, "residual |F(z)| / |z| at which a token is at rest")
    residual_gate: float = setting(1e-2, "a text with a token whose residual is larger gives no gradient of the loss")
    adjoint_tolerance: float = setting(0.02, "|J^T a + dL/dz| / |dL/dz| at which an adjoint is good enough")
    adjoint_budget: int = setting(80, "most transposed products for it")
    nudge: float = setting(0.02, "strength of the nudge, on the loss summed over tokens")
    nudge_steps: int = setting(320, "most steps of the nudged relaxations")
    fresh_nudge: bool = setting(False, "the nudge is the loss's gradient at the nudged states instead of that at the rest")
    directions: int = setting(0, "random directions of the rule eligibility; 0 goes along every weight, at most 500")


class Estimate(NamedTuple):
    """What a rule found: losses (B, T) in nats, {name: gradient of their sum over the texts that count}, mask (B,) of those, the state
    (B, T, D) with its force and residuals (B, T), rho (B,) of the adjoint (0 where there is none), evaluations of the force."""

    losses: object
    gradients: dict
    kept: object
    state: object
    pull: object
    residuals: object
    rho: object
    evaluations: int


def token_losses(ops, p, cfg, z, targets):
    """Cross-entropy (B, T) in nats of the state z."""
    return ops.cross_entropy(token_logits(ops, p, cfg, z), targets)


def free_phase(ops, p, cfg, x, tables):
    """`Solution` of the relaxation from the drive x, by the solver that training uses; `p` of `capped`."""
    budget, tolerance = cfg.arch.free_budget, cfg.arch.free_tolerance

    def pull(z):
        return force(ops, p, cfg, z, x, tables)

    if cfg.arch.free_solver == "euler" or cfg.arch.free_solver == "freeze":
        return stepping(ops, pull, x, cfg.arch.relax_rate, budget, tolerance, freezes=cfg.arch.free_solver == "freeze")
    if cfg.arch.free_solver == "adaptive":
        return adapting(ops, pull, x, 0.05, ADAPTIVE_SPAN, budget, tolerance)
    if cfg.arch.free_solver == "newton":
        return newton(ops, lambda own, past: own_force(ops, p, cfg, own, past, x, tables), x, cfg.arch.free_tolerance)
    return anderson(ops, pull, x, budget, tolerance, ridge=FLOAT_RIDGE)


def transposed(ops, p, cfg, z, tables):
    """Function to J^T a, J being the Jacobian of the force at z."""
    _, of_cell = ops.pullback(lambda z: cell(ops, p, cfg, z, tables), z)
    return lambda a: of_cell(a)[0] - (1.0 + cfg.arch.leak) * a


def rho_of(ops, transpose, a, ell):
    """(|J^T a + ell| / |ell|) by text (B,); 0 for a text without a loss."""
    return text_residual(ops, transpose(a) + ell, ell)


def solved_adjoint(ops, cfg, transpose, ell):
    """(a, rho (B,), transposed products) of J^T a = -ell, by mixing."""

    def rho(pull, a):
        return text_residual(ops, pull, ell)[:, None] + ops.zeros(a.shape[:2], a)

    found = anderson(
        ops,
        lambda a: transpose(a) + ell,
        ell * 0.5,
        cfg.arch.adjoint_budget,
        cfg.arch.adjoint_tolerance,
        ridge=FLOAT_RIDGE,
        measure=rho,
        warm=1,
    )
    return found.state, found.residuals[:, 0], found.evaluations


def nudged_adjoint(ops, p, cfg, x, tables, rest, ell, loss_gradient):
    """(a, rho (B,), evaluations) from two relaxations nudged up and down the loss, z' = F(z) -+ nudge ell - (J v - J^T v) with v = z - rest:
    the last term makes the difference of the two follow J^T, whose rest is the adjoint. Of each text the best look of all is kept.

    With "asym_ep_tracked" J is that at the mean of both, and v is measured from there: the mean then moves as it would without nudges.
    """
    batch, beta, tracked = rest.shape[0], cfg.arch.nudge, cfg.arch.gradient == "asym_ep_tracked"
    both = tables[0], ops.concat([tables[1]] * 2, 0) if tables[1].shape[0] > 1 else tables[1]
    sides = ops.concat([ell, -ell], 0)
    state, anchor, twice = ops.concat([rest, rest], 0), ops.concat([rest, rest], 0), ops.concat([x, x], 0)
    transpose = transposed(ops, p, cfg, rest, tables)

    def mixing(z):
        return cell(ops, p, cfg, z, both)

    if not tracked:
        _, of_anchor = ops.pullback(mixing, anchor)
    best, least, used = (state[batch:] - state[:batch]) / (2.0 * beta), None, 0
    for step in range(1, cfg.arch.nudge_steps + 1):
        if tracked:
            apart, mean = 0.5 * (state[:batch] - state[batch:]), 0.5 * (state[:batch] + state[batch:])
            _, ahead = ops.pushforward(lambda z: cell(ops, p, cfg, z, tables), [mean], [apart])
            skew = ahead - ops.pullback(lambda z: cell(ops, p, cfg, z, tables), mean)[1](apart)[0]
            skew = ops.concat([skew, -skew], 0)
        else:
            apart = state - anchor
            skew = ops.pushforward(mixing, [anchor], [apart])[1] - of_anchor(apart)[0]
        if cfg.arch.fresh_nudge:
            sides = ops.concat([loss_gradient(state[:batch]), -loss_gradient(state[batch:])], 0)
        state = state + cfg.arch.relax_rate * (force(ops, p, cfg, state, twice, both) - beta * sides - skew)
        used += 2
        if step % RHO_EVERY == 0 or step == cfg.arch.nudge_steps:
            a = (state[batch:] - state[:batch]) / (2.0 * beta)
            rho = rho_of(ops, transpose, a, ell)
            better = rho < least if least is not None else rho == rho
            best = ops.where(better[:, None, None], a, best)
            least = rho if least is None else ops.where(better, rho, least)
            if not ops.to_numpy(ops.max(least)) > cfg.arch.adjoint_tolerance:
                break
    return best, least, used


def at_rest(ops, q, cfg, tokens, targets, names):
    """`Estimate` of a rule that differentiates where the relaxation comes to rest."""
    p, tables = capped(ops, q, cfg), cell_tables(ops, cfg, tokens)
    x = drive(ops, p, cfg, tokens)
    free = free_phase(ops, p, cfg, x, tables)
    values, worst = [q[name] for name in names], ops.max(free.residuals, 1)
    kept = ops.cast(worst <= cfg.arch.residual_gate, "float32")
    # A state that left all bounds would make no number of every gradient, even with a share of 0.
    z = ops.where((worst < math.inf)[:, None, None], free.state, x)
    losses, of_loss = ops.pullback(lambda z, *given: token_losses(ops, {**q, **dict(zip(names, given))}, cfg, z, targets), z, *values)

    def loss_gradient(z):
        _, transpose = ops.pullback(lambda z: token_losses(ops, q, cfg, z, targets), z)
        return kept[:, None, None] * transpose(losses * 0.0 + 1.0)[0]

    def share(kept):
        return kept[:, None] + losses * 0.0

    ell, *direct = of_loss(share(kept))
    if cfg.arch.gradient == "adjoint":
        a, rho, used = solved_adjoint(ops, cfg, transposed(ops, p, cfg, z, tables), ell)
    else:
        a, rho, used = nudged_adjoint(ops, p, cfg, x, tables, z, ell, loss_gradient)
    good = kept * ops.cast(rho <= RHO_GATE * cfg.arch.adjoint_tolerance, "float32")
    if ops.to_numpy(ops.sum(kept - good)):
        direct = of_loss(share(good))[1:]
    kept = good

    def pull(*given):
        p = capped(ops, {**q, **dict(zip(names, given))}, cfg)
        return force(ops, p, cfg, z, drive(ops, p, cfg, tokens), tables)

    value, of_force = ops.pullback(pull, *values)
    # `where`, not a product: an adjoint that left all bounds may hold what is no number.
    through = of_force(ops.where(kept[:, None, None] > 0, a, ops.zeros((), a)))
    found = {name: left + right for name, left, right in zip(names, direct, through)}
    return Estimate(losses, found, kept, z, value, free.residuals, rho, free.evaluations + used)


def forward_gradients(ops, cfg, total, values):
    """[gradient] of total(*values), a scalar, with respect to each of `values`, by derivatives carried forward through all steps: along
    every weight, or along arch.directions random ones, whose mean is right and whose variance grows with the weights."""
    sizes = [math.prod(x.shape) for x in values]
    if cfg.arch.directions:
        found = [ops.zeros(x.shape, x) for x in values]
        for number in range(cfg.arch.directions):
            key = ops.cast(ops.zeros((1,), values[0]) + number, "int64")
            flat = even_noise(ops, (1, sum(sizes)), key, values[0])[0]
            along = [ops.reshape(flat[end - size : end], x.shape) for size, end, x in zip(sizes, itertools.accumulate(sizes), values)]
            slope = ops.pushforward(total, values, along)[1]
            found = [left + slope * right * (1.0 / cfg.arch.directions) for left, right in zip(found, along)]
        return found
    found = []
    for place, x in enumerate(values):
        slopes = []
        for index in range(sizes[place]):
            along = [ops.zeros(other.shape, other) for other in values]
            along[place] = ops.reshape(ops.cast(ops.arange(sizes[place], x) == index, "float32"), x.shape)
            slopes.append(ops.pushforward(total, values, along)[1])
        found.append(ops.reshape(ops.stack(slopes, 0), x.shape))
    return found


def unrolled(ops, q, cfg, tokens, targets, names):
    """`Estimate` of a rule that differentiates the deployed relaxation itself, all of its steps."""
    values = [q[name] for name in names]

    def outcome(*given):
        p = {**q, **dict(zip(names, given))}
        z = deployed(ops, p, cfg, tokens)
        return ops.concat([token_losses(ops, p, cfg, z, targets)[..., None], z], -1)

    if cfg.arch.gradient == "bptt":
        value, transpose = ops.pullback(outcome, *values)
    else:
        value = outcome(*values)
    losses, z = value[..., 0], value[..., 1:]
    p, tables = capped(ops, q, cfg), cell_tables(ops, cfg, tokens)
    pull = force(ops, p, cfg, z, drive(ops, p, cfg, tokens), tables)
    residuals = residual(ops, pull, z)
    if cfg.arch.gradient == "bptt":
        ones = ops.zeros((*losses.shape, 1), z) + 1.0
        found = transpose(ops.concat([ones, ops.zeros(z.shape, z)], -1))
    else:
        found = forward_gradients(ops, cfg, lambda *given: ops.sum(outcome(*given)[..., 0]), values)
    # The gradient is that of what is deployed, at rest or not: no text is left out.
    whole = ops.zeros((tokens.shape[0],), z)
    return Estimate(losses, dict(zip(names, found)), whole + 1.0, z, pull, residuals, whole, cfg.arch.relax_steps)
