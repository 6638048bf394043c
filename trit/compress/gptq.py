"""Rounding one tensor after training: any step and dead zone, with the error of each column handed on to the columns after it.

The error that counts is that of the outputs, tr(D M D^T) for a difference D (O, I) and the second moment M (I, I) of the inputs.
Once a column is rounded, the best that the columns after it can do about its error follows from the Cholesky factor of the inverse
of M (GPTQ: Frantar et al. 2022, arXiv 2210.17323). A rotation inside groups turns weights and moment together; the model never
sees it. Codes come out; any group scales will do, so they are chosen before (trit/compress/allocate.py).
"""

import numpy as np

from trit.compress.hadamard import hadamard_rotate
from trit.compress.quantize import from_groups, to_groups

DAMPING = 0.01  # share of the mean input power added to every channel: directions that were never seen stay put
BLOCK = 64  # columns whose errors reach the columns behind the block in one product


def feedback_factor(moment):
    """Upper triangular U (I, I), U^T U the inverse of the damped moment: row j spreads the error of column j over those after it."""
    power = np.trace(moment) / len(moment)
    damped = moment + (DAMPING * power + 1e-12) * np.eye(len(moment))
    return np.linalg.cholesky(np.linalg.inv(damped)).T


def grid_codes(z, top, dead):
    """Weights in units of their step -> integers -top .. top; what lies less than one half plus `dead` above an integer falls to it."""
    return np.sign(z) * np.minimum(np.rint(np.maximum(abs(z) - dead, 0.0)), top)


def round_with_feedback(weights, steps, top, dead, moment):
    """Codes (O, I) of weights (O, I) with a step for each (O, I). Columns go in falling order of their input power."""
    order = np.argsort(-np.diag(moment), kind="stable")
    factor = feedback_factor(moment[order][:, order])
    left, steps = weights[:, order].astype(np.float64), steps[:, order]
    codes = np.zeros(left.shape)
    for start in range(0, len(order), BLOCK):
        end = min(start + BLOCK, len(order))
        errors = np.zeros((len(left), end - start))
        for j in range(start, end):
            codes[:, j] = grid_codes(left[:, j] / steps[:, j], top, dead)
            error = (left[:, j] - codes[:, j] * steps[:, j]) / factor[j, j]
            left[:, j + 1 : end] -= error[:, None] * factor[j, j + 1 : end]
            errors[:, j - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    found = np.empty(codes.shape)
    found[:, order] = codes
    return found


def rotated_moment(ops, spec, moment):
    """Second moment (I, I) of the inputs as a spec's rotated groups meet them; groups fill their rows."""
    for _ in range(2):
        groups = ops.from_numpy(np.ascontiguousarray(moment.T, np.float32).reshape(-1, spec.group_size))
        moment = ops.to_numpy(hadamard_rotate(ops, groups)).reshape(moment.shape)
    return moment.astype(np.float64)


def rounded(ops, spec, array, scales, top, dead, moment):
    """Codes (groups, group_size), at most `top`, of an array in groups with the float32 scales (groups, 1). `moment` (I, I) is that of
    a matrix's inputs; None rounds every weight by itself."""
    groups = spec_groups(ops, spec, array)
    if moment is None:
        return grid_codes(groups / scales, top, dead)
    if spec.rotate:
        moment = rotated_moment(ops, spec, moment)
    steps, weights = (ops.to_numpy(from_groups(ops, spec, ops.from_numpy(x))) for x in (np.repeat(scales, groups.shape[1], 1), groups))
    codes = round_with_feedback(weights, steps, top, dead, moment).astype(np.float32)
    return ops.to_numpy(to_groups(ops, spec, ops.from_numpy(codes)))


def spec_groups(ops, spec, array):
    """An array as the groups (groups, group_size) that a spec stores, rotated where it says so."""
    groups = to_groups(ops, spec, ops.from_numpy(array))
    return ops.to_numpy(hadamard_rotate(ops, groups) if spec.rotate else groups)
