"""The one rounding rule. Training, calibration, packing, loading and diagnostics all call this encode/decode pair.

A tensor is cut into groups that share one 16-bit scale (`group_layout`); ternary codes are -1, 0, 1, integer codes lie in a symmetric grid.
A loaded artifact is (codes, scales) decoded once: nothing is ever rounded twice.
"""

import math
from typing import NamedTuple

import numpy as np

SMALLEST_SCALE = 6.103515625e-05  # the smallest normal float16: a scale of zero would lose its group for ever


class QuantTensor(NamedTuple):
    """`codes` (groups, group_size) integers, or float16 values of the tensor's shape for fp16; `scales` (groups, 1) float16 or None."""

    codes: np.ndarray
    scales: np.ndarray


def group_layout(spec):
    """(groups, group_size, padding) of a spec: groups lie inside a row and its tail is padded, or span whole rows of the flat tensor."""
    columns = spec.shape[-1]
    rows = math.prod(spec.shape[:-1])
    if spec.group_size <= columns:
        per_row = -(-columns // spec.group_size)
        return rows * per_row, spec.group_size, per_row * spec.group_size - columns
    if spec.group_size % columns:
        raise ValueError(
            f"{spec.name}: group size {spec.group_size} is neither inside a row of {columns} nor a multiple of it; change the quant setting that names it"
        )
    rows_per_group = spec.group_size // columns
    groups = -(-rows // rows_per_group)
    return groups, spec.group_size, groups * rows_per_group - rows


def to_groups(ops, spec, x):
    """Tensor of spec.shape -> (groups, group_size), zeros as padding."""
    groups, size, padding = group_layout(spec)
    x = ops.reshape(x, (-1, spec.shape[-1]))
    if padding:
        x = ops.pad(x, ((0, 0), (0, padding)) if size <= spec.shape[-1] else ((0, padding), (0, 0)))
    return ops.reshape(x, (groups, size))


def from_groups(ops, spec, x):
    """Inverse of `to_groups`."""
    _, size, padding = group_layout(spec)
    columns = spec.shape[-1]
    if size <= columns:
        x = ops.reshape(x, (-1, columns + padding))[:, :columns]
    else:
        x = ops.reshape(x, (-1, columns))
        x = x[: x.shape[0] - padding]
    return ops.reshape(x, spec.shape)


def group_counts(spec):
    """Real entries of each group as a float32 array (groups, 1): averages must not see the padding."""
    groups, size, padding = group_layout(spec)
    counts = np.full((groups, 1), size, np.float32)
    if padding and size <= spec.shape[-1]:
        per_row = groups // math.prod(spec.shape[:-1])
        counts[per_row - 1 :: per_row] -= padding
    elif padding:
        counts[-1] -= padding * spec.shape[-1]
    return counts


def group_mean(ops, spec, x):
    """Mean over the real entries of each group: (groups, group_size) -> (groups, 1)."""
    _, size, padding = group_layout(spec)
    total = ops.sum(x, 1, True)
    return total / (ops.from_numpy(group_counts(spec), total) if padding else size)


def half_scale(ops, x):
    """Scales as they will be stored: rounded to float16, never below its smallest normal number, in float32."""
    return ops.maximum(ops.cast(ops.cast(x, "float16"), "float32"), SMALLEST_SCALE)


def encode(ops, cfg, spec, x, calibration):
    """float32 tensor -> (codes, scales) as arrays of the backend; fp16 gives (values, None).

    `calibration` maps a tensor's name to (threshold, refit): the dead zone as a share of the group's mean magnitude, and whether
    the scale is the least-squares one for the codes.
    """
    if spec.scheme == "fp16":
        return ops.cast(x, "float16"), None
    groups = to_groups(ops, spec, x)
    if spec.scheme == "int":
        top = 2 ** (spec.bits - 1) - 1
        scales = half_scale(ops, ops.sqrt(group_mean(ops, spec, groups * groups)) * (spec.clip / top))
        return ops.clip(ops.round(groups / scales), -top, top), scales
    threshold, refit = calibration.get(spec.name, (cfg.quant.ternary_threshold, cfg.quant.ternary_scale == "least_squares"))
    size = ops.abs(groups)
    scales = half_scale(ops, group_mean(ops, spec, size))
    kept = ops.cast(size > scales * threshold, "float32")
    if refit:
        scales = half_scale(ops, ops.sum(size * kept, 1, True) / ops.maximum(ops.sum(kept, 1, True), 1.0))
    return ops.sign(groups) * kept, scales


def decode(ops, spec, codes, scales):
    """(codes, scales) -> float32 tensor of spec.shape. Exact: a code times a float16 scale fits in float32."""
    if spec.scheme == "fp16":
        return ops.cast(codes, "float32")
    return from_groups(ops, spec, codes * scales)


def fake_quantize(ops, cfg, specs, p, calibration):
    """The parameter dict as the forward sees it: stored values going forward, straight-through gradients going back."""
    q = {}
    for spec in specs:
        x = p[spec.name]
        codes, scales = encode(ops, cfg, spec, ops.stop_gradient(x), calibration)
        q[spec.name] = ops.straight_through(x, decode(ops, spec, codes, scales))
    return q


def quantize(ops, cfg, specs, p, calibration):
    """{name: QuantTensor} of a parameter dict, ready for packing."""
    tensors = {}
    for spec in specs:
        codes, scales = encode(ops, cfg, spec, p[spec.name], calibration)
        if spec.scheme == "fp16":
            # Adding zero turns -0 into 0, as straight_through does: stored and trained values agree in every bit.
            tensors[spec.name] = QuantTensor(ops.to_numpy(codes) + np.float16(0), None)
        else:
            tensors[spec.name] = QuantTensor(ops.to_numpy(codes).astype(np.int8), ops.to_numpy(scales).astype(np.float16))
    return tensors


def dequantize(ops, specs, tensors):
    """{name: float32 numpy array} of decoded QuantTensors."""
    arrays = {}
    for spec in specs:
        codes, scales = tensors[spec.name]
        if spec.scheme != "fp16":
            codes, scales = codes.astype(np.float32), ops.from_numpy(scales.astype(np.float32))
        arrays[spec.name] = ops.to_numpy(decode(ops, spec, ops.from_numpy(codes), scales))
    return arrays
