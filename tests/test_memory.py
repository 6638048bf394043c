"""Online memories: exact counts, probabilities that sum to one whatever was absorbed, weights that follow the true gradient, fixed size."""

from collections import Counter

import numpy as np
import pytest

from trit.eval.eval_engram import EvalEngram
from trit.eval.mixture import NgramMixture
from trit.eval.ngram import NgramMemory

VOCABULARY = 7


def text(count, seed=0):
    """Token ids (count,) with repetitions."""
    generator = np.random.default_rng(seed)
    words = [generator.integers(0, VOCABULARY, generator.integers(1, 6)) for _ in range(9)]
    return np.concatenate([words[i] for i in generator.integers(0, 9, count)])[:count].astype(np.int64)


def pieces(tokens, seed=0):
    """`tokens` cut at random places, some pieces empty."""
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(tokens), 12))
    return np.split(tokens, cuts)


def grams(tokens, length, boundary=-1):
    """Counter of the grams of `length` tokens, without those that hold `boundary` anywhere but in front or at the end."""
    found = Counter(tuple(map(int, tokens[i : i + length])) for i in range(len(tokens) - length + 1))
    return Counter({gram: count for gram, count in found.items() if boundary not in gram[1:-1]})


def stored(memory):
    """{gram: (count, total, distinct)} of every node, by walking up to the roots."""
    found = {}

    def spelled(node):
        parent, token = divmod(int(memory.key[node]), memory.vocab_size)
        return (node,) if node < memory.vocab_size else spelled(parent) + (token,)

    for node in range(memory.size):
        gram = spelled(node)
        assert gram not in found
        found[gram] = int(memory.count[node]), int(memory.total[node]), int(memory.distinct[node])
    return found


@pytest.mark.parametrize("boundary", [-1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_counts_are_exact_however_the_text_is_cut(seed, boundary):
    tokens, memory = text(400, seed), NgramMemory(3, VOCABULARY, 4000, boundary)
    for piece in pieces(tokens, seed):
        memory.absorb(piece)
    found = stored(memory)
    for length in (2, 3, 4):
        wanted = grams(tokens, length, boundary)
        assert {gram: counts[0] for gram, counts in found.items() if len(gram) == length} == wanted
        for gram in grams(tokens, length - 1, boundary):
            followers = [count for longer, count in wanted.items() if longer[:-1] == gram]
            assert found[gram][1:] == (sum(followers), len(followers))
    at = int(memory.ends[0])
    assert at == tokens[-1] and memory.clock == len(tokens)


def test_contexts_are_those_of_the_absorbed_text_and_what_follows():
    tokens = text(300)
    memory, later = NgramMemory(3, VOCABULARY, 4000, -1), NgramMemory(3, VOCABULARY, 4000, -1)
    memory.absorb(tokens[:200])
    contexts, found = memory.walk(tokens[200:211])
    for column in range(11):
        for length in range(3):
            context, gram = (tuple(tokens[199 + column - length : end + column]) for end in (200, 201))
            assert (contexts[length, column] < 0) == (grams(tokens[:200], length + 1)[context] == 0 and length > 0)
            assert (found[length, column] < 0) == (grams(tokens[:200], length + 2)[gram] == 0)
    later.absorb(tokens[:200])
    assert (later.walk(tokens[200:203])[0] == contexts[:, :3]).all()  # what comes later changes nothing


def test_absorbing_what_was_walked_is_absorbing():
    tokens, left, right = text(600, 4), NgramMemory(3, VOCABULARY, 900, 2), NgramMemory(3, VOCABULARY, 900, 2)
    for piece in pieces(tokens, 4):
        left.absorb(piece, left.walk(piece) if len(piece) else None)
        right.absorb(piece)
    assert stored(left) == stored(right) and (left.ends == right.ends).all() and (left.recent == right.recent).all()


def test_recent_is_the_last_follower_and_when_its_position():
    memory = NgramMemory(2, VOCABULARY, 400, -1)
    memory.absorb(np.array([1, 2, 1, 3]))
    memory.absorb(np.array([1]))
    assert memory.recent[1] == 3 and memory.when[1] == 3 and memory.recent[3] == 1 and memory.recent[2] == 1
    assert memory.when[3] == 4, "positions count on from piece to piece"


def test_a_full_memory_forgets_the_rarest_and_stays_consistent():
    generator = np.random.default_rng(1)
    memory = NgramMemory(3, VOCABULARY, 220, -1)
    often = np.tile([1, 2, 3, 4], 25)
    for _ in range(40):
        memory.absorb(np.concatenate([often, generator.integers(0, VOCABULARY, 30)]))
        assert memory.size <= 220
        found = stored(memory)
        for gram, (count, total, distinct) in found.items():
            followers = [counts[0] for longer, counts in found.items() if longer[:-1] == gram]
            assert (total, distinct) == (sum(followers), len(followers))
            assert len(gram) == 1 or found[gram[:-1]][0] >= count > 0
    assert all(gram in found for gram in [(1, 2), (2, 3, 4), (4, 1, 2, 3)])
    memory.absorb(generator.integers(0, VOCABULARY, 5000))  # one piece far larger than the memory
    assert memory.size <= 220
    with pytest.raises(ValueError, match="too small"):
        NgramMemory(3, VOCABULARY, 27, -1)


def spread(generator, count):
    """Random probabilities (count, V)."""
    p = generator.random((count, VOCABULARY)) ** 3 + 1e-6
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("capacity", [4000, 200])
def test_mixture_sums_to_one_and_does_not_know_the_target(capacity):
    tokens, generator = text(600), np.random.default_rng(0)
    mixture = NgramMixture(3, VOCABULARY, capacity, -1, 0.4)
    mixture.memory.absorb(tokens[:1])
    for start in range(0, 590, 10):
        came, p = tokens[start + 1 : start + 11], spread(generator, 10)
        rows = np.stack([mixture.row(came[:i], p[i]) for i in range(10)])
        assert np.abs(rows.sum(-1) - 1).max() < 1e-12 and (rows > 0).all()
        scored, tape = mixture.score(came, p[range(10), came])
        assert np.abs(scored - rows[range(10), came]).max() < 1e-15
        mixture.learn(tape, came)


def test_mixture_weights_move_along_the_gradient():
    tokens, generator = text(300), np.random.default_rng(0)
    mixture = NgramMixture(3, VOCABULARY, 4000, -1, 1.0)
    mixture.memory.absorb(tokens[:200])
    mixture.logits += generator.normal(size=mixture.logits.shape)
    came, p = tokens[200:210], generator.random(10)

    def loss():
        return -np.log(mixture.score(came, p)[0]).sum()

    tape, start = mixture.score(came, p)[1], mixture.logits.copy()
    wanted = np.zeros_like(start)
    for index in np.ndindex(start.shape):
        mixture.logits[index] = start[index] + 1e-5
        up = loss()
        mixture.logits[index] = start[index] - 1e-5
        wanted[index] = (up - loss()) / 2e-5
        mixture.logits[index] = start[index]
    squares = mixture.squares.copy()
    mixture.learn(tape, came)
    assert np.abs(wanted).max() > 0.1
    assert np.abs((start - mixture.logits) - wanted / np.sqrt(squares + wanted**2)).max() < 1e-5


def test_mixture_learns_what_repeats():
    tokens, mixture = np.tile(np.arange(6), 100), NgramMixture(3, VOCABULARY, 4000, -1, 0.4)
    mixture.memory.absorb(tokens[:1])
    found = []
    for start in range(0, 590, 10):
        came = tokens[start + 1 : start + 11]
        p, tape = mixture.score(came, np.full(10, 1 / VOCABULARY))
        found.append(p.mean())
        mixture.learn(tape, came)
    assert found[0] == 1 / VOCABULARY and found[-1] > 0.95


def engram(entropy=0.0, buckets=32, slots=3, boundary=-1):
    made = EvalEngram(3, buckets, slots, entropy, 0.4, boundary)
    made.start(0)
    return made


def run_engram(memory, tokens, generator, step=10):
    for start in range(0, len(tokens) - 1, step):
        came = tokens[start + 1 : start + step + 1]
        _, tape = memory.probabilities(tokens[start + 1 : start + len(came)], came[:, None], np.log(spread(generator, len(came))))
        memory.learn(tape, came)


def test_eval_engram_sums_to_one_and_does_not_know_the_target():
    tokens, generator, memory = text(500), np.random.default_rng(0), engram()
    run_engram(memory, tokens[:401], generator)
    logs = np.log(spread(generator, 20))
    came = tokens[401:421, None]
    every = np.broadcast_to(np.arange(VOCABULARY), logs.shape)
    rows, _ = memory.probabilities(tokens[401:420], every, logs)
    assert np.abs(rows.sum(-1) - 1).max() < 1e-12 and np.abs(rows - np.exp(logs)).max() > 0.01
    scored, _ = memory.probabilities(tokens[401:420], came, logs)
    assert np.abs(scored - np.take_along_axis(rows, came, 1)).max() < 1e-15


def test_eval_engram_acts_only_where_the_model_is_unsure():
    tokens, generator, memory = text(500), np.random.default_rng(0), engram()
    run_engram(memory, tokens[:401], generator)
    logs = np.log(spread(generator, 20))
    entropy = -(np.exp(logs) * logs).sum(-1)
    memory.entropy = np.median(entropy)
    p, _ = memory.probabilities(tokens[401:420], np.broadcast_to(np.arange(VOCABULARY), logs.shape), logs)
    moved = np.abs(p - np.exp(logs)).max(-1) > 1e-12
    assert not moved[entropy <= memory.entropy].any() and moved[entropy > memory.entropy].any()


def test_eval_engram_weights_move_along_the_gradient():
    tokens, generator, memory = text(300), np.random.default_rng(0), engram()
    run_engram(memory, tokens[:201], generator)
    logs, came = np.log(spread(generator, 10)), tokens[201:211]
    memory.weights += generator.normal(size=memory.weights.shape)
    tape, start = memory.probabilities(tokens[201:210], came[:, None], logs)[1], memory.weights.copy()
    wanted = np.zeros_like(start)
    for index in range(len(start)):
        found = []
        for step in (1e-5, -1e-5):
            memory.weights = start.copy()
            memory.weights[index] += step
            found.append(-np.log(memory.probabilities(tokens[201:210], came[:, None], logs)[0]).sum())
        wanted[index] = (found[0] - found[1]) / 2e-5
    memory.weights, squares = start.copy(), memory.squares.copy()
    memory.learn(tape, came)
    assert np.abs(wanted).max() > 0.1
    assert np.abs((start - memory.weights) - 0.4 * wanted / np.sqrt(squares + wanted**2)).max() < 1e-5


def test_eval_engram_contexts_end_at_the_boundary():
    """What stands before a boundary changes no row; without one it does."""
    left, right = np.array([3, 4, 1, 5, 6, 1, 1, 2]), np.array([2, 2, 1, 5, 6, 1, 1, 2])
    for boundary in (1, -1):
        rows = [np.array(engram(boundary=boundary).rows(tokens)) for tokens in (left, right)]
        assert (rows[0][:, :, 3:] == rows[1][:, :, 3:]).all() == (boundary == 1)
        assert (rows[0][:, 1, 5] != rows[0][:, 1, 8]).any()  # 5 6 and 1 2: different contexts of two


def remember_one_by_one(memory, rows, marks, tokens):
    """What `remember` does, a token at a time."""
    for row, mark, token in zip(rows, marks, tokens):
        if memory.tags[row] != mark:
            memory.tags[row], memory.tokens[row], memory.counts[row] = mark, -1, 0
        slot = list(memory.tokens[row]).index(token) if token in memory.tokens[row] else int(memory.counts[row].argmin())
        memory.counts[row, slot] = memory.counts[row, slot] + 1 if memory.tokens[row, slot] == token else 1
        memory.tokens[row, slot] = token


def test_eval_engram_remembers_in_the_order_of_the_text():
    left, right, tokens = engram(buckets=4, slots=2), engram(buckets=4, slots=2), text(200)
    buckets, tags = left.rows(tokens[1:])
    for rows, marks in zip(buckets, tags):
        left.remember(rows, marks, tokens)
        remember_one_by_one(right, rows, marks, tokens)
    for name in ("tags", "tokens", "counts"):
        assert (getattr(left, name) == getattr(right, name)).all(), name


@pytest.mark.slow
def test_ten_million_tokens_stay_inside_the_settings():
    generator, vocabulary = np.random.default_rng(0), 1024
    memory, hashed = NgramMemory(5, vocabulary, 1 << 20, -1), EvalEngram(5, 1 << 14, 4, 2.0, 0.4, -1)
    ceiling = (1 << 20) * (8 + 5 * 4) + (1 << 21) * 4, 5 * (1 << 14) * (4 + 8 * 4)
    for _ in range(153):
        # Text-like: a few frequent ids, many rare ones, so that most long grams are new.
        tokens = np.minimum(generator.zipf(1.2, 65536) - 1, vocabulary - 1)
        memory.absorb(tokens)
        buckets, tags = hashed.rows(tokens[1:])
        for rows, marks in zip(buckets, tags):
            hashed.remember(rows[:512], marks[:512], tokens[:512])
        sizes = [sum(x.nbytes for x in vars(m).values() if isinstance(x, np.ndarray)) for m in (memory, hashed)]
        assert memory.size <= 1 << 20 and sizes[0] <= ceiling[0] + 1024 and sizes[1] <= ceiling[1] + 8192
    assert memory.clock >= 10_000_000
