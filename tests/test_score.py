"""The scorer: every position once, the same result for any batch size and number of ranks, causal end to end."""

import math

import numpy as np
import pytest

from trit.config_load import load
from trit.data.byte_count import byte_table
from trit.eval.certify import byte_accounting, normalised, prefix_replay, same_losses, split_documents, within_budget
from trit.eval.score import score_tokens, score_windows, summarise


def config(length=16, stride=4, batch=3):
    return load(None, {}, [f"eval.eval_seq_len={length}", f"eval.eval_stride={stride}", f"eval.eval_batch_seqs={batch}"])[0]


def causal_losses(inputs, targets):
    """A made-up model: the loss depends on the target and on the three inputs before it."""
    past = np.stack([np.pad(inputs, ((0, 0), (k, 0)))[:, : inputs.shape[1]] for k in range(3)])
    return ((past * np.array([1, 3, 7]).reshape(3, 1, 1)).sum(0) + targets).astype(np.float32) % 11


def leaky_losses(inputs, targets):
    """Sees the next target: what prefix replay must catch."""
    return causal_losses(inputs, targets) + np.roll(targets, -1, 1).astype(np.float32)


@pytest.mark.parametrize("positions", [1, 2, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("stride", [1, 3, 4, 16])
def test_windows_cover_every_position_once_with_full_context(positions, stride):
    counts = np.zeros(positions, int)
    for start, first, width in score_windows(positions, 16, stride):
        counts[start + first : start + width] += 1
        assert start >= 0 and start + width <= positions
        assert width == min(16, positions)
    assert (counts == 1).all()


def test_stride_equal_to_length_gives_chunks():
    assert score_windows(48, 16, 16) == [(0, 0, 16), (16, 0, 16), (32, 0, 16)]


def test_result_does_not_depend_on_batch_or_ranks():
    tokens = np.random.default_rng(0).integers(0, 50, 203)
    whole, counts = score_tokens(config(), causal_losses, tokens, 0, 1)
    assert (counts == 1).all()
    for batch in (1, 7, 32):
        assert (score_tokens(config(batch=batch), causal_losses, tokens, 0, 1)[0] == whole).all()
    for world in (2, 3, 5):
        parts = [score_tokens(config(), causal_losses, tokens, rank, world) for rank in range(world)]
        assert (sum(p[0] for p in parts) == whole).all() and (sum(p[1] for p in parts) == 1).all()


def test_bits_per_byte_of_a_known_model():
    tokens = np.array([1, *(np.frombuffer(b"hello", np.uint8) + 4), 1, *(np.frombuffer(b"hi", np.uint8) + 4)])
    losses = np.full(len(tokens) - 1, math.log(2.0))
    score = summarise(losses, np.ones(len(losses), int), tokens, byte_table("byte260", 260))
    assert score.bytes == 7 and score.tokens == 8
    assert score.bpb == pytest.approx(8 / 7)  # the second BOS costs a bit and stands for no byte


def test_double_scoring_gaps_and_bad_losses_are_refused():
    tokens, table = np.arange(4, 10), byte_table("byte260", 260)
    counts = np.ones(5, int)
    counts[3] = 2
    with pytest.raises(RuntimeError, match="position 3 was scored 2 times"):
        summarise(np.ones(5), counts, tokens, table)
    with pytest.raises(RuntimeError, match="position 1 is not finite"):
        summarise(np.array([1, np.nan, 1, 1, 1]), np.ones(5, int), tokens, table)
    with pytest.raises(ValueError, match="nothing to score"):
        score_tokens(config(), causal_losses, np.array([1]), 0, 1)


def test_prefix_replay_passes_a_causal_model_and_catches_a_leak():
    tokens = np.random.default_rng(1).integers(0, 50, 300)
    assert prefix_replay(config(), causal_losses, tokens, 50).verdict == "pass"
    assert prefix_replay(config(), leaky_losses, tokens, 50).verdict == "fail"


def test_wrong_byte_counts_are_caught():
    text = np.array([1, *(np.frombuffer("naïve text".encode(), np.uint8) + 4)])
    assert byte_accounting(text, "byte260", 260).verdict == "pass"
    broken = np.array([1, *(np.frombuffer("naïve".encode()[:-3], np.uint8) + 4)])  # ends inside a character: decoding replaces it
    assert byte_accounting(broken, "byte260", 260).verdict == "fail"


def test_unnormalised_rows_are_caught():
    generator = np.random.default_rng(2)
    logits, targets = generator.normal(size=(20, 9)), generator.integers(0, 9, 20)
    rows = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -rows[np.arange(20), targets]
    assert normalised(logits, losses, targets).verdict == "pass"
    assert normalised(logits, losses - 0.01, targets).verdict == "fail"


def test_small_checks():
    assert within_budget(10, 90, 100).verdict == "pass" and within_budget(11, 90, 100).verdict == "fail"
    assert same_losses("x", np.ones(3), np.ones(3), "a").verdict == "pass"
    assert same_losses("x", np.ones(3), np.ones(3) + 1e-12, "a").verdict == "fail"
    assert [len(d) for d in split_documents([1, 5, 6, 1, 7, 1])] == [3, 2, 1]
