"""Training windows: every rank gets its part of one stream, positions resume bit for bit, held-out tokens stay out."""

import itertools
import threading

import numpy as np
import pytest
from data_fixtures import settings

from trit.data.loader import TokenLoader, calibration_tokens, open_loader, validation_tokens
from trit.data.shards import write_shard

LENGTHS = (333, 17, 9, 250)


@pytest.fixture
def data_path(tmp_path):
    """Four training shards (one too short for a window) and two of validation; token values are stream positions."""
    start = 0
    for number, length in enumerate(LENGTHS):
        write_shard(tmp_path / f"x_train_{number:06d}.bin", np.arange(start, start + length))
        start += length
    write_shard(tmp_path / "x_val_000000.bin", np.arange(40))
    write_shard(tmp_path / "x_val_000001.bin", np.arange(40, 45))
    return tmp_path


def batches(count, **arguments):
    loader = TokenLoader(**arguments)
    try:
        return [loader.next_batch() for _ in range(count)]
    finally:
        loader.close()


def arrays():
    edges = np.cumsum((0, *LENGTHS))
    return [np.arange(a, b, dtype=np.uint16) for a, b in itertools.pairwise(edges)]


def same(left, right):
    return all(np.array_equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


def test_batches_are_shifted_windows_inside_shards(data_path):
    cfg = settings(vocab_size=700)
    loader = open_loader(cfg, data_path, 7)
    edges = np.cumsum(LENGTHS)
    for _ in range(20):
        inputs, targets = loader.next_batch()
        assert inputs.shape == targets.shape == (4, 16) and inputs.dtype == targets.dtype == np.int32
        assert np.array_equal(targets, inputs + 1) and np.array_equal(inputs[:, 1:], targets[:, :-1])
        assert np.array_equal(np.searchsorted(edges, inputs[:, 0], "right"), np.searchsorted(edges, targets[:, -1], "right"))
        assert inputs.flags.c_contiguous and targets.flags.c_contiguous
    assert loader.position == 20
    loader.close()


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_partition_the_stream_exactly(world):
    arguments = {"shards": arrays(), "seq_len": 16, "rows": 8, "seed": 3}
    alone = batches(12, **arguments)
    ranks = [batches(12, **arguments, rank=rank, world=world) for rank in range(world)]
    for step, whole in enumerate(alone):
        for part in (0, 1):
            assert np.array_equal(np.concatenate([ranks[rank][step][part] for rank in range(world)]), whole[part])


def test_an_epoch_visits_every_window_once():
    shards = arrays()
    windows = sum(max(1, (len(shard) - 1) // 16 - 1) for shard in shards if len(shard) > 16)
    loader_batches = batches(2 * windows, shards=shards, seq_len=16, rows=1, seed=5)
    starts = [int(inputs[0, 0]) for inputs, _ in loader_batches]
    first, second = starts[:windows], starts[windows:]
    for epoch in (first, second):
        assert min(np.diff(sorted(epoch))) >= 16, "windows of an epoch do not overlap"
    assert first != sorted(first) and first != second
    assert set(first) != set(second), "another offset each epoch"


def test_everything_is_reached_in_some_epoch():
    shards = [np.arange(100, dtype=np.uint16)]
    seen = {int(token) for _, targets in batches(400, shards=shards, seq_len=16, rows=1, seed=1) for token in targets[0]}
    assert seen == set(range(1, 100))


@pytest.mark.parametrize("position", [1, 7, 30])
def test_resume_gives_the_same_batches(position):
    arguments = {"shards": arrays(), "seq_len": 16, "rows": 4, "seed": 11, "rank": 1, "world": 2}
    whole = batches(position + 8, **arguments)
    assert same(batches(8, **arguments, position=position), whole[position:])


def test_prefetched_batches_equal_direct_ones_and_seeds_differ():
    arguments = {"shards": arrays(), "seq_len": 16, "rows": 4, "seed": 2}
    direct = TokenLoader(**arguments)
    assert same(batches(30, **arguments), [direct.batch(step) for step in range(30)])
    assert not same(batches(3, **arguments), batches(3, **(arguments | {"seed": 3})))


def test_errors_of_the_thread_reach_the_caller_and_stay():
    class Broken(np.ndarray):
        def __getitem__(self, key):
            raise OSError("disk gone")

    loader = TokenLoader([np.arange(100).view(Broken)], 16, 4, 1)
    for _ in range(2):
        with pytest.raises(OSError, match="disk gone"):
            loader.next_batch()
    assert loader.position == 0
    loader.close()


def test_close_ends_the_thread():
    before = threading.active_count()
    loader = TokenLoader(arrays(), 16, 4, 1)
    loader.next_batch()
    assert len(loader.ahead) <= 4
    loader.close()
    loader.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError):
        loader.next_batch()


def test_calibration_tokens_are_never_trained_on(data_path):
    cfg = settings(vocab_size=700, calibration=260)  # more than the last shard holds
    held = calibration_tokens(cfg, data_path)
    assert held.dtype == np.int32 and held.tolist() == list(range(sum(LENGTHS) - 260, sum(LENGTHS)))
    loader = open_loader(cfg, data_path, 1)
    seen = {int(token) for _ in range(60) for part in loader.next_batch() for token in part.ravel()}
    loader.close()
    assert not seen & set(held.tolist()) and len(seen) > 300


def test_calibration_can_be_off(data_path):
    assert calibration_tokens(settings(vocab_size=700, calibration=0), data_path).shape == (0,)


def test_validation_tokens_are_the_whole_split(data_path):
    tokens = validation_tokens(settings(), data_path)
    assert tokens.dtype == np.int32 and tokens.tolist() == list(range(45))
    with pytest.raises(ValueError, match="outside model.vocab_size=44"):
        validation_tokens(settings(vocab_size=44), data_path)


def test_too_small_splits_say_what_to_lower(data_path):
    for cfg in (settings(700, calibration=600), settings(700, calibration=10_000), settings(700, seq_len=400, batch_tokens=400)):
        with pytest.raises(ValueError, match=r"609 training tokens are too few for compress.calibration_tokens=.*lower one"):
            open_loader(cfg, data_path, 1)
    with pytest.raises(ValueError, match="do not divide among 3 ranks"):
        open_loader(settings(700), data_path, 1, 0, 3)
    with pytest.raises(ValueError, match="the longest has 609"):
        TokenLoader([np.arange(609)], 700, 4, 1)
