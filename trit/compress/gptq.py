"""Rounding one tensor after training: any step and dead zone, with the error of each column handed on to the columns after it.

The error that counts is that of the outputs, tr(D M D^T) for a difference D (O, I) and the second moment M (I, I) of the inputs.
Once a column is rounded, the best that the columns after it can do about its error follows from the Cholesky factor of the inverse
of M (GPTQ: Frantar et al. 2022, arXiv 2210.17323). A rotation inside groups turns weights and moment together; the model never
sees it. Everything is float64 numpy; what comes out is the `QuantTensor` of a plain spec.
"""

import numpy as np

from trit.compress.hadamard import rotate
from trit.compress.quantize import QuantTensor, from_groups, group_counts, group_layout, stored_scale, to_groups

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
        moment = ops.to_numpy(rotate(ops, groups)).reshape(moment.shape)
    return moment.astype(np.float64)


def round_tensor(ops, cfg, spec, array, moment, dead):
    """`QuantTensor` of an array in the integer or ternary storage of `spec`, whose step is spec.clip RMS of a group over its largest
    code. `moment` (I, I) of a matrix's inputs, or None to round every weight by itself."""
    top = 1 if spec.scheme == "ternary" else 2 ** (spec.bits - 1) - 1
    start = spec.value if cfg.quant.scalar_bits < 16 and spec.init == "constant" else 0.0
    groups = to_groups(ops, spec, ops.from_numpy(array - np.float32(start)))
    if spec.rotate:
        groups = rotate(ops, groups)
    groups = ops.to_numpy(groups)
    counts = group_counts(spec)
    power = np.sqrt((groups.astype(np.float64) ** 2).sum(1, keepdims=True) / counts).astype(np.float32)
    scales = ops.to_numpy(stored_scale(ops, cfg, ops.from_numpy(power * np.float32(spec.clip / top))))
    if moment is None:
        codes = grid_codes(groups / scales, top, dead)
    else:
        if spec.rotate:
            moment = rotated_moment(ops, spec, moment)
        inside = spec._replace(rotate=False)
        steps = ops.to_numpy(from_groups(ops, inside, ops.from_numpy(np.repeat(scales, groups.shape[1], 1))))
        weights = ops.to_numpy(from_groups(ops, inside, ops.from_numpy(groups)))
        codes = round_with_feedback(weights, steps, top, dead, moment).astype(np.float32)
        codes = ops.to_numpy(to_groups(ops, inside, ops.from_numpy(codes)))
    return QuantTensor(codes.astype(np.int8), scales.astype(np.float16))
