"""Bytes before and after training: what a configuration will weigh, whether it fits the cap, and what to change where it does not.

Not part of the counted program. `plan` needs no weights: the guaranteed bound follows from the specs alone, the expected size from
the entropy that Gaussian weights have on each grid. `sizes` measures a packed artifact tensor by tensor.
"""

import dataclasses
import math
import struct
import warnings
from typing import NamedTuple

import numpy as np

from trit.compress.pack import (
    PACK_HEADER,
    STREAM_HEADER,
    grid_top,
    layout_size,
    pack,
    read_streams,
    real_entries,
    spec_kinds,
    stream_layouts,
    stream_table,
)
from trit.config import validate
from trit.models import load_arch

CODER_OVERHEAD = 1.004  # compressed bytes over entropy, measured on Gaussian codes: 0.3 % on trits, 0.3 to 0.6 % on integer grids
TRAINED_SHARE = {"embed": 0.9, "engram": 0.95}  # bits after training over those of Gaussian rows, which have thinner tails (docs/LOG.md)
TABLE_BYTES = 70  # what the coder's tables cost in a stream of codes
HALF_BITS = {"scales": 10.0, "scalar": 11.7, "weights": 13.5}  # bits of a 16-bit number after packing, measured (docs/format.md)
SHRINKABLE = (
    "engram.engram_buckets",
    "quant.engram_bits",
    "quant.embed_bits",
    "model.embed_dim",
    "model.mlp_mult",
    "model.num_layers",
    "model.model_dim",
)


class BudgetRow(NamedTuple):
    """One kind of stored number: its category, storage, how many, the most bytes it can take and the bytes it should take."""

    category: str
    storage: str
    count: int
    bound: int
    expected: int


class Plan(NamedTuple):
    """Bytes of a configuration before training. `rows` sum to the artifact; `code_bytes` is the counted program beside it."""

    config: object
    code_bytes: int
    rows: tuple

    def model_bytes(self):
        """(bound, expected) bytes of the artifact."""
        return sum(row.bound for row in self.rows), sum(row.expected for row in self.rows)


class SizeRow(NamedTuple):
    """Actual bytes of one tensor's codes or scales, or of the header."""

    name: str
    category: str
    count: int
    size: int


def entropy(shares):
    """Bits a symbol of a distribution (any iterable of shares or counts)."""
    shares = np.asarray([share for share in shares if share > 0], np.float64)
    shares = shares / shares.sum()
    return float(-(shares * np.log2(shares)).sum())


def ternary_bits(threshold):
    """Entropy of a Gaussian weight rounded to -1, 0, 1 with a dead zone of `threshold` times the mean magnitude."""
    zero = math.erf(threshold * math.sqrt(2 / math.pi) / math.sqrt(2))
    return entropy([zero, (1 - zero) / 2, (1 - zero) / 2])


def grid_bits(top, clip):
    """Entropy of a Gaussian weight on the integers -top .. top that cover `clip` times its RMS; what lies beyond falls on the ends."""
    edges = [(code + 0.5) * clip / top / math.sqrt(2) for code in range(-top, top)]
    below = [0.0, *((1 + math.erf(edge)) / 2 for edge in edges), 1.0]
    return entropy(np.diff(below))


def plan(config, specs, code_bytes):
    """`Plan` of a Config and its table of specs beside a counted program of `code_bytes` bytes. Needs no weights."""
    table = stream_table(specs)
    header = struct.calcsize(PACK_HEADER) + len(table) * struct.calcsize(STREAM_HEADER)
    rows, streams = [BudgetRow("header", "header", 1, header, header)], iter(table)
    for (scheme, bits, group), members in spec_kinds(specs).items():
        if scheme != "fp16":
            base, count = next(streams)
            bound = min(layout_size(base, count, layout) for layout in stream_layouts(base))
            quant = config.quant
            each = ternary_bits(quant.ternary_threshold) if scheme == "ternary" else grid_bits(grid_top(members[0]), members[0].clip)
            each *= TRAINED_SHARE.get(group, 1.0)
            expected = min(bound, round(count * each * CODER_OVERHEAD / 8) + TABLE_BYTES)
            rows.append(BudgetRow(group, "ternary" if scheme == "ternary" else f"int{bits}", count, bound, expected))
        count = next(streams)[1]
        next(streams)
        use = "scales" if scheme != "fp16" else "scalar" if group == "scalar" else "weights"
        expected = min(2 * count, round(count * HALF_BITS[use] / 8))
        rows.append(BudgetRow("scales" if use == "scales" else group, "fp16", count, 2 * count, expected))
    return Plan(config, code_bytes, tuple(rows))


def replaced(config, name, value):
    """Config with one `section.key` changed; ValueError where the result is not valid."""
    section, key = name.split(".")
    config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{key: value})})
    validate(config)
    return config


def suggestions(made, excess):
    """Text naming, for every setting that can save `excess` bytes alone, its mildest such value; else each one's largest saving."""
    enough, partial = [], []
    specs_of = load_arch(made.config.model.name).param_specs
    for name in SHRINKABLE:
        section, key = name.split(".")
        start = getattr(getattr(made.config, section), key)
        saved, text = 0, ""
        for step in range(1, 8):
            value = start * (8 - step) // 8 if start >= 16 else start - step
            try:
                config = replaced(made.config, name, value)
                saving = made.model_bytes()[1] - plan(config, specs_of(config), made.code_bytes).model_bytes()[1]
            except (ValueError, ArithmeticError):
                continue  # this value does not fit the other settings
            if saving > saved:
                saved, text = saving, f"{name}={start} -> {value} saves about {saving:,} bytes"
            if saved >= excess:
                break
        if saved:
            (enough if saved >= excess else partial).append(text)
    return "; ".join(enough or ["no single setting saves enough", *partial])


def check_plan(made, cap):
    """ValueError where the expected total exceeds `cap` bytes, naming the excess and what would save it; a warning where only the
    bound does. Returns the bytes expected to stay free."""
    bound, expected = (made.code_bytes + size for size in made.model_bytes())
    if expected > cap:
        raise ValueError(
            f"expected size {expected:,} bytes (code {made.code_bytes:,}, artifact {expected - made.code_bytes:,}) exceeds "
            f"track.cap_bytes={cap:,} by {expected - cap:,} bytes; {suggestions(made, expected - cap)}"
        )
    if bound > cap:
        text = f"expected size {expected:,} bytes fits track.cap_bytes={cap:,}, but the guaranteed bound {bound:,} exceeds it by"
        warnings.warn(f"{text} {bound - cap:,} bytes; check the packed size early in the run", stacklevel=2)
    return cap - expected


def check_budget(code_bytes, model_bytes, cap):
    """Bytes left under `cap` after packing; ValueError where code and artifact together exceed it."""
    total = code_bytes + model_bytes
    if total > cap:
        raise ValueError(
            f"code {code_bytes:,} + artifact {model_bytes:,} = {total:,} bytes exceeds the cap of {cap:,} by {total - cap:,} bytes"
        )
    return cap - total


def sizes(specs, tensors, data=None):
    """[SizeRow, ...] of an artifact (`data`, else packed here): bytes of every tensor, its scales and the header, summing to its length.

    Tensors that share a stream share its bytes in proportion to the order-0 entropy of their codes.
    """
    data = pack(specs, tensors) if data is None else data
    lengths = iter([length for _, _, length in read_streams(specs, data)])
    rows = []
    for (scheme, _, group), members in spec_kinds(specs).items():
        parts = []
        if scheme != "fp16":
            codes = [tensors[spec.name].codes[real_entries(spec)] for spec in members]
            parts.append(([spec.name for spec in members], group, codes, next(lengths)))
        halves = [(tensors[spec.name].codes if scheme == "fp16" else tensors[spec.name].scales).reshape(-1) for spec in members]
        suffix, category = ("", group) if scheme == "fp16" else (".scale", "scales")
        parts.append(([spec.name + suffix for spec in members], category, halves, next(lengths) + next(lengths)))
        for names, category, arrays, length in parts:
            weights = [array.size * (entropy(np.unique(array, return_counts=True)[1]) + 0.01) for array in arrays]
            ends = np.rint(length * np.cumsum(weights) / sum(weights)).astype(int)
            shares = np.diff(ends, prepend=0)
            rows += [SizeRow(name, category, array.size, int(share)) for name, array, share in zip(names, arrays, shares, strict=True)]
    return [SizeRow("header", "header", 1, len(data) - sum(row.size for row in rows)), *rows]


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


def budget_table(made, cap):
    """Printable text of a Plan: one line a kind of number, then code, total and what stays free under `cap`."""
    lines = [f"{'category':<10}{'storage':<9}{'numbers':>12}{'expected':>13}{'at most':>13}{'bits each':>11}"]
    for row in made.rows:
        lines.append(
            f"{row.category:<10}{row.storage:<9}{row.count:>12,}{row.expected:>13,}{row.bound:>13,}{8 * row.expected / row.count:>11.3f}"
        )
    bound, expected = made.model_bytes()
    totals = ("artifact", expected, bound), ("code", made.code_bytes, made.code_bytes)
    totals += (
        ("total", made.code_bytes + expected, made.code_bytes + bound),
        ("free", cap - made.code_bytes - expected, cap - made.code_bytes - bound),
    )
    lines += [f"{name:<31}{first:>13,}{second:>13,}" for name, first, second in totals]
    return "\n".join(lines)
