"""Anderson mixing of explicit steps: the next state is the combination of earlier ones whose combined pull is least.

The coefficients come from inner products over a whole text, which only training may use, or for every position from those of the positions
up to it (`prefix`), which is causal. Never over a batch: its rows would move each other. Shapes: B batch, T time, D width, M states kept.
"""

import numpy as np

from trit.layers.relaxation import Solution, measured, outcomes

WARM_STEPS = 15
WARM_RATE = 0.1
MIXED_RATE = 0.25
KEPT_STATES = 10
BLOWN = 3.0  # times the best residual since mixing began: it leads nowhere
PATIENCE = 30  # mixed steps in which the residual has to fall to the share GAIN, else likewise
GAIN = 0.7
RESTART_STEPS = 10  # plain steps after the first mixing of a text that leads nowhere, twice as many after each further one
RESTART_RATE = 0.25
FAR = 1e30


def mixing_shares(ops, dots, valid, prefix, ridge):
    """Coefficients (B, T or 1, M), of sum 1, that make the combined pull least. `dots` [[(B, T or 1)] * M] * M holds inner products of pulls,
    `valid` (B, T or 1, M) is 0 for states from before a restart."""
    count = len(dots)
    gram = ops.stack([dots[max(i, j)][min(i, j)] for i in range(count) for j in range(count)], -1)  # (B, T or 1, M * M)
    if prefix:
        gram = ops.linear_scan(gram * 0.0 + 1.0, gram)
    gram = ops.reshape(gram, (*gram.shape[:2], count, count))
    eye = ops.cast(ops.arange(count, gram) == ops.arange(count, gram)[:, None], "float32")
    sizes = ops.sqrt(ops.sum(gram * eye, -1) + 1e-38)
    # Scaled to a diagonal of 1, so that one ridge fits all magnitudes; states that do not count get a row of their own.
    gram = gram / sizes[..., None] / ops.swap_last(sizes[..., None])
    both = valid[..., None] * ops.swap_last(valid[..., None])
    # Where nothing is valid the shares are even; nobody reads them.
    valid = valid + ops.cast(ops.sum(valid, -1, True) <= 0, "float32")
    shares = ops.sum(ops.inverse(gram * both + eye * (1.0 - both) + ridge * eye) * (valid / sizes)[..., None, :], -1) * valid / sizes
    return shares / ops.sum(shares, -1, True)


def lower(ops, size, z, best_size, best):
    """(state, size) of the smaller residual, text by text or position by position. A size that is no number is never the smaller."""
    better = size < best_size
    return ops.where(better[..., None], z, best), ops.where(better, size, best_size)


def anderson(
    ops, force, z, budget, tolerance, prefix=False, ridge=1e-7, measure=None, warm=WARM_STEPS, rate=MIXED_RATE, memory=KEPT_STATES
):
    """`Solution` by Anderson mixing after `warm` plain steps. Where mixing leads nowhere the text goes back to where plain steps had brought
    it and takes more of those, twice as many each time, before it mixes anew: the way to the rest may pass close by a state that is none and
    draws mixing back for ever, so what plain steps can reach must never be far off. Mixed by texts it returns each text's best state; mixed
    by prefixes the last, and all rules look at earlier positions only."""
    history, states, pulls, valid, dots, used = [], [], [], [], [], 0
    while True:
        pull = force(z)
        used, residuals = used + 1, measured(ops, measure, pull, z)
        history.append(ops.to_numpy(ops.max(residuals, 1)))
        size = ops.cummax(residuals, 1) if prefix else ops.max(residuals, 1, True)
        if used == 1:
            found, found_size, found_residuals, anchor = z, size, residuals, z
            far = size * 0.0 + FAR
            best, aim, idle, settling, patience = far, far, size * 0.0, size * 0.0, size * 0.0 + RESTART_STEPS
        found_residuals = ops.where(size <= found_size, residuals, found_residuals)
        found, found_size = lower(ops, size, z, found_size, found)
        if used >= budget or not (history[-1] > tolerance).any() or not np.isfinite(history[-1]).any():
            if prefix:
                found, found_residuals = z, residuals
            return Solution(found, used, found_residuals, outcomes(ops, found_residuals, tolerance, history))
        moving = ops.cast(size > tolerance, "float32")[..., None]
        if used <= warm:
            z = anchor = z + WARM_RATE * moving * pull
            continue
        best, gained = ops.where(size < best, size, best), size < GAIN * aim
        aim, idle = ops.where(gained, size, aim), ops.where(gained, size * 0.0, idle + 1.0)
        # A size that is no number is not below anything.
        calm = ops.cast(size <= BLOWN * best, "float32") * ops.cast(idle <= PATIENCE, "float32")
        back = (1.0 - calm) * ops.cast(settling <= 0, "float32")
        settling = back * patience + (1.0 - back) * ops.maximum(settling - 1.0, 0.0)
        patience = patience * (1.0 + back)
        plain = ops.cast(settling > 0, "float32")
        valid = [kept * (1.0 - plain) for kept in valid[-memory + 1 :]] + [1.0 - plain]
        states, pulls = states[-memory + 1 :] + [z], pulls[-memory + 1 :] + [rate * pull]
        new = [ops.sum(other * pulls[-1], -1) for other in pulls]
        dots = [row[len(row) - i - 1 :] for i, row in enumerate(dots[-memory + 1 :])]
        dots.append(new if prefix else [ops.sum(part, 1, True) for part in new])
        shares = mixing_shares(ops, dots, ops.stack(valid, -1), prefix, ridge)
        mixed = sum(shares[..., i, None] * (states[i] + pulls[i]) for i in range(len(states)))
        settles = plain[..., None] > 0
        anchor = ops.where(settles, ops.where(back[..., None] > 0, anchor, z + RESTART_RATE * pull), anchor)
        best, aim, idle = ops.where(plain > 0, far, best), ops.where(plain > 0, far, aim), (1.0 - plain) * idle
        z = z + moving * (ops.where(settles, anchor, mixed) - z)
