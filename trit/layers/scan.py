"""Linear recurrences over time: h_t = a_t h_(t-1) + b_t for every channel, from a state that may be learned.

The op `linear_scan` starts from zero; its states and gradients come in chunks (trit/ops/chunked_scan.py), never token by token.
Shapes: B batch, T time, C channels.
"""

import math

# Between a token's share of the new state and 0 or 1: a state forgets within 16,384 tokens and keeps a trace for one, whatever is learned.
SHARE_MARGIN = 2.0**-14


def state_share(ops, logits):
    """Logits (..., S) -> the share of its state that each channel replaces by what a token brings, strictly between 0 and 1; the rest is
    the decay. A scaled sigmoid holds it there without a clamp, which would have no gradient outside (skc.md KB09, D10)."""
    return SHARE_MARGIN + (1.0 - 2.0 * SHARE_MARGIN) * ops.sigmoid(logits)


def token_horizon_logits(ops, channels, longest, like):
    """Logits (C,) float32 of the shares 1/n of channels that remember n tokens, log-spaced from 2 to `longest`."""
    steps = ops.arange(channels, like) * (1.0 / max(channels - 1, 1))
    return -ops.log(2.0 * ops.exp(steps * ops.log(ops.zeros((1,), steps) + longest / 2.0)) - 1.0)


def block_horizon_logits(ops, channels, longest, like):
    """Logits (C,) float32 of the shares 1/n of channels that remember n blocks, log-spaced from about 1 to `longest`."""
    return -ops.log(ops.exp(ops.arange(channels, like) * (math.log(longest) / max(channels - 1, 1))) - 0.9)


def decay_scan(ops, decays, inputs, initial=None):
    """States (B, T, C) of float32 decays and inputs (B, T, C). `initial` (C,) or (B, C) is the state before the first token, zero if None.

    The state is float32 whatever the model computes in: 16-bit floats do not hold a sum over hundreds of tokens.
    """
    decays, inputs = ops.cast(decays, "float32"), ops.cast(inputs, "float32")
    if initial is not None:
        first = decays[:, :1] * ops.reshape(ops.cast(initial, "float32"), (-1, 1, inputs.shape[2]))
        inputs = ops.concat([inputs[:, :1] + first, inputs[:, 1:]], 1)
    return ops.linear_scan(decays, inputs)
