"""The replays of the evaluator: which texts a counted file is run on, and what its losses and rows must fulfil.

In: the evaluation settings and the true tokens. Out: a `Replay` plan; later, its checks from what the runs wrote.
"""

from typing import NamedTuple

import numpy as np

from trit.proof.checks import check, normalised, prefix_kept, same_losses, target_free, unknown

EXTRA_ROWS = 8


class Probe(NamedTuple):
    """A text of the replay's length whose tokens from index `first` on are noise."""

    first: int
    tokens: np.ndarray


class Replay(NamedTuple):
    """`tokens` (n,) start the true text, `probes` change their tails, `rows_at` are positions whose full rows every run writes."""

    tokens: np.ndarray
    probes: list
    rows_at: np.ndarray


class Scores(NamedTuple):
    """What one run wrote: losses (n - 1,) and rows (len(rows_at), V), both float64; rows are empty where the program wrote none."""

    losses: np.ndarray
    rows: np.ndarray


def window_sizes(evaluation):
    """(tokens in a window or segment, tokens newly scored in it, windows in a batch, which never reaches beyond a learning chunk)."""
    length, stride = evaluation["eval_seq_len"], evaluation["eval_stride"]
    if evaluation["eval_segment_tokens"]:
        length, stride = evaluation["eval_segment_tokens"], evaluation["eval_segment_tokens"] - length
    return length, stride, min(evaluation["eval_batch_seqs"], max(evaluation["eval_chunk_tokens"] // stride, 1))


def replay_length(evaluation, available):
    """Tokens a replay covers: three learning chunks, two batches of windows, and a partial one of each at the end."""
    length, stride, batch = window_sizes(evaluation)
    return min(max(3 * evaluation["eval_chunk_tokens"], 2 * batch * stride + length) + stride // 2 + 3, available)


def cut_points(evaluation, total, count, generator):
    """At most `count` indices of first replaced tokens, ascending: at and around the borders of windows, learning chunks and memory
    chunks, inside a batch of windows, at the last token, at random. Token k * size + 1 is the first target of window or chunk k."""
    length, stride, batch = window_sizes(evaluation)
    chunk, memory = evaluation["eval_chunk_tokens"], evaluation["memory_chunk_tokens"]
    inside = length + stride * (batch // 2) + stride // 2
    named = [chunk + 1, length + 1, inside, total - 1, length // 2, 2 * chunk, length + memory + 1, length + stride, chunk + 2, length]
    drawn = [int(cut) for cut in generator.integers(2, total, 4)]
    wanted = [cut for pair in zip(named, [*drawn, *named[len(drawn) :]]) for cut in pair]
    return sorted(list(dict.fromkeys(cut for cut in wanted if 2 <= cut < total))[:count])


def plan_replay(evaluation, tokens, vocab_size, count, seed=0):
    """`Replay` with `count` probes of the text that starts `tokens`; the first replaced token is never what it was."""
    generator = np.random.default_rng(seed)
    tokens = np.asarray(tokens, np.uint16)
    probes = []
    for first in cut_points(evaluation, len(tokens), count, generator):
        changed = tokens.copy()
        changed[first:] = generator.integers(0, vocab_size, len(tokens) - first)
        if changed[first] == tokens[first]:
            changed[first] = (int(tokens[first]) + 1) % vocab_size
        probes.append(Probe(first, changed))
    free = generator.integers(0, len(tokens) - 1, EXTRA_ROWS)
    return Replay(tokens, probes, np.unique([*(probe.first - 1 for probe in probes), *free]))


def texts_of(replay):
    """The texts of a replay: the true one, then each probe's."""
    return [replay.tokens, *(probe.tokens for probe in replay.probes)]


def at_rows(scores, positions, tokens):
    """(rows, losses, targets) where a run wrote rows. Positions without a loss are the business of "scored exactly once"."""
    scored = positions < len(scores.losses)
    return scores.rows[scored], scores.losses[positions[scored]], tokens[positions[scored] + 1]


def replay_checks(replay, base, again, changed, tolerance, late=None):
    """The checks of a replay. `base` and `again` are `Scores` of the true text, `changed` one for each probe, None for a run that
    failed. `tolerance` in nats is 0 where arithmetic is exactly repeatable. `late` is (Scores, positions of its rows, tokens) of the
    run on the whole text, or None."""
    names = ("prefix replay", "normalised rows", "target substitution", "same twice")
    if base is None or again is None or None in changed:
        failed = 1 + sum(scores is None for scores in changed) if base else 1
        return [check(name, False, f"{failed} of the runs on the first {len(replay.tokens)} tokens failed") for name in names]
    runs = [(probe.first, scores.losses) for probe, scores in zip(replay.probes, changed)]
    found = [prefix_kept(names[0], base.losses, runs, tolerance)]
    written = [(scores, replay.rows_at, text) for scores, text in zip((base, *changed), texts_of(replay))] + [late] * bool(late)
    if any(len(scores.rows) != len(at) or len(scores.losses) > len(text) - 1 for scores, at, text in written):
        found += [normalised([], [], [], names[1]), unknown(names[2], "needs the rows that the program did not write")]
    else:
        found.append(normalised(*map(np.concatenate, zip(*(at_rows(*run) for run in written))), names[1]))
        probes = []
        for probe, scores in zip(replay.probes, changed):
            if probe.first <= min(len(base.losses), len(scores.losses)):
                row = int(np.searchsorted(replay.rows_at, probe.first - 1))
                probes.append((base.rows[row], scores.rows[row], int(probe.tokens[probe.first]), scores.losses[probe.first - 1]))
        found.append(target_free(probes, tolerance))
    return [*found, same_losses(names[3], base.losses, again.losses, "first and last run of one process on the same text", tolerance)]
