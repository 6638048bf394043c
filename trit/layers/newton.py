"""Newton's method on the blocks J_tt: the fixed point of every position given those before it, as forward substitution finds it.

All positions take their steps at once, each from the present states of the earlier ones, which settle first; a step of position t looks at
positions up to t only. A dense block costs D transposed products, so this is for small models and for tests: the ground truth of the other
solvers. Shapes: B batch, T time, D width.
"""

import numpy as np

from trit.layers.relaxation import Solution, outcomes, residual, stepping

NEWTON_WARM = 20
NEWTON_WARM_RATE = 0.05
NEWTON_STEP = 2.0  # longest step
NEWTON_SWEEPS = 30  # beyond one for each position
RETRY_STEPS = 400
RETRY_RATE = 0.02


def own_blocks(ops, own_force, z):
    """Blocks J_tt (B, T, D, D) of own_force(own, past), at z (B, T, D) for both: entry [i, j] says how channel i of the force moves with
    channel j of the state of the same position."""
    _, transpose = ops.pullback(lambda own: own_force(own, z), z)
    width, rows = z.shape[2], []
    for channel in range(width):
        unit = ops.zeros(z.shape, z) + ops.cast(ops.arange(width, z) == channel, "float32")
        rows.append(transpose(unit)[0])
    return ops.stack(rows, 2)


def longest_steps(modes):
    """Longest stable explicit step (...,) of each set of eigenvalues (..., D) in numpy, the least of -2 a / (a^2 + b^2) over a + b i; 0 where
    one has a real part of 0 or more: no step is stable there."""
    steps = np.where(modes.real < 0, -2.0 * modes.real / np.maximum(np.abs(modes) ** 2, 1e-30), 0.0)
    return steps.min(-1)


def critical_steps(blocks):
    """`longest_steps` of blocks (..., D, D) in numpy."""
    return longest_steps(np.linalg.eigvals(np.asarray(blocks, np.float64)))


def newton_sweeps(ops, own_force, z, budget, tolerance):
    """(state, evaluations, residuals by position) after Newton steps of all positions that are not at rest."""
    used = 0
    while True:
        pull = own_force(z, z)
        used, residuals = used + 1, residual(ops, pull, z)
        if used > budget or not ops.to_numpy(ops.max(residuals)) > tolerance:
            return z, used, residuals
        step = -(ops.inverse(own_blocks(ops, own_force, z)) @ pull[..., None])[..., 0]
        size = ops.sqrt(ops.sum(step * step, -1, True) + 1e-30)
        moving = ops.cast(residuals > tolerance, "float32")
        z = z + moving[..., None] * step * ops.clip(NEWTON_STEP / size, 0.0, 1.0)
        used += z.shape[2]


def newton(ops, own_force, z, tolerance):
    """`Solution` of own_force(z, z) = 0 from z (B, T, D). Positions that Newton leaves moving get short explicit steps and another try; with
    one that fails all later ones of its text are off too, for they see it."""
    warm = stepping(ops, lambda z: own_force(z, z), z, NEWTON_WARM_RATE, NEWTON_WARM, tolerance)
    budget = (NEWTON_SWEEPS + z.shape[1]) * (1 + z.shape[2])
    z, used, residuals = newton_sweeps(ops, own_force, warm.state, budget, tolerance)
    used += warm.evaluations
    if ops.to_numpy(ops.max(residuals)) > tolerance:
        failing = ops.cummax(ops.cast(residuals > tolerance, "float32"), 1)[..., None] > 0
        again = stepping(ops, lambda z: own_force(z, z), ops.where(failing, warm.state, z), RETRY_RATE, RETRY_STEPS, tolerance)
        z, more, residuals = newton_sweeps(ops, own_force, again.state, budget, tolerance)
        used += again.evaluations + more
    return Solution(z, used, residuals, outcomes(ops, residuals, tolerance, []))
