"""Probes of gradients at a rest: the contrast of nudged relaxations against the adjoint and against the way back through the deployed steps,
by group of tensors, and how the contrast depends on its strength and its length.

A cosine is worth what the states it was taken at are worth, so none stands without three residuals: g of the deployed state, g of the rest,
and rho = |J^T a + dL/dz| / |dL/dz| of the adjoint. Texts without a rest are left out and counted. Shapes: B texts, T tokens, D width.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np

from trit.console import counted
from trit.dynamics.probe_finding import Chart, Finding, Series, numbers_of
from trit.layers.equilibrium import capped, drive, force
from trit.layers.implicit import nudged_adjoint, rho_of, token_losses, transposed, unrolled
from trit.models import load_arch
from trit.ops import torch_ops

STEPS = (5, 10, 20, 40, 80, 160)
FEW = 10  # nudged steps at which a sweep of strengths shows nothing but their shortness
STRENGTHS = (0.002, 0.02, 0.2, 2.0)
RANGE, MANY = (0.02, 0.2, 0.8), 80  # strengths about the rest and tracked, and the nudged steps of each
GOOD = 0.99  # cosine up to which a strength counts as within range
RHO = 0.05  # above it a cosine says how far the nudged phase went, not how good the estimator is
EXACT = 1e-10


class Field(NamedTuple):
    """An adjoint-like field a (B, T, D) with its rho, that of the worst text, and what it cost in transposed products or forces."""

    a: object
    rho: float
    evaluations: int


class Bench:
    """What all gradients of a probe share: an operator of the texts that have a rest, that rest, and the loss's gradient there."""

    def __init__(self, operator):
        z, at_rest = operator.rest()
        rows = np.flatnonzero(at_rest.all(1))
        self.left_out = operator.shape[0] - len(rows)
        self.operator = None
        if not len(rows):
            return
        self.operator = operator if not self.left_out else type(operator)(operator.cfg, operator.arrays, operator.windows[rows])
        self.rest, self.names = z[rows.tolist()], sorted(operator.weights)
        self.transpose = transposed(operator.ops, operator.capped, operator.cfg, self.rest, self.operator.tables)
        self.ell = self.loss_gradient(self.rest)

    def loss_gradient(self, z):
        """dL/dz of the loss summed over tokens."""
        o = self.operator
        value, transpose = o.ops.pullback(lambda z: token_losses(o.ops, o.weights, o.cfg, z, o.targets), z)
        return transpose(value * 0.0 + 1.0)[0]

    def rho(self, a):
        """Residual of the adjoint's equation, of the worst text."""
        return float(self.operator.ops.max(rho_of(self.operator.ops, self.transpose, a, self.ell)))

    def adjoint(self):
        """`Field` of the adjoint to EXACT, by GMRES on transposed products."""
        from scipy.sparse.linalg import LinearOperator, gmres

        o, used = self.operator, [0]
        product = o.back(self.rest)

        def counting(v):
            used[0] += 1
            return product(v)

        right = -o.ops.to_numpy(self.ell).reshape(-1)
        found, _ = gmres(
            LinearOperator((right.size, right.size), matvec=counting, dtype=np.float64), right, rtol=EXACT, restart=60, maxiter=20
        )
        a = o.ops.reshape(torch_ops.from_numpy(found), o.shape)
        return Field(a, self.rho(a), used[0])

    def contrast(self, strength, steps, tracked=False, tolerance=0.0):
        """`Field` of two nudged relaxations of at most `steps` steps."""
        o = self.operator
        rule = "asym_ep_tracked" if tracked else "asym_ep"
        arch = dataclasses.replace(o.cfg.arch, gradient=rule, nudge=strength, nudge_steps=steps, adjoint_tolerance=tolerance)
        cfg = dataclasses.replace(o.cfg, arch=arch)
        a, _, used = nudged_adjoint(o.ops, o.capped, cfg, o.drive, o.tables, self.rest, self.ell, self.loss_gradient)
        return Field(a, self.rho(a), used)

    def gradients(self, field):
        """{name: gradient of the summed loss, numpy} that an adjoint field gives at the rest."""
        o = self.operator
        values = [o.weights[name] for name in self.names]

        def outcome(*given):
            q = {**o.weights, **dict(zip(self.names, given))}
            p = capped(o.ops, q, o.cfg)
            pull = force(o.ops, p, o.cfg, self.rest, drive(o.ops, p, o.cfg, o.tokens), o.tables)
            return o.ops.sum(token_losses(o.ops, q, o.cfg, self.rest, o.targets)) + o.ops.sum(field.a * pull)

        value, transpose = o.ops.pullback(outcome, *values)
        return {name: o.ops.to_numpy(x) for name, x in zip(self.names, transpose(value * 0.0 + 1.0))}

    def through_steps(self):
        """{name: gradient, numpy} of the loss of the deployed state, back through its steps."""
        o = self.operator
        cfg = dataclasses.replace(o.cfg, arch=dataclasses.replace(o.cfg.arch, gradient="bptt"))
        found = unrolled(o.ops, o.weights, cfg, o.tokens, o.targets, self.names)
        return {name: o.ops.to_numpy(found.gradients[name]) for name in self.names}


def cosine(left, right, names):
    """Cosine of two {name: gradient} over some of their tensors; NaN where one of them is zero."""
    dot = sum(float((left[name] * right[name]).sum()) for name in names)
    sizes = [math.sqrt(sum(float((side[name] ** 2).sum()) for name in names)) for side in (left, right)]
    return dot / (sizes[0] * sizes[1]) if min(sizes) > 0 else float("nan")


def digits(value):
    """A cosine as a table has it: near 1 four digits tell nothing."""
    return "-" if math.isnan(value) else f"{value:.6f}"


def doubt(rho, residual, tolerance=1e-3):
    """Why a cosine taken with this rho and this largest g of the state it is about says little; "" where it counts."""
    if rho is None or rho != rho:
        return "quoted without rho: no evidence"
    if rho > RHO:
        return f"rho {rho:.1e} is above {RHO:g}: the nudged phase did not arrive"
    return f"g {residual:.1e} of the deployed state is above {tolerance:g}: it is not at rest" if not residual <= tolerance else ""


def nothing(name, title):
    """The finding of a probe that no text is fit for."""
    return Finding(name, title, ["no text has a rest at all of its tokens: gradients there would be no evidence"], [], [], [], {"texts": 0})


def grouped(operator):
    """{group: names of tensors}, those that a run reports, the rest and all."""
    groups = load_arch(operator.cfg.model.name).probed_groups(operator.cfg)
    inside = {name for members in groups.values() for name in members}
    return groups | {"embedding": sorted(set(operator.weights) - inside), "total": sorted(operator.weights)}


def cosines_probe(operator, bench):
    """`Finding` of the three gradients against each other, by group of tensors."""
    if bench.operator is None:
        return nothing("cosines", "Gradients")
    arch = operator.cfg.arch
    adjoint = bench.adjoint()
    nudged = bench.contrast(arch.nudge, arch.nudge_steps, arch.gradient == "asym_ep_tracked", arch.adjoint_tolerance)
    by_adjoint, by_contrast, by_steps = bench.gradients(adjoint), bench.gradients(nudged), bench.through_steps()
    deployed = float(bench.operator.residuals(bench.operator.deployed()).max())
    refined = float(bench.operator.residuals(bench.rest).max())
    heads = ["group", "contrast, adjoint", "adjoint, steps", "contrast, steps"]
    rows = [
        [group, cosine(by_contrast, by_adjoint, names), cosine(by_adjoint, by_steps, names), cosine(by_contrast, by_steps, names)]
        for group, names in grouped(operator).items()
    ]
    words = [
        f"residuals of these cosines: g {deployed:.1e} deployed, g {refined:.1e} at the rest (worst tokens), rho {nudged.rho:.1e} of the contrast, {adjoint.rho:.1e} of the adjoint",
        f"the contrast took {nudged.evaluations} evaluations at nudge {arch.nudge:g}, the adjoint {adjoint.evaluations} transposed products; {bench.left_out} texts without a rest are left out",
    ]
    doubts = {
        "contrast, adjoint": doubt(nudged.rho, refined),
        "adjoint, steps": doubt(adjoint.rho, deployed),
        "contrast, steps": doubt(nudged.rho, deployed),
    }
    words += [f"warning: {pair}: {reason}" for pair, reason in doubts.items() if reason]
    numbers = {
        "groups": numbers_of(heads, rows),
        "g_deployed": deployed,
        "g_refined": refined,
        "rho_contrast": nudged.rho,
        "rho_adjoint": adjoint.rho,
        "texts_left_out": bench.left_out,
        "doubts": doubts,
    }
    return Finding("cosines", "Gradients", words, heads, [[group, *map(digits, values)] for group, *values in rows], [], numbers)


def range_of(rows):
    """The largest of the strengths, each before it being good as well, at which a contrast has a cosine of GOOD; 0 where none has."""
    return max((row[1] for row in itertools.takewhile(lambda row: row[4] >= GOOD, rows)), default=0.0)


def misses(rows, column):
    """Points of 1 - cosine over a column of the sweeps' rows, above zero for a scale of logarithms."""
    return [(row[column], max(1.0 - row[4], 1e-16)) for row in rows]


def nudge_probe(operator, bench, strengths=STRENGTHS, steps=STEPS, wide=RANGE, many=MANY):
    """`Finding` of the contrast against the adjoint: over its strength at FEW steps, over its steps at the run's own strength, and over its
    strength at `many` steps, about the rest and tracked."""
    if bench.operator is None:
        return nothing("nudge", "Nudges")
    adjoint, arch = bench.adjoint(), operator.cfg.arch
    wanted, names = bench.gradients(adjoint), sorted(operator.weights)
    tries = [("strength", beta, FEW) for beta in strengths] + [("steps", arch.nudge, count) for count in steps]
    tries += [(sweep, beta, many) for sweep in ("about the rest", "tracked") for beta in wide]
    heads, rows = ["sweep of", "nudge", "steps", "rho", "cosine with the adjoint", "remark"], []
    for sweep, beta, count in counted(tries, "nudges", len(tries), "contrasts"):
        field = bench.contrast(beta, count, sweep == "tracked")
        rows.append([sweep, beta, count, field.rho, cosine(bench.gradients(field), wanted, names), doubt(field.rho, 0.0)])
    strong = [row for row in rows if row[0] == "strength"]
    spread = max(row[4] for row in strong) - min(row[4] for row in strong)
    words = [f"at {FEW} steps the cosine moves by {spread:.1e} over all strengths"]
    if min(row[3] for row in strong) > RHO:
        words[0] += "; where it is flat, that says nothing of the strength, for rho is large at all of them"
    words.append(f"rho of the adjoint that they are compared with is {adjoint.rho:.1e}; {bench.left_out} texts without a rest are left out")
    about, tracked = ([row for row in rows if row[0] == sweep] for sweep in ("about the rest", "tracked"))
    words.append(
        f"after {many} steps the cosine is {GOOD} or more up to a nudge of {range_of(about):g} about the rest, {range_of(tracked):g} tracked"
    )
    long = [row for row in rows if row[0] == "steps"]
    lines = [
        Series("1 - cosine", misses(long, 2), 0),
        Series("rho", [(row[2], row[3]) for row in long], 1),
    ]
    charts = [
        Chart(
            "Length of the nudged phase",
            f"nudge {arch.nudge:g}: the contrast is as good as its rho",
            "nudged steps",
            "1 - cosine, rho",
            lines,
            log_up=True,
        )
    ]
    lines = [
        Series("1 - cosine", misses(strong, 1), 0),
        Series("rho", [(row[1], row[3]) for row in strong], 1),
    ]
    charts.append(
        Chart("Strength of the nudge", f"after {FEW} nudged steps", "nudge", "1 - cosine, rho", lines, log_across=True, log_up=True)
    )
    lines = [Series("about the rest", misses(about, 1), 0), Series("tracked", misses(tracked, 1), 1)]
    charts.append(Chart("Range of the nudge", f"after {many} nudged steps", "nudge", "1 - cosine", lines, log_across=True, log_up=True))
    table = [[*row[:4], digits(row[4]), row[5]] for row in rows]
    return Finding("nudge", "Nudges", words, heads, table, charts, {"sweeps": numbers_of(heads, rows), "rho_adjoint": adjoint.rho})
