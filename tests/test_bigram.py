"""The bigram table that models are measured against."""

import numpy as np
import pytest

from benchmarks import bigram


def test_a_table_of_pairs_is_counted_by_hand_in_parts(monkeypatch):
    monkeypatch.setattr(bigram, "PART", 7)
    generator = np.random.default_rng(0)
    shards, held = [generator.integers(0, 5, count).astype(np.uint16) for count in (40, 21)], generator.integers(0, 5, 30).astype(np.uint16)
    counts = np.ones((5, 5))
    for shard in shards:
        for first, second in zip(shard, shard[1:]):
            counts[first, second] += 1
    wanted = np.mean([-np.log(counts[a, b] / counts[a].sum()) for a, b in zip(held, held[1:])])
    assert bigram.bigram_loss(shards, held, 5) == pytest.approx(wanted, rel=1e-12)
    assert bigram.bigram_loss(shards[:1], held, 5) != pytest.approx(wanted, rel=1e-3)
