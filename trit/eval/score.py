"""The scoring driver: every position of a token stream is scored exactly once, in order: score, freeze the numbers, then learn.

Position i predicts token i + 1 from tokens up to i, so n tokens hold n - 1 positions. Chunks of windows are scored, then learned
from. All that learns (online memories, adapted copies of weights, momentum) is made in `score_tokens` and dropped when it returns.
"""

import math
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from trit.data.byte_count import token_bytes
from trit.data.token_ids import BOS_ID
from trit.eval.eval_engram import EvalEngram
from trit.eval.mixture import NgramMixture
from trit.eval.temperature import artifact_specs
from trit.eval.ttt import first_changes, frozen, learn_chunk


class Score(NamedTuple):
    """Mean loss in nats a token, bits per byte, counts of scored tokens and of their bytes."""

    loss: float
    bpb: float
    tokens: int
    bytes: int


def score_windows(cfg, positions):
    """Windows over `positions` as rows (start, first scored offset, width): chunks where eval_stride == eval_seq_len, else overlapping
    ones that score their last `eval_stride` positions; or segments whose attention reaches eval_seq_len back, which overlap by that
    much. The last window is right-aligned, so that it too has a full context."""
    length, stride = cfg.eval.eval_seq_len, cfg.eval.eval_stride
    if cfg.eval.eval_segment_tokens:
        length, stride = cfg.eval.eval_segment_tokens, cfg.eval.eval_segment_tokens - length
    windows, scored = [(0, 0, min(length, positions))], length
    while scored < positions:
        end = min(scored + stride, positions)
        windows.append((end - length, length - (end - scored), length))
        scored = end
    return windows


def window_chunks(windows, tokens):
    """Lists of consecutive windows that newly score at most `tokens` positions together, or hold a single window."""
    chunks, room = [], 0
    for window in windows:
        new = window[2] - window[1]
        if new > room:
            chunks.append([])
            room = tokens
        chunks[-1].append(window)
        room -= new
    return chunks


def model_values(cfg, model, changes, tokens, windows, low, high):
    """What the model alone says at positions low .. high - 1, on every rank: log-probabilities of the token that comes (m, 1), or of
    all tokens (m, V) where the hashed memory mixes whole distributions. Each rank computes a contiguous part of the windows."""
    values = np.zeros((high - low, cfg.model.vocab_size if cfg.eval.eval_engram_buckets else 1), np.float32)
    share = -(-len(windows) // model.world)
    mine = windows[model.rank * share : (model.rank + 1) * share]
    for at in range(0, len(mine), cfg.eval.eval_batch_seqs):
        batch = mine[at : at + cfg.eval.eval_batch_seqs]
        rows, least = np.stack([tokens[start : start + width + 1] for start, _, width in batch]), min(first for _, first, _ in batch)
        inputs, targets = rows[:, :-1], rows[:, 1:]
        if cfg.eval.eval_engram_buckets:
            found = model.rows(inputs, changes, least)
        else:
            found = -model.losses(inputs, targets, changes, least)[..., None]
        for (start, first, width), row in zip(batch, found):
            values[start + first - low : start + width - low] = row[first - least :]
    return model.total(values)


def whole_row(cfg, model, changes, engram, ngram, windows, tokens, start, position):
    """Final log-probabilities (V,) of all tokens at `position`, where the memories have absorbed tokens up to `start`."""
    first, _, width = next(window for window in windows if window[0] + window[1] <= position < window[0] + window[2])
    row = model.rows(tokens[None, first : first + width], changes, position - first)[:, 0]
    before, p = tokens[start + 1 : position + 1], np.exp(row[0].astype(np.float64))
    if cfg.eval.eval_engram_buckets:
        p = engram.probabilities(before, np.arange(cfg.model.vocab_size)[None], row)[0][0]
    if cfg.eval.ngram_order:
        p = ngram.row(before, p)
    return np.log(p)


def score_tokens(ops, arch, cfg, model, tokens, log=None, rows_at=()):
    """(losses float64 (n - 1,), how often each position was scored, log-probability rows (len(rows_at), V)) of a token stream (n,).

    `model` is an `Evaluator`; every rank gets the same result. A row is the whole final distribution at a position, as it stood
    when that was scored. Long work reports to `log`, some ten lines.
    """
    tokens, positions = np.asarray(tokens, np.int64), len(tokens) - 1
    if positions < 1:
        raise ValueError(f"a text of {len(tokens)} tokens has nothing to score; at least 2 are needed")
    losses, counts = np.zeros(positions), np.zeros(positions, np.int32)
    kept = np.zeros((len(rows_at), cfg.model.vocab_size))
    chunks = window_chunks(score_windows(cfg, positions), cfg.eval.eval_chunk_tokens)
    boundary = BOS_ID if cfg.model.isolate_documents else -1
    engram = ngram = changes = None
    if cfg.eval.eval_engram_buckets:
        sizes = cfg.eval.eval_engram_orders, cfg.eval.eval_engram_buckets, cfg.eval.eval_engram_slots
        engram = EvalEngram(*sizes, cfg.eval.eval_engram_entropy, cfg.eval.memory_lr, boundary)
        engram.start(tokens[0])
    if cfg.eval.ngram_order:
        ngram = NgramMixture(cfg.eval.ngram_order, cfg.model.vocab_size, cfg.eval.ngram_nodes, boundary, cfg.eval.memory_lr)
        ngram.memory.absorb(tokens[:1])
    if cfg.eval.ttt_scope != "none":
        changes, velocity = first_changes(ops, cfg, artifact_specs(arch, cfg), model.weights), {}
    with frozen(ops, model.weights, cfg.eval.freeze_check_strict) if cfg.eval.ttt_scope != "none" else nullcontext():
        for number, windows in enumerate(chunks):
            low, high = windows[0][0] + windows[0][1], windows[-1][0] + windows[-1][2]
            if log and number and number % (len(chunks) // 10 + 1) == 0:
                log.line(f"eval_step:{number}/{len(chunks)} val_loss_so_far:{losses[:low].mean():.4f}")
            values = model_values(cfg, model, changes, tokens, windows, low, high)
            step = cfg.eval.memory_chunk_tokens if cfg.eval.ngram_order or cfg.eval.eval_engram_buckets else high - low
            for start in range(low, high, step):
                end = min(start + step, high)
                came = tokens[start + 1 : end + 1]
                p = np.exp(values[start - low : end - low, 0].astype(np.float64))
                if cfg.eval.eval_engram_buckets:
                    p, engram_tape = engram.probabilities(came[:-1], came[:, None], values[start - low : end - low])
                    p = p[:, 0]
                if cfg.eval.ngram_order:
                    p, ngram_tape = ngram.score(came, p)
                losses[start:end] = -np.log(p)
                counts[start:end] += 1
                for index, position in enumerate(rows_at):
                    if start <= position < end:
                        kept[index] = whole_row(cfg, model, changes, engram, ngram, windows, tokens, start, position)
                # The numbers above are final; what follows learns from them and from the tokens up to `end`, which they scored.
                if cfg.eval.eval_engram_buckets:
                    engram.learn(engram_tape, came)
                if cfg.eval.ngram_order:
                    ngram.learn(ngram_tape, came)
            if cfg.eval.ttt_scope != "none" and number + 1 < len(chunks):
                for start in range(low, high, cfg.eval.eval_chunk_tokens):  # a long segment is learned from in several steps
                    end = min(start + cfg.eval.eval_chunk_tokens, high)
                    changes = learn_chunk(ops, cfg, model, velocity, changes, tokens[: end + 1], start, end, end / positions)
    return losses, counts, kept


def summarise(losses, counts, tokens, table):
    """`Score` of all positions; RuntimeError where one was not scored exactly once or has no finite loss."""
    if (counts != 1).any():
        at = int(np.flatnonzero(counts != 1)[0])
        raise RuntimeError(f"position {at} was scored {counts[at]} times; every position must be scored exactly once")
    if not np.isfinite(losses).all():
        raise RuntimeError(f"the loss at position {int(np.flatnonzero(~np.isfinite(losses))[0])} is not finite")
    tokens = np.asarray(tokens, np.int64)
    size = int(token_bytes(table, tokens[:-1], tokens[1:]).astype(np.int64).sum())
    total = float(losses.sum())
    return Score(total / len(losses), total / math.log(2.0) / size, len(losses), size)
