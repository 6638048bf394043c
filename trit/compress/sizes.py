"""What every tensor of a packed artifact weighs, exactly, and what the weights of a run in progress would weigh. Reports only."""

from typing import NamedTuple

import numpy as np

from trit.compress.entropy import best_mode, lane_count, mode_known, stream_bits
from trit.compress.pack import (
    OTHER_CODER,
    PACK_HEADER_BYTES,
    kept_entries,
    kept_groups,
    pack,
    pruned_counts,
    read_streams,
    real_entries,
    stream_symbols,
    stream_table,
)
from trit.compress.prune import kept_rows, map_bits
from trit.compress.quantize import QuantTensor, group_layout, quantize

SAMPLE = 1 << 18  # symbols of a tensor that a live prediction looks at


class SizeRow(NamedTuple):
    """Bytes of one tensor's codes, scales or floats, or of the header with the coder's states."""

    name: str
    category: str
    count: int
    size: int


def stream_owners(cfg, specs):
    """[(name, category), ...] of the artifact's streams but the last two, and [(name, category, count), ...] of the 16-bit floats in
    those."""
    owners, floats = [], []
    for spec in specs:
        if cfg.compress.engram_keep and spec.name == "engram.table":
            owners.append((spec.name + ".map", spec.group))
        if spec.scheme != "fp16":
            owners.append((spec.name, spec.group))
            if cfg.quant.scale_steps:
                owners.append((spec.name + ".scale", "scales"))
    for spec in specs:
        count, groups = int(np.prod(spec.shape)), 0 if spec.scheme == "fp16" else group_layout(spec)[0]
        if cfg.compress.engram_keep and spec.name == "engram.table":
            count, groups = pruned_counts(cfg, spec)
        if spec.scheme == "fp16":
            floats.append((spec.name, spec.group, count))
        elif not cfg.quant.scale_steps:
            floats.append((spec.name + ".scale", "scales", groups))
    return owners, floats


def shares(length, weights):
    """Whole numbers that sum to `length` in proportion to `weights`."""
    ends = np.rint(length * np.cumsum(weights) / sum(weights)).astype(int)
    return np.diff(ends, prepend=0)


def sizes(cfg, specs, tensors, data=None):
    """[SizeRow, ...] of an artifact (`data`, else packed here): bytes of every tensor, its scales and the header, summing to its length.

    A stream's bytes are what its coder takes for it; 16-bit floats share their two streams by number.
    """
    data = pack(cfg, specs, tensors) if data is None else data
    streams, symbols = stream_table(cfg, specs), stream_symbols(cfg, specs, tensors)
    modes, others, _ = read_streams(cfg, specs, data)
    lengths = []
    for i, (stream, mode) in enumerate(zip(streams, modes)):
        bits = 8 * len(others[i]) if mode >= OTHER_CODER else stream_bits(stream, mode, symbols[i], lane_count(streams))
        lengths.append(bits / 8)
    owners, floats = stream_owners(cfg, specs)
    rows = [SizeRow(*owner, stream.count, int(length)) for owner, stream, length in zip(owners, streams, lengths)]
    if floats:
        counts = [count for _, _, count in floats]
        parts = shares(int(lengths[-1] + lengths[-2]), counts)
        rows += [SizeRow(name, group, count, int(part)) for (name, group, count), part in zip(floats, parts, strict=True)]
    return [SizeRow("header", "header", 1, len(data) - sum(row.size for row in rows)), *rows]


def sample(spec, array):
    """(spec, array) of evenly spaced rows of a tensor, whole groups, with about SAMPLE numbers; the tensor itself where it is small."""
    columns = spec.shape[-1]
    rows = array.reshape(-1, columns)
    block = max(spec.group_size // columns, 1)
    blocks = len(rows) // block
    step = max(array.size // SAMPLE, 1)
    if step == 1 or blocks < 2 or spec.scheme == "fp16":
        return spec, array
    kept = rows[: blocks * block].reshape(blocks, block, columns)[::step].reshape(-1, columns)
    return spec._replace(shape=kept.shape), kept


def whole_bits(stream, symbols, lanes, whole):
    """Bits of a stream of `whole` symbols of which `symbols` are a sample: what is missing costs what every other row of the sample
    adds to the rows between, when the coder has learned from those."""
    bits, mode = best_mode(stream, symbols, lanes)
    if whole == stream.count:
        return bits
    half = symbols.reshape(-1, stream.columns)[::2].reshape(-1)
    smaller = stream._replace(count=half.size)
    before = stream_bits(smaller, mode, half, lanes) if mode_known(smaller, mode) else bits * half.size / symbols.size
    return bits + (bits - before) * (whole - stream.count) / (stream.count - half.size)


def pruned_sample(ops, cfg, spec, array):
    """(spec, QuantTensor) of the rows that pruning would leave of a sample of the engram, judged by their norms alone."""
    kept = kept_rows(ops, cfg, array, np.zeros(0, np.int32))
    part, some = sample(spec, array)
    chosen = sample(spec, np.repeat(kept[:, None], spec.shape[-1], 1))[1][:, 0]
    codes, scales = quantize(ops, cfg, [part], {part.name: ops.from_numpy(some)}, {})[part.name]
    entries, left = kept_entries(part, chosen), part._replace(name="kept", shape=(int(chosen.sum()), part.shape[-1]))
    if part.scheme == "fp16":
        return left, QuantTensor(codes[entries].reshape(left.shape), None)
    together = np.zeros(group_layout(left)[:2], np.int8)
    together[real_entries(left)] = codes[entries]
    return left, QuantTensor(together, np.resize(scales[kept_groups(part, entries)], (len(together), 1)))


def predicted_bytes(ops, cfg, specs, arrays, codes=None):
    """Bytes of the artifact that trained `arrays` would give now, from a sample of every large tensor: within about half a percent.
    A dictionary `codes` gets {name: int8 codes} of the samples of ternary tensors."""
    streams = stream_table(cfg, specs)
    lanes = lane_count(streams)
    bits = 8.0 * (PACK_HEADER_BYTES + len(streams) + 8 * lanes)
    for spec in specs:
        if cfg.compress.engram_keep and spec.name == "engram.table":
            part, tensor = pruned_sample(ops, cfg, spec, arrays[spec.name])
            bits += map_bits(cfg)
            wholes = pruned_counts(cfg, spec)
            pairs = zip(stream_table(cfg, [part]), stream_symbols(cfg, [part], {part.name: tensor}))
            for number, (stream, symbols) in enumerate(pairs):
                bits += whole_bits(stream, symbols, lanes, wholes[number > 0 and spec.scheme != "fp16"])
            continue
        part, array = sample(spec, arrays[spec.name])
        tensors = quantize(ops, cfg, [part], {part.name: ops.from_numpy(array)}, {})
        share = arrays[spec.name].size / array.size
        if codes is not None and spec.scheme == "ternary":
            codes[spec.name] = tensors[spec.name].codes[real_entries(part)]
        for stream, symbols in zip(stream_table(cfg, [part]), stream_symbols(cfg, [part], tensors)):
            bits += whole_bits(stream, symbols, lanes, round(stream.count * share))
    return round(bits / 8)


def size_table(rows):
    """Printable text of `sizes`: one line a tensor, then one a category."""
    lines = [f"{'tensor':<28}{'category':<10}{'numbers':>12}{'bytes':>12}{'bits each':>11}"]
    lines += [f"{row.name:<28}{row.category:<10}{row.count:>12,}{row.size:>12,}{8 * row.size / row.count:>11.3f}" for row in rows]
    for category in dict.fromkeys(row.category for row in rows):
        chosen = [row for row in rows if row.category == category]
        count, size = sum(row.count for row in chosen), sum(row.size for row in chosen)
        lines.append(f"{'total':<28}{category:<10}{count:>12,}{size:>12,}{8 * size / count:>11.3f}")
    return "\n".join(lines)


def category_bytes(rows):
    """{category: bytes} of `sizes`."""
    totals = {}
    for row in rows:
        totals[row.category] = totals.get(row.category, 0) + row.size
    return totals
