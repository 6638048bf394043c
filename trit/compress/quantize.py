"""The one rounding rule. Training, calibration, packing, loading and diagnostics all call this encode/decode pair.

A tensor is cut into groups that share one scale (`group_layout`); ternary codes are -1, 0, 1, integer codes lie in a symmetric grid.
Scales are float16 numbers, or with quant.scale_steps those that stand in `scale_table`. A loaded artifact is (codes, scales) decoded once: nothing is ever rounded twice.
"""

import math
from typing import NamedTuple

import numpy as np

from trit.compress.hadamard import hadamard_rotate

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
    """Real entries of the groups: a list of one number for each group of a row, or for each group where they span rows."""
    groups, size, padding = group_layout(spec)
    if size <= spec.shape[-1]:
        return [size] * (groups // math.prod(spec.shape[:-1]) - 1) + [size - padding]
    return [size] * (groups - 1) + [size - padding * spec.shape[-1]]


def group_sum(ops, x):
    """Sums of groups, (groups, size) -> (groups, 1), half added to half: a fixed order, so that every array library and machine finds the
    same bits, and from the same weights the same artifact."""
    while x.shape[1] > 1:
        half = -(-x.shape[1] // 2)
        x = x[:, :half] + ops.pad(x[:, half:], ((0, 0), (0, 2 * half - x.shape[1])))
    return x


def group_mean(ops, spec, x):
    """Mean over the real entries of each group, not the padding: (groups, group_size) -> (groups, 1)."""
    _, size, padding = group_layout(spec)
    if padding:
        size = group_sum(ops, to_groups(ops, spec, ops.zeros(spec.shape, x) + 1.0))
    return group_sum(ops, x) / size


def rotates(cfg):
    """Whether any tensor can be stored rotated."""
    return cfg.quant.rotate_matrices or cfg.quant.rotate_embedding or cfg.compress.allocate


def stores_floats(cfg):
    """Whether any tensor or scale can be stored as 16-bit floats."""
    quant = cfg.quant.scalar_bits == 16 or cfg.quant.embed_bits == 16 or cfg.quant.engram_bits == 16 or cfg.quant.matrix_scheme == "fp16"
    return quant or cfg.quant.scale_steps == 0 or cfg.compress.allocate


def is_float(cfg, spec):
    """Whether a tensor is stored as 16-bit floats. False for every tensor of most configurations, so that a counted file has no code for it."""
    return stores_floats(cfg) and spec.scheme == "fp16"


def scale_values(steps):
    """The scales that can be stored, as a list: `steps` in every doubling from the smallest normal float16 to 2**15, each a float16
    (11 bits), rounded here because a compiled training step leaves such roundings out."""
    return [round(2.0 ** (i % steps / steps + 10.0)) * 2.0 ** (i // steps - 24.0) for i in range(29 * steps + 1)]


def scale_table(steps):
    """`scale_values` as an array of float16."""
    return np.array(scale_values(steps), np.float16)


def stored_scale(ops, cfg, x):
    """Scales (groups, 1) as they will be stored, in float32: the nearest (in ratio) of `scale_table`, or the nearest float16 that is normal."""
    x = ops.maximum(ops.cast(ops.cast(x, "float16"), "float32"), SMALLEST_SCALE)
    if cfg.quant.scale_steps:
        place = ops.round((ops.log(x) * (1.0 / math.log(2.0)) + 14.0) * cfg.quant.scale_steps)
        place = ops.cast(ops.clip(place, 0.0, 29.0 * cfg.quant.scale_steps), "int64")
        return ops.take(ops.constant(scale_values(cfg.quant.scale_steps), x)[:, None], place[:, 0])
    return x


def encode(ops, cfg, spec, x, calibration):
    """float32 tensor -> (codes, scales) as arrays of the backend; fp16 gives (values, None).

    `calibration` maps a tensor's name to (threshold, refit): the dead zone as a share of the group's mean magnitude, and whether
    the scale is the least-squares one for the codes.
    """
    if is_float(cfg, spec):
        return ops.cast(x, "float16"), None
    if cfg.quant.scalar_bits < 16 and spec.init == "constant":
        x = x - spec.value
    groups = to_groups(ops, spec, x)
    if rotates(cfg) and spec.rotate:
        groups = hadamard_rotate(ops, groups)
    if spec.scheme == "int":
        top = 2 ** (spec.bits - 1) - 1
        scales = stored_scale(ops, cfg, ops.sqrt(group_mean(ops, spec, groups * groups)) * (spec.clip / top))
        return ops.clip(ops.round(groups / scales), -top, top), scales
    threshold, refit = calibration.get(spec.name, (cfg.quant.ternary_threshold, cfg.quant.ternary_scale == "least_squares"))
    size = ops.abs(groups)
    scales = stored_scale(ops, cfg, group_mean(ops, spec, size))
    kept = ops.cast(size > scales * threshold, "float32")
    if refit:
        scales = stored_scale(ops, cfg, group_sum(ops, size * kept) / ops.maximum(group_sum(ops, kept), 1.0))
    return ops.sign(groups) * kept, scales


def decode(ops, cfg, spec, codes, scales):
    """(codes, scales) -> float32 tensor of spec.shape. Exact but for rotations and
    distances from a constant start, which round alike everywhere: a code times a float16 scale fits in float32."""
    if is_float(cfg, spec):
        return ops.cast(codes, "float32")
    groups = codes * scales
    if rotates(cfg) and spec.rotate:
        groups = hadamard_rotate(ops, groups)
    values = from_groups(ops, spec, groups)
    if cfg.quant.scalar_bits < 16 and spec.init == "constant":
        values = values + spec.value
    return values


def without_rows(ops, spec, codes, scales, kept):
    """(codes, scales) of a table of which only the rows `kept`, a mask (rows,), stay as they are. Groups that hold nothing have the
    smallest scale, which need not be stored."""
    kept = ops.cast(kept, "float32")
    if spec.scheme == "fp16":
        return ops.cast(ops.cast(codes, "float32") * kept[:, None], "float16"), None
    groups, size, _ = group_layout(spec)
    rows = groups * size // spec.shape[-1] if size > spec.shape[-1] else spec.shape[0]
    kept = ops.pad(kept, ((0, rows - spec.shape[0]),))
    codes = ops.reshape(ops.reshape(codes, (rows, -1)) * kept[:, None], (groups, size))
    return codes, ops.where(ops.max(ops.abs(codes), 1, True) > 0, scales, ops.zeros(scales.shape, scales) + SMALLEST_SCALE)


def fake_quantize(ops, cfg, specs, p, calibration):
    """The parameter dict as the forward sees it: stored values going forward, straight-through gradients going back. Beside parameters `p`
    may hold "engram.kept": the mask (rows,) of rows that pruning left."""
    q = {}
    for spec in specs:
        x = p[spec.name]
        codes, scales = encode(ops, cfg, spec, ops.stop_gradient(x), calibration)
        if cfg.compress.engram_keep and spec.name == "engram.table" and "engram.kept" in p:
            codes, scales = without_rows(ops, spec, codes, scales, p["engram.kept"])
        q[spec.name] = ops.straight_through(x, decode(ops, cfg, spec, codes, scales))
    return q


def quantize(ops, cfg, specs, p, calibration):
    """{name: QuantTensor} of a parameter dict (as `fake_quantize` takes it), ready for packing. ValueError where a weight is no number up to 65504."""
    tensors = {}
    for spec in specs:
        if not (np.abs(ops.to_numpy(p[spec.name])) <= 65504).all():
            raise ValueError(f"{spec.name}: a weight is not a number from -65504 to 65504")
        codes, scales = encode(ops, cfg, spec, p[spec.name], calibration)
        if cfg.compress.engram_keep and spec.name == "engram.table" and "engram.kept" in p:
            codes, scales = without_rows(ops, spec, codes, scales, p["engram.kept"])
        if is_float(cfg, spec):
            # Adding zero turns -0 into 0, as straight_through does: stored and trained values agree in every bit.
            tensors[spec.name] = QuantTensor(ops.to_numpy(codes) + np.float16(0), None)
        else:
            tensors[spec.name] = QuantTensor(ops.to_numpy(codes).astype(np.int8), ops.to_numpy(scales).astype(np.float16))
    return tensors


def dequantize(ops, cfg, specs, tensors):
    """{name: float32 numpy array} of decoded QuantTensors."""
    arrays = {}
    for spec in specs:
        codes, scales = tensors[spec.name]
        if not is_float(cfg, spec):
            codes, scales = codes.astype(np.float32), ops.from_numpy(scales.astype(np.float32))
        arrays[spec.name] = ops.to_numpy(decode(ops, cfg, spec, ops.from_numpy(codes), scales))
    return arrays
