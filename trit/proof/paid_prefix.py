"""Finds validation text inside what a submission ships (a "paid prefix"). Tools only. Input: views (trit.proof.views), tokens and text.

Every encoding below turns a view into symbols at every place where one could begin. Windows of half the shortest run that counts are
taken from the validation split, spaced so that each such run contains a whole one; a rolling hash looks for them at every place of a
view, and hits are confirmed symbol by symbol and extended.

What is guaranteed: every run of at least `text_run` bytes or `token_run` tokens is found, wherever it begins and whatever stands around
it, unless the window it contains has fewer than `distinct` different symbols or stands in the split more often than COPIES times. Windows
of few symbols (rulers, blanks, one token repeated) stand in honest files too. Text that was compressed, permuted or encrypted is not found.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from trit.console import counted

BLOCK_PLACES = 1 << 17
EXTEND_SYMBOLS = 1 << 14
BASE = 0x9E3779B97F4A7C15
TABLE_BITS = 26
COPIES = 256


class Run(NamedTuple):
    """A run of validation text in a view: it begins `byte` bytes into `view` and is symbol `position` of the validation text or tokens.

    `symbols` counts bytes of text or tokens, as `encoding` says.
    """

    view: str
    encoding: str
    byte: int
    position: int
    symbols: int


class Encoding(NamedTuple):
    """One way to write symbols into bytes: `reference` (text, ids or low) is what it writes; symbols are `step` places apart.

    `symbols(data)` gives the symbol that would begin at each place of uint8 `data`; a byte has `places` of them (8 for bits, else 1) and
    the last `margin` bytes have none.
    """

    name: str
    reference: str
    step: int
    places: int
    margin: int
    symbols: Callable


def packed_ids(width, little):
    """Symbols function of ids in `width` bits each, low bit first or high bit first."""

    def symbols(data):
        first, second, third = (data[i : len(data) - 2 + i].astype(np.uint32) for i in range(3))
        word = first | second << 8 | third << 16 if little else first << 16 | second << 8 | third
        shifts = np.arange(8) if little else 24 - width - np.arange(8)
        return (word[:, None] >> shifts.astype(np.uint32) & np.uint32(2**width - 1)).astype(np.uint16).reshape(-1)

    return symbols


def trit_digits(count, little, offset):
    """Symbols function of numbers in `count` digits to base 3, a digit a byte; the byte `offset` is the digit 0."""

    def symbols(data):
        digits = (data - np.uint8(offset)).astype(np.uint16)
        total = np.zeros(len(data) - count + 1, np.uint16)
        for place in reversed(range(count)) if little else range(count):
            total = total * np.uint16(3) + digits[place : place + len(total)]
        return total

    return symbols


def encodings(data, vocab_size):
    """The `Encoding`s to look for in uint8 `data`. Data of up to 3 different values is taken for ternary digits and nothing else, since
    no window has so few symbols; data of up to 16 values is not taken for packed bits."""
    counts = sum((np.bincount(data[i : i + BLOCK_PLACES], minlength=256) for i in range(0, len(data), BLOCK_PLACES)), np.zeros(256, int))
    values = np.flatnonzero(counts)
    if len(values) <= 3:
        offset = next((o for o in (255, 0) if all((value - o) % 256 < 3 for value in values.tolist())), None)
        trits = next(count for count in range(1, 12) if 3**count >= vocab_size)
        # Ids above 3^10 do not fit the 16-bit symbols; tokenizers of that size are outside this contest's practice.
        counts = [("text", 5), ("text", 6)] + [("ids", trits)] * (trits < 11)
        return [
            Encoding(f"{what}, {count} trits each, {'low' if little else 'high'} first", what, count, 1, count - 1, symbols)
            for what, count in counts
            for little in (True, False)
            for symbols in ([trit_digits(count, little, offset)] if offset is not None else [])
        ]
    kinds = [
        Encoding("text, UTF-8", "text", 1, 1, 0, lambda data: data),
        Encoding("ids, low byte", "low", 1, 1, 0, lambda data: data),
        Encoding("ids, 16 bits little-endian", "ids", 2, 1, 1, lambda data: data[:-1] | data[1:].astype(np.uint16) << 8),
        Encoding("ids, 16 bits big-endian", "ids", 2, 1, 1, lambda data: data[:-1].astype(np.uint16) << 8 | data[1:]),
    ]
    width = max(1, (vocab_size - 1).bit_length())
    if len(values) > 16 and width not in (8, 16):  # these two are bytes, which stand above
        for little in (True, False):
            label = f"ids, {width} bits each, {'low' if little else 'high'} first"
            kinds.append(Encoding(label, "ids", width, 8, 2, packed_ids(width, little)))
    return kinds


def symbol_values():
    """uint64 (65536,): the random number that stands for each symbol in a hash."""
    return np.random.default_rng(64).integers(0, 2**64, 65536, np.uint64)


def window_hashes(values, step, window):
    """Rolling hashes: sum of values[i + k step] BASE^k for k below `window`, modulo 2^64, at every i where a window fits."""
    count, done, size, total = len(values) - (window - 1) * step, 0, 1, None
    power = values  # hashes of `size` symbols
    while True:
        if window & size:
            rest = power[done * step : done * step + count] * np.uint64(pow(BASE, done, 2**64))
            total = rest if total is None else np.add(total, rest, out=total)
            done += size
        if done == window:
            return total
        shift = size * step
        grown = power[shift:] * np.uint64(pow(BASE, size, 2**64))
        power = np.add(grown, power[:-shift], out=grown)
        size *= 2


class Windows:
    """Windows of a reference (1-D symbols): their `hashes`, sorted, the `positions` where they begin, and two tables, of top and low bits,
    that tell most other hashes apart without the long way of a binary search."""

    def __init__(self, symbols, shortest, distinct, values):
        self.symbols, self.shortest, self.window = symbols, shortest, max(shortest // 2, 1)
        stride = shortest - self.window + 1
        found = []
        for begin in range(0, len(symbols) - self.window + 1, stride << 14):
            part = symbols[begin : begin + (stride << 14) + self.window - 1]
            rows = np.lib.stride_tricks.sliding_window_view(part, self.window)[::stride]
            kinds = 1 + np.count_nonzero(np.diff(np.sort(rows, axis=1), axis=1), axis=1)
            keep = np.flatnonzero(kinds >= distinct)
            found.append((window_hashes(values[rows[keep].T.reshape(-1)], len(keep), self.window), begin + keep * stride))
        empty = (np.zeros(0, np.uint64), np.zeros(0, np.int64))
        hashes, positions = (np.concatenate(column) for column in zip(empty, *found, strict=True))
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.positions = hashes[order], positions[order]
        bits = min(TABLE_BITS, max(12, len(self.hashes).bit_length() + 4))
        self.shift, self.mask = np.uint64(64 - bits), np.uint64((1 << bits) - 1)
        self.top, self.low = np.zeros(1 << bits, bool), np.zeros(1 << bits, bool)
        self.top[(self.hashes >> self.shift).view(np.int64)] = True
        self.low[(self.hashes & self.mask).view(np.int64)] = True

    def matches(self, hashes):
        """(places, positions): where the hashes of a view are those of windows, once for each of up to COPIES equal windows."""
        places = np.flatnonzero(self.top[(hashes >> self.shift).view(np.int64)])
        places = places[self.low[(hashes[places] & self.mask).view(np.int64)]]
        first = np.searchsorted(self.hashes, hashes[places])
        counts = np.minimum(np.searchsorted(self.hashes, hashes[places], "right") - first, COPIES)
        at = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
        return np.repeat(places, counts), self.positions[at]


def symbols_at(kind, data, place, count):
    """Up to `count` symbols of a view from `place` on, `step` places apart."""
    first, last = place // kind.places, (place + (count - 1) * kind.step) // kind.places
    part = data[first : last + 1 + kind.margin]
    return kind.symbols(part)[place - first * kind.places :: kind.step][:count] if len(part) > kind.margin else part[:0]


def agreement(first, second):
    """How many leading symbols of two arrays agree."""
    count = min(len(first), len(second))
    differing = np.flatnonzero(first[:count] != second[:count])
    return int(differing[0]) if len(differing) else count


def extend(kind, data, place, reference, position):
    """(place, position, symbols) of the longest run around a symbol of a view that should equal reference[position]."""
    before, after, full = 0, 0, True
    while full:
        size = min(EXTEND_SYMBOLS, len(reference) - position - after)
        same = agreement(symbols_at(kind, data, place + after * kind.step, size), reference[position + after :][:size]) if size else 0
        after, full = after + same, same == EXTEND_SYMBOLS
    full = True
    while full:
        size = min(EXTEND_SYMBOLS, position - before, place // kind.step - before)
        begin = position - before - size
        found = symbols_at(kind, data, place - (before + size) * kind.step, size) if size else data[:0]
        same = agreement(found[::-1], reference[begin : begin + size][::-1])
        before, full = before + same, same == EXTEND_SYMBOLS
    return place - before * kind.step, position - before, before + after


def search(kind, data, windows, values, limit):
    """Up to `limit` (place, position, symbols) of the runs of a reference's windows in uint8 `data`."""
    if kind.places > 1:
        data = np.append(data, np.zeros(kind.margin, np.uint8))  # the last ids are read with the bytes after them
    block = BLOCK_PLACES // kind.places
    overlap = kind.margin - (-(windows.window - 1) * kind.step // kind.places)
    runs, covered = [], {}
    for begin in range(0, len(data) - overlap + 1, block):
        symbols = kind.symbols(data[begin : begin + block + overlap])
        hashes = window_hashes(values[symbols], kind.step, windows.window)[:BLOCK_PLACES]
        for place, position in zip(*(column.tolist() for column in windows.matches(hashes)), strict=True):
            place += begin * kind.places
            line = place - position * kind.step
            if place < covered.get(line, 0):
                continue
            start, position, length = extend(kind, data, place, windows.symbols, position)
            covered[line] = start + length * kind.step
            if length >= windows.shortest:
                runs.append((start, position, length))
                if len(runs) == limit:
                    return runs
    return runs


def text_runs(views, val_tokens, val_text, vocab_size, text_run=64, token_run=24, distinct=8, limit=10):
    """The runs of validation text in `views` {name: bytes}, as a list of `Run`; at most `limit` of each view and encoding.

    `val_tokens` (1-D integers below `vocab_size`) and `val_text` (their UTF-8 bytes) are the whole validation split. Runs of at least
    `text_run` bytes or `token_run` tokens count; where tokens are bytes (vocab_size up to 260), `text_run` holds for them too. Each view is
    searched in pieces. Memory: the split, 16 bytes a window of one reference at a time, and two tables of at most 64 MiB.
    """
    tokens, text, values = np.asarray(val_tokens, np.uint16), np.frombuffer(val_text, np.uint8), symbol_values()
    token_run = text_run if vocab_size <= 260 else token_run
    references = {"text": (text, text_run), "ids": (tokens, token_run), "low": ((tokens & 255).astype(np.uint8), token_run)}
    arrays = {name: np.frombuffer(view, np.uint8) for name, view in views.items()}
    kinds, found = {name: encodings(data, vocab_size) for name, data in arrays.items()}, {name: [] for name in views}
    for reference, (symbols, shortest) in references.items():
        windows = Windows(symbols, shortest, distinct, values)
        for name, data in counted(arrays.items(), f"searching for {reference}", len(arrays), " views"):
            for kind in kinds[name] if len(windows.hashes) else []:
                if kind.reference == reference:
                    hits = search(kind, data, windows, values, limit)
                    found[name] += [Run(name, kind.name, place // kind.places, position, length) for place, position, length in hits]
    return [run for name in views for run in found[name]]
