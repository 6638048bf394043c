"""What the rows of a batch carry from one training step to the next (train.carry): where it begins, whose it is, when it is forgotten.

All ranks' states are {"carry/<number>": float32 (rows, K, S)}, one for each visit of a part that keeps a state (trit/layers/scan.py);
rows are those of the whole step, rank after rank and micro-batch after micro-batch.
"""

import numpy as np


def first_states(arch, cfg):
    """States of all ranks before the first step: nothing is known."""
    rows = cfg.train.train_batch_tokens // cfg.train.train_seq_len
    return {f"carry/{number}": np.zeros((rows, *shape), np.float32) for number, shape in enumerate(arch.carry_shapes(cfg))}


def own_states(cfg, flat, rank, world):
    """[[state (rows of a micro-batch, K, S) of every visit] of every micro-batch] of one rank, out of all states of a checkpoint."""
    parts, states = cfg.train.grad_accum_steps, []
    while f"carry/{len(states)}" in flat:
        whole = flat[f"carry/{len(states)}"]
        states.append([np.ascontiguousarray(x) for x in np.split(whole, world * parts)[rank * parts : (rank + 1) * parts]])
    return [list(micro) for micro in zip(*states)]


def kept_streams(cfg, moment, rows, rank, world):
    """For each of a rank's `rows` rows 1 where its window begins with what it carries, else 0: float32 (rows, 1, 1). That is 0 where the
    window does not go on with the text of the one before, and by chance with the probability train.carry_reset, a function of seed and
    step alone: so a model also learns to begin without a state, as every evaluation does."""
    draws = np.random.default_rng([moment.seed, moment.step, 2]).random(rows * world)[rank * rows : (rank + 1) * rows]
    kept = (draws >= cfg.train.carry_reset).astype(np.float32)
    return (kept * (0.0 if moment.joined is None else moment.joined)).astype(np.float32)[:, None, None]
