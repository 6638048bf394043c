"""Temperature of the model's distribution, fitted on held-out training text and stored in the artifact like any other scale."""

import numpy as np

from trit.params import scalar_spec


def artifact_specs(arch, cfg):
    """Table of all tensors of the artifact: the architecture's, and the sharpness (1 / temperature) where it is fitted."""
    return arch.param_specs(cfg) + ([scalar_spec(cfg, "sharpness", (1,), 1.0)] if cfg.eval.fit_temperature else [])


def model_logits(ops, arch, cfg, p, tokens):
    """Logits (B, T, V) float32 of a model."""
    return arch.readout(ops, p, cfg, arch.forward(ops, p, cfg, tokens)[0])


def scored_logits(ops, arch, cfg, p, stream):
    """Logits (B, T, V) float32 that are scored, of any positions of the stream: the model's, times the stored sharpness if there is one."""
    logits = arch.readout(ops, p, cfg, stream)
    return logits * ops.cast(p["sharpness"], "float32") if cfg.eval.fit_temperature else logits


def scored_rows(ops, arch, cfg, p, tokens, first=0):
    """Log-probabilities (B, T - first, V) float32 of all tokens at the positions from `first` on."""
    return ops.log_softmax(scored_logits(ops, arch, cfg, p, arch.forward(ops, p, cfg, tokens)[0][:, first:]))


def scored_losses(ops, arch, cfg, p, tokens, targets, first=0):
    """Losses (B, T - first) float32 in nats of int targets (B, T). The positions before `first` are context only: nothing is read out
    there. Of a segment of one-pass evaluation the logits of eval_seq_len positions exist at once."""
    stream = arch.forward(ops, p, cfg, tokens)[0]
    if cfg.eval.eval_segment_tokens:
        step, losses = cfg.eval.eval_seq_len, []
        for low in range(first, tokens.shape[1], step):
            logits = scored_logits(ops, arch, cfg, p, stream[:, low : low + step])
            losses.append(ops.cross_entropy(logits, targets[:, low : low + step]))
        return ops.concat(losses, 1)
    return ops.cross_entropy(scored_logits(ops, arch, cfg, p, stream[:, first:]), targets[:, first:])


def fit_sharpness(rows, tokens, length):
    """Sharpness in 0.5 .. 1.2 under which the later halves of the windows of `length` tokens lose least, as (float, loss before, loss
    after) in nats a token. `rows(inputs)` gives log-probabilities (1, T, V) at sharpness 1; `tokens` (n,) was never trained on."""
    grid = [0.5 + 0.02 * i for i in range(36)]
    sums, count = np.zeros(len(grid)), 0
    for start in range(0, len(tokens) - length, length):
        late = rows(tokens[None, start : start + length])[0, length // 2 :]
        targets = tokens[start + length // 2 + 1 : start + length + 1]
        right = late[np.arange(len(targets)), targets].astype(np.float64)
        for i, sharpness in enumerate(grid):
            sums[i] += (np.log(np.exp(sharpness * late).sum(-1)) - sharpness * right).sum()
        count += len(targets)
    best = min(max(int(sums.argmin()), 1), len(sums) - 2)
    left, middle, right = sums[best - 1 : best + 2]
    shift = 0.5 * (left - right) / max(left - 2.0 * middle + right, 1e-12)  # vertex of the parabola through three points
    sharpness = grid[best] + 0.02 * min(max(shift, -1.0), 1.0)
    return sharpness, sums[25] / count, sums[best] / count
