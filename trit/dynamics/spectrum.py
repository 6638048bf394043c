"""Eigenvalues of a relaxation's Jacobian and what they say of its steps: of the blocks on its diagonal, of the whole by products alone, of the
whole written out; which kind of instability they mean; how far the Jacobian is from its transpose.

An eigenvalue nu = a + i b of J is a mode of the flow, mu = 1 + rate * nu that of a step. Steps are stable while all |mu| < 1, a mode alone up
to -2 a / (a^2 + b^2). All arrays are numpy, of 64 bits; shapes: B batch, T time, D width, N = T * D numbers of a text.
"""

import math
from typing import NamedTuple

import numpy as np

from trit.layers.newton import longest_steps

REAL = 1e-9  # an imaginary part below this share of an eigenvalue's size is rounding
EULER, HOPF, STEADY, FLIP = "euler artefact", "hopf", "real +1", "flip"
ATTRACTOR, CONTRACTING, NO_EVIDENCE, FFN, SLOW = "other attractor", "contracting", "no evidence", "ffn driven", "slow"
AMPLE = 1e-9  # what steps must have shrunk the slowest mode to before their not arriving means anything
MEANING = {
    EULER: "a complex pair leaves the unit circle although its real part is negative: shorter steps cure it",
    HOPF: "a complex pair has a positive real part: the rest itself is unstable, and no step length cures it",
    STEADY: "a real eigenvalue has reached 0: the rest is about to vanish or to lose its pull",
    FLIP: "a real eigenvalue is below -2 / step: every step overshoots to the other side, shorter ones cure it",
    ATTRACTOR: "all modes at the rest shrink, yet the steps do not arrive: they have gone elsewhere",
    CONTRACTING: "all modes shrink and the steps arrive",
    SLOW: "all modes shrink, one so slowly that the steps had no time to arrive",
    NO_EVIDENCE: "no rest was found, and the modes at a point that is none say nothing",
    FFN: "the same instability is there without attention: the feed-forward part drives it",
}


class Modes(NamedTuple):
    """By set of eigenvalues (...,): the rightmost nu, the mu of the largest modulus, the longest stable step."""

    rightmost: np.ndarray
    factor: np.ndarray
    critical: np.ndarray


def picked(values, size):
    """Of `values` (..., D) the one of the largest `size` (..., D); of a conjugate pair the upper one."""
    place = np.argmax(size + 1e-12 * np.abs(size) * (values.imag > 0), -1)
    found = np.take_along_axis(values, place[..., None], -1)[..., 0]
    return np.where(found.imag < 0, found.conj(), found)


def summary(modes, rate):
    """`Modes` of eigenvalues (..., D) under steps of length `rate`."""
    factors = 1.0 + rate * modes
    return Modes(picked(modes, modes.real), picked(factors, np.abs(factors)), longest_steps(modes))


def dense(product, size):
    """Matrix (size, size) of a linear function of vectors (size,)."""
    return np.stack([product(unit) for unit in np.eye(size)], 1)


def matched(left, right):
    """Largest distance between two lists of N eigenvalues when each of one goes with one of the other, as near as can be."""
    from scipy.optimize import linear_sum_assignment

    apart = np.abs(np.asarray(left)[:, None] - np.asarray(right)[None, :])
    return float(apart[linear_sum_assignment(apart)].max())


def arnoldi(product, size, which, vectors=120, seed=0):
    """The eigenvalue of a linear function of vectors (size,) that is rightmost ("LR") or has the largest modulus ("LM"), by implicitly restarted
    Arnoldi iteration on at most `vectors` vectors; NaN where it did not converge. Written out where it has so few numbers that nothing is saved."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

    if size <= 32:
        values = np.linalg.eigvals(dense(product, size))
    else:
        start = np.random.default_rng(seed).normal(size=size)
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        try:
            values = eigs(operator, 6, which=which, ncv=min(vectors, size), v0=start, return_eigenvectors=False, tol=1e-10)
        except ArpackNoConvergence:
            return complex("nan")
    return complex(picked(values, values.real if which == "LR" else np.abs(values)))


def outcome(modes, rate, at_root=True, settled=True, steps=math.inf):
    """What the eigenvalues (any number of them) of J at one point say of steps of length `rate`: a key of MEANING. `at_root` says whether the
    point is a rest, `settled` whether `steps` steps of that length from the drive arrived at one."""
    modes = np.ravel(modes)
    if not at_root or not len(modes):
        return NO_EVIDENCE
    found = summary(modes, rate)
    if found.rightmost.real >= 0:
        return HOPF if abs(found.rightmost.imag) > REAL * (1.0 + abs(found.rightmost)) else STEADY
    if abs(found.factor) >= 1:
        return EULER if abs(found.factor.imag) > REAL * rate else FLIP
    if settled:
        return CONTRACTING
    return SLOW if abs(found.factor) ** steps > AMPLE else ATTRACTOR


def story(outcomes):
    """One word on a path of outcomes, the first without attention, the last with all of it."""
    last, first = outcomes[-1], outcomes[0]
    return FFN if last == first and last in (EULER, HOPF, STEADY, FLIP) else last


def asymmetry(along, back, shape, draws=32, seed=0):
    """|A| / |S| of J, A being its antisymmetric part (J - J^T) / 2 and S its symmetric one, Frobenius norms, from products with noise: `along`
    gives J v, `back` J^T v for v of `shape`. Exact in the mean; a gradient's Jacobian has 0, a rotation infinity."""
    generator, apart, equal = np.random.default_rng(seed), 0.0, 0.0
    for _ in range(draws):
        noise = generator.choice([-1.0, 1.0], shape)
        left, right = along(noise), back(noise)
        apart, equal = apart + ((left - right) ** 2).sum(), equal + ((left + right) ** 2).sum()
    return float(np.sqrt(apart / max(equal, 1e-300)))


def block_asymmetry(blocks):
    """`asymmetry` of each of the blocks (..., D, D), exactly."""
    turned = np.swapaxes(blocks, -1, -2)
    return np.sqrt(((blocks - turned) ** 2).sum((-1, -2)) / np.maximum(((blocks + turned) ** 2).sum((-1, -2)), 1e-300))
