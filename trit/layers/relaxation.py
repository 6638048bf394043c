"""Solvers of F(z) = 0 behind one interface: explicit steps, steps of adaptive length, a prefix that freezes, Anderson mixing, Newton.

A solver takes `force`, a function of states (B, T, D), a first state, the most evaluations it may spend and the residual at which a
position is at rest, and gives a `Solution`. Residuals are |F(z)| / |z| by position: independent of solver and step length. `measure`
replaces them where something else is solved, such as an adjoint. Nothing but training may use what these return: all but steps that freeze and
mixing by prefixes look at later positions, if only to decide when to stop. Shapes: B batch, T time, D width.
"""

import math
from typing import NamedTuple

import numpy as np

CONVERGED = "converged"
BUDGET = "budget"
DIVERGED = "diverged"
CYCLING = "cycling"
SHORTEST = "floor"
CYCLE_WINDOW = 200  # evaluations that are compared with as many before them


class Solution(NamedTuple):
    """A state (B, T, D), evaluations of the force that it took, residuals by position (B, T), and what became of each text: a list of B
    words, one of converged, budget, diverged, cycling and floor (steps as short as allowed still overshoot)."""

    state: object
    evaluations: int
    residuals: object
    status: list


def norms(ops, x):
    """Euclidean norms (B, T) over the last axis."""
    return ops.sqrt(ops.sum(x * x, -1) + 1e-30)


def text_norms(ops, x):
    """Euclidean norms (B,) of all numbers of each text."""
    return ops.sqrt(ops.sum(ops.sum(x * x, -1), -1) + 1e-30)


def residual(ops, pull, z):
    """|F(z)| / |z| by position (B, T), for F(z) = `pull`."""
    return norms(ops, pull) / norms(ops, z)


def text_residual(ops, pull, of):
    """|pull| / |of| by text (B,), for arrays (B, T, D)."""
    return text_norms(ops, pull) / ops.maximum(text_norms(ops, of), 1e-12)


def measured(ops, measure, pull, z):
    """Residuals (B, T) by `measure(pull, z)`, or those of `residual` where it is None."""
    return residual(ops, pull, z) if measure is None else measure(pull, z)


def outcomes(ops, residuals, tolerance, history):
    """[status] of texts with residuals (B, T), the largest of each text having been `history`, a list of numpy arrays (B,)."""
    worst = ops.to_numpy(ops.max(residuals, 1)).astype(np.float64)
    words = []
    for row, value in enumerate(worst):
        seen = np.array([values[row] for values in history])
        word = CONVERGED if value <= tolerance else BUDGET
        if word == BUDGET and (not math.isfinite(value) or value > 1e3 * max(seen[0] if len(seen) else value, 1.0)):
            word = DIVERGED
        elif word == BUDGET and len(seen) >= 2 * CYCLE_WINDOW:
            last, before = seen[-CYCLE_WINDOW:], seen[-2 * CYCLE_WINDOW : -CYCLE_WINDOW]
            if (np.diff(last) > 0).any() and last.min() > tolerance and last.mean() > 0.95 * before.mean():
                word = CYCLING
        words.append(word)
    return words


def stepping(ops, force, z, rate, budget, tolerance, measure=None, freezes=False):
    """Explicit steps of one length until all positions are at rest. With `freezes` a position stands still for good once it and all before it
    are: then no position looks at a later one, whatever ends the loop."""
    history, used = [], 0
    while True:
        pull = force(z)
        used, residuals = used + 1, measured(ops, measure, pull, z)
        history.append(ops.to_numpy(ops.max(residuals, 1)))
        # A number that is none compares as false: it ends the loop as well.
        if used >= budget or not history[-1].max() > tolerance:
            return Solution(z, used, residuals, outcomes(ops, residuals, tolerance, history))
        if freezes:
            pull = ops.cummax(ops.cast(residuals > tolerance, "float32"), 1)[..., None] * pull
        z = z + rate * pull


RESIDUAL_SMOOTHING = 0.8  # of the logarithm of a residual
NOISE_BAND = 50.0  # units in the last place that a ratio of residuals may be off 1 and mean nothing
STEP_GROWTH = 1.1  # of a step that did not overshoot
CEILING_HELD = 50  # steps
CEILING_GROWTH = 1.01  # a step after that
FLOOR_WINDOW = 400  # steps in which overshoots of the shortest step are counted
FLOOR_SHARE = 0.25


def adapting(ops, force, z, start, span, budget, tolerance, by_position=False, precision=6e-8, measure=None):
    """Explicit steps whose length each text (or each position) chooses by itself, between the two of `span`: longer while the residual
    falls, and after an overshoot half of what overshot, a ceiling that is held and then rises by a hundredth a step. Judging by the
    ratio of residuals alone, not by how fast they fall: that would take a short step's slowness for instability (equilibrium.md A2.2)."""
    key = (lambda r: r) if by_position else (lambda r: ops.max(r, 1, True))
    history, floors, used = [], [], 0
    rate = ceiling = held = before = None
    while True:
        pull = force(z)
        used, residuals = used + 1, measured(ops, measure, pull, z)
        history.append(ops.to_numpy(ops.max(residuals, 1)))
        size = ops.log(key(residuals) + 1e-30)
        if rate is None:
            rate, ceiling, held = size * 0.0 + start, size * 0.0 + span[1], size * 0.0
            smooth = size
        else:
            smooth = RESIDUAL_SMOOTHING * smooth + (1.0 - RESIDUAL_SMOOTHING) * size
            band = ops.log(1.0 + NOISE_BAND * precision * ops.exp(-size))
            over = ops.cast(smooth > before + band, "float32")
            at_floor = ops.cast(rate <= span[0] * 1.0001, "float32")
            floors.append(ops.to_numpy(ops.max(over * at_floor, 1)))
            calm = 1.0 - over
            dropped = ops.maximum(0.5 * rate, span[0])
            ceiling = over * dropped + calm * ops.where(held > 0, ceiling, ops.clip(ceiling * CEILING_GROWTH, span[0], span[1]))
            held = over * CEILING_HELD + calm * ops.maximum(held - 1.0, 0.0)
            longer = STEP_GROWTH * rate
            rate = over * dropped + calm * ops.where(longer > ceiling, ceiling, longer)
            # What is compared next begins anew after an overshoot: the smoothed value still rises when the step has been halved already.
            smooth = over * size + calm * smooth
        before = smooth
        if used >= budget or not history[-1].max() > tolerance:
            words = outcomes(ops, residuals, tolerance, history)
            share = np.mean(floors[-FLOOR_WINDOW:], 0) if floors else np.zeros(len(words))
            words = [SHORTEST if word != CONVERGED and part > FLOOR_SHARE else word for word, part in zip(words, share)]
            return Solution(z, used, residuals, words)
        z = z + rate[..., None] * pull
