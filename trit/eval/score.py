"""The scoring driver: every position of a token stream is scored exactly once, in windows, and summed in float64.

Position i predicts token i + 1 from tokens up to i, so n tokens hold n - 1 positions.
"""

import math
from typing import NamedTuple

import numpy as np

from trit.data.byte_count import token_bytes


class Score(NamedTuple):
    """Mean loss in nats a token, bits per byte, counts of scored tokens and of their bytes."""

    loss: float
    bpb: float
    tokens: int
    bytes: int


def score_windows(positions, length, stride):
    """Windows over `positions` as rows (start, first scored offset, width): chunks where stride == length, else overlapping ones
    that score their last `stride` positions. The last window is right-aligned, so that it too has a full context."""
    if positions <= length:
        return [(0, 0, positions)]
    windows, scored = [(0, 0, length)], length
    while scored < positions:
        end = min(scored + stride, positions)
        windows.append((end - length, length - (end - scored), length))
        scored = end
    return windows


def score_tokens(cfg, token_losses, tokens, process_rank, process_world, log=None):
    """float64 losses (n - 1,) of a token stream (n,), zero where another rank scores, and how often each position was scored.

    `token_losses(inputs, targets)` maps int32 (B, T) pairs to losses (B, T). Ranks take contiguous segments of the windows.
    Long work reports to `log`, ten lines at most.
    """
    positions = len(tokens) - 1
    if positions < 1:
        raise ValueError(f"a text of {len(tokens)} tokens has nothing to score; at least 2 are needed")
    losses, counts = np.zeros(positions), np.zeros(positions, np.int32)
    windows = score_windows(positions, cfg.eval.eval_seq_len, cfg.eval.eval_stride)
    share = -(-len(windows) // process_world)
    windows = windows[process_rank * share : (process_rank + 1) * share]
    batches = -(-len(windows) // cfg.eval.eval_batch_seqs)
    for number in range(batches):
        if log and number and number % (batches // 10 + 20) == 0:
            log.line(f"eval_step:{number}/{batches}")
        at = number * cfg.eval.eval_batch_seqs
        batch = windows[at : at + cfg.eval.eval_batch_seqs]
        rows = np.stack([tokens[start : start + width + 1] for start, _, width in batch]).astype(np.int32)
        found = token_losses(rows[:, :-1], rows[:, 1:])
        for (start, first, width), row in zip(batch, found):
            losses[start + first : start + width] += row[first:width]
            counts[start + first : start + width] += 1
    return losses, counts


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
