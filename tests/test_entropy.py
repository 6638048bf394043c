"""The entropy coder: exact inverses of any symbols, close to the entropy, below it where rows or columns differ, never above its bound."""

import hashlib

import numpy as np
import pytest

from trit.compress.entropy import (
    ACTIVITY,
    COLUMN,
    DIFFERENCES,
    SHARED,
    TREND,
    UNIFORM,
    Stream,
    Walk,
    best_mode,
    contexts,
    decode_stream,
    decode_streams,
    encode_stream,
    encode_streams,
    lane_count,
    mode_known,
    refreshed,
    stream_bits,
)
from trit.compress.plan import entropy, stream_bound

GOLDEN = "7dbeccc90cebccdb"  # the bytes of a fixed set of streams: the same on every machine and in every later version


def trits(generator, count, zero):
    """Independent digits 0, 1, 2 with a share `zero` of ones (which stand for zero)."""
    return np.where(generator.random(count) < zero, 1, 2 * generator.integers(0, 2, count))


def coded(streams, symbols):
    """(modes, bytes) of the coder; the symbols come back."""
    modes, others, data = encode_streams(streams, symbols, {})
    assert not others
    for found, part in zip(decode_streams(streams, modes, data), symbols, strict=True):
        assert np.array_equal(found, part)
    return modes, data


def random_stream(generator):
    """(Stream, symbols) of any kind: even, skewed, constant, differing by row or by column, rising."""
    columns = int(generator.choice([1, 1, 2, 7, 50, 96]))
    base = int(generator.choice([3, 7, 15, 31, 233, 256, 4641]))
    rows = int(generator.integers(1, 3000 // columns + 2))
    middle, kind = base // 2, generator.integers(6)
    if kind == 0:
        x = generator.integers(0, base, (rows, columns))
    elif kind == 1:
        x = np.full((rows, columns), generator.integers(0, base))
    elif kind == 2:
        x = (np.cumsum(generator.integers(0, 3, rows * columns)) % base).reshape(rows, columns)
    else:
        spread = base / 8 * np.exp(generator.normal(0, 0.7, (rows, 1) if kind == 3 else (1, columns)))
        x = np.clip(np.rint(middle + generator.standard_normal((rows, columns)) * spread), 0, base - 1).astype(np.int64)
    return Stream(base, rows * columns, columns), x.reshape(-1)


@pytest.mark.parametrize("seed", range(12))
def test_streams_come_back(seed):
    generator = np.random.default_rng(seed)
    streams, symbols = zip(*(random_stream(generator) for _ in range(generator.integers(1, 7))), strict=True)
    modes, data = coded(streams, symbols)
    lanes = lane_count(streams)
    predicted = sum(stream_bits(stream, mode, part, lanes) for stream, mode, part in zip(streams, modes, symbols)) / 8
    assert predicted - 4 <= len(data) <= predicted + 8 * lanes + 4
    assert len(data) <= 8 * lanes + sum(stream_bound(stream, lanes) for stream in streams)
    assert coded(streams, symbols) == (modes, data)


def test_every_mode_comes_back_with_one_lane_and_with_many():
    generator = np.random.default_rng(0)
    stream = Stream(3, 33_000, 500)
    symbols = trits(generator, stream.count, 0.5)
    for filler in (1, 3_000_000):  # the second makes many lanes
        streams = [stream, Stream(3, filler, 1)]
        lanes = lane_count(streams)
        assert lanes == (1 if filler == 1 else 64)
        for mode in (UNIFORM, SHARED, COLUMN, ACTIVITY, TREND):
            states, words = np.full(lanes, 1 << 31), []
            encode_stream(stream, mode, symbols, states, words)
            found, at = decode_stream(stream, mode, states, np.concatenate(words[::-1]).astype(np.int64), 0)
            assert np.array_equal(found, symbols) and at == sum(map(len, words)) and (states == 1 << 31).all()


@pytest.mark.parametrize("zero", [1 / 3, 0.37, 0.44, 0.6])
def test_independent_trits_cost_their_entropy(zero):
    symbols = trits(np.random.default_rng(1), 1_500_000, zero)
    stream = Stream(3, len(symbols), 1000)
    _, data = coded([stream], [symbols])
    assert 8 * len(data) / len(symbols) <= 1.002 * entropy(np.bincount(symbols))


@pytest.mark.parametrize("axis", [0, 1])
def test_trits_whose_rows_or_columns_differ_cost_less(axis):
    generator = np.random.default_rng(2)
    zero = generator.uniform(0.15, 0.75, (800, 1) if axis == 0 else (1, 500))
    symbols = np.where(generator.random((800, 500)) < zero, 1, 2 * generator.integers(0, 2, (800, 500))).reshape(-1)
    modes, data = coded([Stream(3, symbols.size, 500)], [symbols])
    ideal = np.mean([entropy([z, (1 - z) / 2, (1 - z) / 2]) for z in zero.reshape(-1)])
    assert 8 * len(data) / symbols.size < 0.985 * entropy(np.bincount(symbols)) and modes[0] == (ACTIVITY if axis == 0 else COLUMN)
    assert 8 * len(data) / symbols.size < 1.02 * ideal


def test_columns_whose_mean_drifts_and_rows_that_stray_cost_less():
    generator = np.random.default_rng(8)
    drift = generator.normal(0, 0.25, (3000, 40)).cumsum(0) * 0.5
    symbols = np.clip(np.rint(drift + generator.standard_normal((3000, 40)) * generator.choice([0.3, 1.5], (3000, 1))), -7, 7).astype(
        np.int64
    )
    stream, symbols = Stream(15, 120_000, 40), symbols.reshape(-1) + 7
    modes, data = coded([stream, Stream(3, 3_000_000, 1)], [symbols, np.ones(3_000_000, np.int64)])
    assert (
        modes[0] == TREND
        and 8 * len(data) / symbols.size < 0.9 * min(stream_bits(stream, mode, symbols, 8) for mode in range(4)) / symbols.size
    )


def test_differences_pay_where_neighbours_are_alike():
    walk = 2000 + np.random.default_rng(3).integers(-2, 3, 3000).cumsum()
    stream = Stream(4641, 3000, 1)
    bits, mode = best_mode(stream, walk, 1)
    assert mode == DIFFERENCES + SHARED and bits < 3000 * 3.2
    coded([stream], [walk])


def test_tables_are_whole_and_rising():
    generator = np.random.default_rng(4)
    for tables, base, most in ((1, 3, 70_000_000), (64, 3, 1000), (254, 255, 3), (1, 7425, 1), (3, 5, 0)):
        starts = refreshed(generator.integers(0, most + 1, (tables, base)))
        assert starts.dtype == np.int64 and len(starts) == tables * base + 1
        assert (np.diff(starts) > 0).all() and (starts[:-1:base] == np.arange(tables) << 16).all() and starts[-1] == tables << 16


def test_modes_need_enough_symbols():
    assert mode_known(Stream(3, 48 * 100, 100), COLUMN) and not mode_known(Stream(3, 47 * 100, 100), COLUMN)
    assert not mode_known(Stream(233, 5000, 1), ACTIVITY) and mode_known(Stream(3, 4000, 8), ACTIVITY)
    assert mode_known(Stream(9, 4, 1), DIFFERENCES + SHARED) and not mode_known(Stream(9, 4, 2), DIFFERENCES + SHARED)
    assert not any(mode_known(Stream(9, 10**6, 1), mode) for mode in (5, 7, 8, 10, 15, 16, 255))
    assert (
        mode_known(Stream(9, 22_000, 5), TREND)
        and not mode_known(Stream(9, 21_000, 5), TREND)
        and not mode_known(Stream(3, 10**6, 5), TREND)
    )
    assert contexts(Stream(3, 10, 5), COLUMN) == 5


def test_the_same_bytes_for_ever():
    x = np.arange(1, 70_001, dtype=np.int64)
    mixed = x * 2654435761 % (1 << 32) >> 7
    streams = [Stream(3, 70_000, 100), Stream(15, 6000, 8), Stream(233, 900, 1), Stream(256, 500, 1)]
    symbols = [mixed % 9 % 4 % 3, (mixed[:6000] % (x[:6000] % 8 + 4)), 90 + (x[:900] // 7 + mixed[:900] % 3) % 40, mixed[:500] % 256]
    modes, data = coded(streams, symbols)
    assert hashlib.sha256(bytes(modes) + data).hexdigest()[:16] == GOLDEN


@pytest.mark.parametrize("change", ["short", "long", "state", "word"])
def test_damage_is_noticed(change):
    generator = np.random.default_rng(6)
    stream, symbols = Stream(3, 200_000, 100), trits(generator, 200_000, 0.4)
    modes, _, data = encode_streams([stream], [symbols], {})
    damaged = {"short": data[:-4], "long": data + bytes(4)}.get(change) or bytearray(data)
    if change in ("state", "word"):
        damaged[3 if change == "state" else len(data) // 2] ^= 16
    with pytest.raises(IndexError):
        decode_streams([stream], modes, bytes(damaged))


def test_hostile_states_cost_no_more_steps(monkeypatch):
    stream, generator = Stream(3, 100_000, 100), np.random.default_rng(7)
    symbols = trits(generator, 100_000, 0.4)
    modes, _, data = encode_streams([stream], [symbols], {})
    steps, advance = [], Walk.advance
    monkeypatch.setattr(Walk, "advance", lambda self, found: steps.append(len(found)) or advance(self, found))
    decode_streams([stream], modes, data)
    honest = len(steps)
    for mode in (0, 1, 2, 3):
        steps.clear()
        with pytest.raises(IndexError):
            decode_streams([stream], [mode], generator.bytes(8 * lane_count([stream]) + 50_000))
        assert 0 < len(steps) <= honest
