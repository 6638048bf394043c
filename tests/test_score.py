"""The scorer: every position once, from the past alone, whatever learns beside it; the same result for any batch size, twice over."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from model_fixtures import BACKENDS, EVAL_SETS, evaluating, load_arch, random_arrays

from trit.data.byte_count import byte_table
from trit.eval.score import score_tokens, score_windows, summarise, window_chunks
from trit.eval.temperature import artifact_specs

ARCH = "unet"


def text(count, seed=0):
    """Token ids (count,) below 64 with repetitions and document starts."""
    generator = np.random.default_rng(seed)
    words = [generator.integers(2, 64, generator.integers(2, 7)) for _ in range(12)] + [np.ones(1, np.int64)]
    return np.concatenate([words[i] for i in generator.integers(0, 13, count)])[:count]


def scored(part, tokens, backend="torch", rows_at=(), **overrides):
    """(losses, rows) of a tiny model with random weights under the evaluator part EVAL_SETS[part]."""
    cfg, side, arch = evaluating(ARCH, part, **overrides), BACKENDS[backend], load_arch(ARCH)
    arrays = random_arrays(artifact_specs(arch, cfg))
    model = side.module.evaluator(side.ops, arch, cfg, arrays, side.module.Process(0, 1, "cpu"))
    losses, counts, rows = score_tokens(side.ops, arch, cfg, model, tokens, None, rows_at)
    assert (counts == 1).all() and np.isfinite(losses).all()
    for name, array in arrays.items():
        assert (side.ops.to_numpy(model.weights[name]) == array).all(), name
    return losses, rows


def plan(length, stride):
    """What `score_windows` reads of a `Config`."""
    return SimpleNamespace(eval=SimpleNamespace(eval_seq_len=length, eval_stride=stride, eval_segment_tokens=0))


@pytest.mark.parametrize("positions", [1, 2, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("stride", [1, 3, 4, 16])
def test_windows_cover_every_position_once_with_full_context(positions, stride):
    counts, windows = np.zeros(positions, int), score_windows(plan(16, stride), positions)
    for start, first, width in windows:
        counts[start + first : start + width] += 1
        assert start >= 0 and start + width <= positions
        assert width == min(16, positions)
    assert (counts == 1).all()
    for tokens in (1, 7, 30, 1000):
        chunks = window_chunks(windows, tokens)
        assert [window for chunk in chunks for window in chunk] == windows
        assert all(len(chunk) == 1 or sum(width - first for _, first, width in chunk) <= tokens for chunk in chunks)


def test_stride_equal_to_length_gives_chunks():
    assert score_windows(plan(16, 16), 48) == [(0, 0, 16), (16, 0, 16), (32, 0, 16)]


@pytest.mark.parametrize("part", EVAL_SETS)
def test_every_part_changes_the_score(part):
    """Otherwise the tests below would prove nothing about it."""
    tokens = text(400)
    assert part == "plain" or (scored(part, tokens)[0] != scored("plain", tokens)[0]).any()


@pytest.mark.parametrize("part", EVAL_SETS)
def test_result_does_not_depend_on_batch_size_and_repeats(part):
    tokens = text(400)
    losses = scored(part, tokens)[0]
    for batch in (1, 7, 32):
        assert (scored(part, tokens, eval_batch_seqs=batch)[0] == losses).all(), batch


@pytest.mark.slow
@pytest.mark.parametrize("part", ["plain", "lora"])
def test_a_compiled_evaluation_scores_alike_and_repeats(part):
    tokens = text(700)
    found = scored(part, tokens, eval_compile="true")[0]
    assert np.abs(found - scored(part, tokens)[0]).max() < 1e-4
    assert (found == scored(part, tokens, eval_compile="true")[0]).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("part", EVAL_SETS)
def test_no_loss_depends_on_later_tokens(part, backend):
    """Prefix replay of the complete evaluator: cuts inside a window, at chunk and memory borders and next to them."""
    tokens, generator = text(333), np.random.default_rng(1)
    losses = scored(part, tokens, backend)[0]
    for cut in (1, 31, 32, 95, 96, 97, 103, 104, 160, 250, 331) if backend == "torch" else (97, 160):
        changed = tokens.copy()
        changed[cut + 1 :] = generator.integers(1, 64, len(tokens) - cut - 1)
        after = scored(part, changed, backend)[0]
        assert (after[:cut] == losses[:cut]).all() and (after[cut:] != losses[cut:]).any(), cut


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("part", EVAL_SETS)
def test_rows_are_whole_distributions_and_give_the_losses(part, backend):
    tokens, rows_at = text(333), [0, 30, 32, 95, 96, 200, 331]
    losses, rows = scored(part, tokens, backend, rows_at)
    assert rows.shape == (7, 64) and np.abs(np.exp(rows).sum(-1) - 1.0).max() < 1e-6
    assert np.abs(losses[rows_at] + rows[range(7), tokens[1:][rows_at]]).max() < 2e-6


@pytest.mark.parametrize("part", EVAL_SETS)
def test_rows_are_fixed_before_the_token_is_seen(part):
    """The loss of any other token at the same place is what its row said."""
    tokens, at = text(333), 250
    rows = scored(part, tokens, rows_at=[at])[1]
    for other in (0, 1, 5, 63):
        changed = tokens.copy()
        changed[at + 1] = other
        assert scored(part, changed)[0][at] == pytest.approx(-rows[0, other], abs=2e-6)


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
        scored("plain", np.array([1]))
