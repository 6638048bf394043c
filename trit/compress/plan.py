"""Bytes before training: what a configuration will weigh, whether it fits the cap, and what to change where it does not.

Not part of the counted program. `plan` needs no weights: the guaranteed bound follows from the specs alone (the entropy coder may always
fall back on tables that learn nothing), the expected size from the entropy of Gaussian weights on each grid and from how much trained
tensors were measured to differ from it.
"""

import dataclasses
import math
import warnings
from typing import NamedTuple

import numpy as np

from trit.compress.entropy import FLOOR, PRECISION, lane_count, power_below
from trit.compress.pack import PACK_HEADER_BYTES, grid_top, pruned_counts, stream_table
from trit.compress.prune import map_bits
from trit.compress.quantize import group_layout
from trit.config_check import validate
from trit.models import load_arch

# Measured on trained models (docs/LOG.md). Coded bits after 5.5 million tokens over those of Gaussian weights, and the loss of that share
# with every doubling of the tokens.
TRAINED_SHARE = {"matrix": (0.998, 0.0007), "embed": (0.845, 0.005), "scalar": (0.885, 0.02)}
EMBED_VOCABULARY = 0.03  # what the embedding's share gains with every doubling of the vocabulary over 1,024: rarer tokens stay Gaussian
PRUNED_BITS = (
    0.39  # what a code of the rows that pruning keeps takes more, the fewer they are: they are larger than their group's scale says
)
TYPICAL_TOKENS = 5.5e6  # of a run that the clock ends
SCALE_SPREAD = {"matrix": 0.144, "embed": 0.288, "engram": 0.067}  # spread of the logarithms of a tensor's scales
HALF_BITS = {"scales": 10.0, "scalar": 11.7, "weights": 13.5}  # bits of a 16-bit number after packing, measured
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


def symbol_bound(stream):
    """Most bits a symbol takes when the coder learns nothing: the rarest entry of an even table, and the rounding of the lanes' states."""
    table = 1 << PRECISION
    return math.log2(table / ((table - stream.base) // stream.base + 1)) + 2.0 * table / FLOOR


def stream_bound(stream, lanes):
    """Most bytes a stream takes beside the lanes' states: its symbols and the ones that fill its lanes up."""
    lanes = min(lanes, power_below(stream.count // 512))
    return -(-stream.count // lanes) * lanes * symbol_bound(stream) / 8


def category(spec):
    """What a tensor counts as in reports: its optimiser group."""
    return spec.group


def unevenness_bits(config, spec):
    """Bits a hashed row's code takes less than a Gaussian weight's: rows that are read often grow, which the coder sees.

    The more rows and the fewer tokens there are (some 400 of a vocabulary are hardly used), the fewer n-grams share a row and the more
    rows differ. Fitted to seven trained tables of 8,192 to 65,536 rows, vocabularies of 512 to 2,048 (docs/LOG.md).
    """
    odds = (max(config.engram.engram_buckets, 0) / 13620) ** 1.54 * (624 / max(config.model.vocab_size - 400, 64)) ** 0.8
    return (0.36 if spec.bits <= 2 else 0.252) * odds / (1.0 + odds)


def stays_gaussian(spec, names):
    """Whether training leaves a tensor's distribution as it starts: a small table with a random start, and an embedding beside a head of its
    own among `names`, which only the input reads (docs/LOG.md)."""
    return spec.init == "normal" and (spec.group == "scalar" or spec.name == "embed" and "head" in names)


def expected_code_bits(config, spec, names):
    """Bits a trained code should take, in a model with tensors `names`."""
    gaussian = ternary_bits(config.quant.ternary_threshold) if spec.scheme == "ternary" else grid_bits(grid_top(spec), spec.clip)
    if spec.group == "engram":
        bits = gaussian - unevenness_bits(config, spec)
        if config.compress.engram_keep:
            share = pruned_counts(config, spec)[0] / math.prod(spec.shape)
            bits = min(bits + PRUNED_BITS * (1.0 - share), math.log2(2 * grid_top(spec) + 1))
        return bits
    if stays_gaussian(spec, names):
        return gaussian
    share, fall = TRAINED_SHARE.get(spec.group, (1.0, 0.0))
    if spec.group == "embed":
        share += EMBED_VOCABULARY * math.log2(config.model.vocab_size / 1024)
    train = config.train
    tokens = TYPICAL_TOKENS if train.max_wallclock_seconds else train.iterations * train.train_batch_tokens
    return gaussian * min(share - fall * math.log2(tokens / TYPICAL_TOKENS), 1.0)


def expected_scale_bits(config, spec):
    """Bits a trained group's scale should take."""
    if not config.quant.scale_steps:
        return HALF_BITS["scales"]
    if group_layout(spec)[0] == 1:
        return math.log2(29 * config.quant.scale_steps + 1)
    spread = math.hypot(0.74 / math.sqrt(spec.group_size), SCALE_SPREAD.get(spec.group, 0.0)) * config.quant.scale_steps / math.log(2)
    return max(math.log2(spread * math.sqrt(2 * math.pi * math.e)), 0.3)


def plan(config, specs, code_bytes):
    """`Plan` of a Config and its table of specs beside a counted program of `code_bytes` bytes. Needs no weights."""
    streams = stream_table(config, specs)
    lanes, names = lane_count(streams), {spec.name for spec in specs}
    fixed = PACK_HEADER_BYTES + len(streams) + 8 * lanes + (len(specs) if config.compress.allocate else 0)
    found, remaining = {("header", "header"): [1, fixed, fixed]}, iter(streams)

    def add(name, storage, count, bound, expected):
        row = found.setdefault((name, storage), [0, 0.0, 0.0])
        for place, value in enumerate((count, bound, expected)):
            row[place] += value

    for spec in specs:
        count, name, groups = math.prod(spec.shape), category(spec), group_layout(spec)[0] if spec.scheme != "fp16" else 0
        if config.compress.engram_keep and spec.name == "engram.table":
            add(name, "map", spec.shape[0], stream_bound(next(remaining), lanes), map_bits(config) / 8)
            count, groups = pruned_counts(config, spec)
        if spec.scheme == "fp16":
            add(name, "fp16", count, 2 * count, count * HALF_BITS["scalar" if name == "scalar" else "weights"] / 8)
            continue
        bound = stream_bound(next(remaining), lanes)
        bits = expected_code_bits(config, spec, names)
        expected = min(bound, count * bits / 8)
        add(name, "ternary" if spec.scheme == "ternary" else f"int{spec.bits}", count, bound, expected)
        bound = stream_bound(next(remaining), lanes) if config.quant.scale_steps else 2 * groups
        add(
            "scales",
            "steps" if config.quant.scale_steps else "fp16",
            groups,
            bound,
            min(bound, groups * expected_scale_bits(config, spec) / 8),
        )
    rows = [
        BudgetRow(*key, count, math.ceil(bound), min(math.ceil(bound), round(expected))) for key, (count, bound, expected) in found.items()
    ]
    spare = sum(stream_bound(stream, lanes) for stream in remaining)  # the two streams of bytes of 16-bit floats, filled up
    floats = sum(row.bound for row in rows if row.storage == "fp16")
    rows[0] = rows[0]._replace(bound=rows[0].bound + math.ceil(max(spare - floats, 0.0)))
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
            f"code {code_bytes:,} + artifact {model_bytes:,} = {total:,} bytes exceeds the cap of {cap:,} by {total - cap:,} bytes; without "
            "training again the same command with compress.allocate=true stores the weights in fewer bits (docs/faq.md)"
        )
    return cap - total


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
