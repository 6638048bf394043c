"""Adaptive entropy coder of integer symbols: interleaved rANS with tables learned on the way, in whole numbers only.

The streams of an artifact share one run of lanes. A stream of `count` symbols is cut into equal stretches, one a lane; in every step
each lane codes one symbol (vectorised in numpy: on one core more than ten million symbols a second). The table of frequencies is
made anew at steps 0, 1, 2 .. and then every sixteenth of the way, from what both sides have seen by then, so no table is stored.
Every operation is exact integer arithmetic: the same bytes on every machine.

A stream's mode says what a symbol's table is chosen by. rANS: Duda 2013, arXiv 1311.2540; interleaving: Giesen 2014, arXiv 1402.3392.
Units: symbols are integers 0 .. base - 1.
"""

from typing import NamedTuple

import numpy as np

PRECISION = 16  # bits of a table's frequencies
FLOOR = 1 << 31  # lane states stay in FLOOR .. 2**63 - 1: so much above the table that rounding costs less than 2**-14 bit a symbol
WORD = 32  # bits that a lane gives or takes at a time
UNIFORM = 0  # every symbol alike: bounds the size whatever the data
SHARED = 1  # one table
COLUMN = 2  # a table for every column
ACTIVITY = 3  # a table for every level of the mean magnitude so far in the row
TREND = 4  # a table for every running mean of the column and every level of the row's distance from such means so far; not for trits
DIFFERENCES = 8  # added to a mode: the symbols are differences from the one before, modulo base
LEVELS = 64
MEANS = 15
SURPRISES = 10
STEPS_AHEAD = 512  # a stream is spread over few enough lanes that each codes at least this many symbols
TREND_STEPS = 16384  # the same where each lane must first learn the means of its columns


class Stream(NamedTuple):
    """What both sides know of a stream: symbols below `base`, `count` of them in rows of `columns`."""

    base: int
    count: int
    columns: int


def power_below(n):
    """Largest power of two at most `n`, at least 1."""
    return 1 << max(int(n).bit_length() - 1, 0)


def lane_count(streams):
    """Lanes of an artifact: more are faster, and each costs 4 bytes."""
    return min(power_below(sum(stream.count for stream in streams) // 32768), 1024)


def contexts(stream, mode):
    """Number of tables of a mode."""
    return (1, 1, stream.columns, LEVELS, MEANS * SURPRISES)[mode]


def mode_known(stream, mode):
    """Whether a stream may have this mode: tables need enough symbols to learn from, differences a row of one."""
    if mode >= DIFFERENCES:
        return mode == DIFFERENCES + SHARED and stream.columns == 1
    if mode == TREND and stream.base == 3:
        return False
    return mode <= SHARED or (mode <= TREND and 16 * contexts(stream, mode) * stream.base <= stream.count)


class Walk:
    """The lanes of a stream from step to step: which table each lane's next symbol is coded with."""

    def __init__(self, stream, mode, lanes):
        self.mode, self.columns, self.middle = mode, stream.columns, stream.base // 2
        self.lanes = min(lanes, power_below(stream.count // (TREND_STEPS if mode == TREND else STEPS_AHEAD)))
        self.steps = -(-stream.count // self.lanes)
        self.column = np.arange(self.lanes) * self.steps % self.columns
        self.seen = self.column * 0
        self.total = self.column * 0
        if mode == TREND:
            self.means = np.zeros((self.lanes, self.columns), np.int64)

    def tables(self):
        """Table of every lane's next symbol (lanes,)."""
        if self.mode == COLUMN:
            return self.column
        if self.mode == ACTIVITY:
            level = LEVELS * (self.total + 2 * self.middle) // ((self.seen + 8) * self.middle)
            return np.minimum(level, LEVELS - 1)
        if self.mode == TREND:
            mean = (14 * self.means[np.arange(self.lanes), self.column] + 256 * self.middle) // (512 * self.middle) + 7
            return SURPRISES * mean + np.minimum(35 * self.total // (512 * self.middle * (self.seen + 2)), SURPRISES - 1)
        return 0 * self.column

    def advance(self, symbols):
        """Take note of one symbol a lane."""
        away = symbols - self.middle
        if self.mode == TREND:
            place = np.arange(self.lanes), self.column
            away = 256 * away - self.means[place]
            self.means[place] += away >> 3
        self.column = (self.column + 1) % self.columns
        if self.mode >= ACTIVITY:
            inside = self.column > 0
            self.seen = (self.seen + 1) * inside
            self.total = (self.total + abs(away)) * inside


def refreshed(counts):
    """Counts (tables, base) -> cumulated frequencies of all tables in one rising array, table t beginning at t << PRECISION.

    A table's counts are smoothed by 32 symbols drawn as all tables together are, and these by their neighbours, for what was seen says
    something of symbols close by; no frequency is below one.
    """
    tables, base = counts.shape
    total = counts.sum(0)
    shared = 16 * total + 1
    shared[1:] += 4 * total[:-1]
    shared[:-1] += 4 * total[1:]
    weights = 2048 * counts + (shared << 16) // shared.sum() + 1
    ends = weights.cumsum(1)
    starts = (ends - weights) * ((1 << PRECISION) - base) // ends[:, -1:] + np.arange(base) + (np.arange(tables)[:, None] << PRECISION)
    return np.append(starts, tables << PRECISION)


def next_refresh(step):
    """Step at which the tables are made anew after `step`."""
    return step + 1 + step // 16


def decode_stream(stream, mode, states, words, at):
    """Symbols (count,) of a stream; `states` (lanes,) move on in place. Returns (symbols, position in `words` after the stream).

    IndexError where the words do not suffice.
    """
    walk = Walk(stream, mode, len(states))
    symbols = np.empty((walk.steps, walk.lanes), np.uint8 if stream.base < 257 else np.uint16)
    counts, used, refresh = np.zeros((contexts(stream, mode), stream.base), np.int64), [], 0
    x = states[: walk.lanes]
    for step in range(walk.steps):
        if step == refresh:
            if used and mode:
                counts += np.bincount(np.concatenate(used), minlength=counts.size).reshape(counts.shape)
            table, used, refresh = refreshed(counts), [], next_refresh(step)
        lane_tables = walk.tables()
        key = (lane_tables << PRECISION) + (x & ((1 << PRECISION) - 1))
        found = table.searchsorted(key, "right") - 1
        start = table[found]
        x = (table[found + 1] - start) * (x >> PRECISION) + key - start
        low = x < FLOOR
        needed = np.count_nonzero(low)
        if needed:
            if at + needed > len(words):
                raise IndexError
            x[low] = (x[low] << WORD) + words[at : at + needed]
            at += needed
        used.append(found)
        found = found - lane_tables * stream.base
        symbols[step] = found
        walk.advance(found)
    states[: walk.lanes] = x
    return symbols.T.reshape(-1)[: stream.count], at


def placed(stream, mode, symbols, lanes):
    """Places in the counts (steps, lanes) of symbols (count,) as the lanes code them; the tail is filled with the middle symbol."""
    if mode >= DIFFERENCES:
        symbols, mode = np.diff(symbols, prepend=0) % stream.base, mode - DIFFERENCES
    walk = Walk(stream, mode, lanes)
    filled = np.full(walk.steps * walk.lanes, stream.base // 2, np.int64)
    filled[: stream.count] = symbols
    places = filled.reshape(walk.lanes, walk.steps).T.copy()
    if mode > SHARED:
        for now in places:
            before = walk.tables() * stream.base
            walk.advance(now)
            now += before
    return places


def intervals(stream, mode, places):
    """Yields (slice of steps, table, counts of new places (tables * base,)) between refreshes, learning as the reader will."""
    counts, step = np.zeros((contexts(stream, mode % DIFFERENCES), stream.base), np.int64), 0
    while step < len(places):
        now = slice(step, next_refresh(step))
        new = np.bincount(places[now].reshape(-1), minlength=counts.size)
        yield now, refreshed(counts), new
        if mode:
            counts += new.reshape(counts.shape)
        step = next_refresh(step)


def stream_bits(stream, mode, symbols, lanes):
    """Bits that a stream will take."""
    found = intervals(stream, mode, placed(stream, mode, symbols, lanes))
    return float(sum((new * (PRECISION - np.log2(np.diff(table)))).sum() for _, table, new in found))


def encode_stream(stream, mode, symbols, states, words):
    """Code `symbols` (count,) from the last to the first; `states` (lanes,) move in place, `words` gets arrays of uint32, last first."""
    places = placed(stream, mode, symbols, len(states))
    starts, sizes = np.empty(places.shape, np.int64), np.empty(places.shape, np.int64)
    for now, table, _ in intervals(stream, mode, places):
        starts[now] = table[places[now]] & ((1 << PRECISION) - 1)
        sizes[now] = table[places[now] + 1] - table[places[now]]
    x = states[: places.shape[1]]
    for start, size in zip(starts[::-1], sizes[::-1]):
        high = x >= size << (63 - PRECISION)
        if high.any():
            words.append((x[high] & 0xFFFFFFFF).astype("<u4"))
            x[high] >>= WORD
        whole, part = np.divmod(x, size)
        x = (whole << PRECISION) + part + start
    states[: places.shape[1]] = x


def best_mode(stream, symbols, lanes):
    """(bits, mode) of the mode that takes the fewest bits."""
    modes = [mode for mode in range(2 * DIFFERENCES) if mode_known(stream, mode)]
    return min((stream_bits(stream, mode, symbols, lanes), mode) for mode in modes)


def encode_streams(streams, symbols, others):
    """(modes, bytes of the streams that another coder stores, bytes of this coder) of streams and their symbols.

    `others` holds for some streams a (mode, bytes) to take where that is smaller.
    """
    lanes = lane_count(streams)
    found = [best_mode(stream, part, lanes) for stream, part in zip(streams, symbols)]
    kept = {i: other for i, other in others.items() if 8 * len(other[1]) + 32 < found[i][0]}
    modes = [kept[i][0] if i in kept else mode for i, (_, mode) in enumerate(found)]
    states, words = np.full(lanes, FLOOR), []
    for i in reversed(range(len(streams))):
        if i not in kept:
            encode_stream(streams[i], modes[i], symbols[i], states, words)
    coded = states.astype("<i8").tobytes() + b"".join(word.tobytes() for word in reversed(words))
    return modes, [kept[i][1] for i in sorted(kept)], coded


def decode_streams(streams, modes, data):
    """[symbols (count,), ...] of `encode_streams`, None for streams that another coder stores. IndexError where `data` is not
    exactly as long as they need."""
    size = 8 * lane_count(streams)
    states, words = np.frombuffer(data[:size], "<i8").astype(np.int64), np.frombuffer(data[size:], "<u4").astype(np.int64)
    found, at = [], 0
    for stream, mode in zip(streams, modes):
        symbols = None
        if mode < 2 * DIFFERENCES:
            symbols, at = decode_stream(stream, mode % DIFFERENCES, states, words, at)
            if mode >= DIFFERENCES:
                symbols = symbols.cumsum() % stream.base
        found.append(symbols)
    if at != len(words) or (states != FLOOR).any():
        raise IndexError
    return found
