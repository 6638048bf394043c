"""Linear recurrences over time: h_t = a_t h_(t-1) + b_t for every channel, from a state that may be learned.

The op `linear_scan` starts from zero; its states and gradients come in chunks (trit/ops/chunked_scan.py), never token by token.

With train.carry a state, and the last inputs of a convolution before it, go on from one training window to the next. A window that goes
on with a text then equals the rest of one long window, as far as these reach (skc.md C3): the states of Koopman and SKC mixers, of SKC's
spectral path and of the capsule bank. Attention, the engram and the feedback keep nothing: they begin anew in every window. Under "carry"
`p` holds a list of arrays (B, K, S) float32, one for each visit of such a part, in order: row 0 the state, the others the inputs of the
K - 1 tokens before the window, if it has a convolution. Every part takes its own from the front and puts what it leaves at the end. Rows
of the batch are texts of their own: nothing here mixes them.

Shapes: B batch, T time, C or S channels, K taps.
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


def entering(ops, p, shape, like):
    """What was carried into a window, float32 of a shape (B, K, S). Zeros where nothing is carried, as in every evaluation."""
    return p["carry"].pop(0) if "carry" in p else ops.cast(ops.zeros(shape, like), "float32")


def leave(ops, p, states, inputs):
    """Hand on the last of the states (B, T, S) and the K - 1 inputs (B, K - 1, S), or None, to the next window."""
    if "carry" in p:
        last = states[:, states.shape[1] - 1 :]
        p["carry"].append(last if inputs is None else ops.concat([last, ops.cast(inputs, "float32")], 1))
