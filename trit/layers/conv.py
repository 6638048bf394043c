"""Causal depthwise convolution over time: every channel is a weighted sum of its own last few values.

Shapes: B batch, T time, C channels, K taps.
"""

from trit.layers.document import document_starts
from trit.params import scalar_spec


def conv_specs(cfg, name, taps, channels):
    """Weights (K, C), each 1/K at the start: the mean of the last K tokens. The last row weighs the token itself."""
    return [scalar_spec(cfg, name, (taps, channels), 1.0 / taps, "conv")]


def conv_reach(ops, tokens):
    """Tokens (B, T, 1) float32 of its own document that stand before each token: how far a convolution may look back there."""
    return (ops.arange(tokens.shape[1], tokens) - document_starts(ops, tokens))[:, :, None]


def causal_conv(ops, x, weights, reach):
    """x (B, T, C) and weights (K, C) -> (B, T, C); left of the text stand zeros, and with `reach` of `conv_reach` left of the document."""
    taps, length = weights.shape[0], x.shape[1]
    y = x * weights[taps - 1]
    for lag in range(1, taps):
        past = ops.pad(x, ((0, 0), (lag, 0), (0, 0)))[:, :length]
        if reach is not None:
            past = ops.where(reach >= lag, past, ops.zeros((), past))
        y = y + past * weights[taps - 1 - lag]
    return y


def carried_reach(ops, tokens, taps):
    """`conv_reach` of the K - 1 places before a window of tokens (B, T) and of the window: (B, K - 1 + T, 1). Where no document begins,
    the one before the window goes on; what does not belong to it was not carried."""
    return conv_reach(ops, ops.pad(tokens, ((0, 0), (taps - 1, 0))))


def carried_conv(ops, cfg, x, weights, before, reach):
    """`causal_conv` of x (B, T, S) that goes on from the inputs in `before` (B, K, S) -> ((B, T, S), the inputs to carry on (B, K - 1, S)).
    `reach` is that of `carried_reach` or None."""
    past = weights.shape[0] - 1
    x = ops.concat([ops.cast(before[:, 1:], cfg.train.compute_dtype), x], 1)
    inputs = x[:, x.shape[1] - past :]
    if reach is not None:
        # The next window begins `lags` behind these: what the document that ends this one does not hold, it must not see.
        lags = ops.reshape(past - 1 - ops.arange(past, x), (1, past, 1))
        inputs = ops.where(reach[:, reach.shape[1] - 1 :] >= lags, inputs, ops.zeros((), inputs))
    return causal_conv(ops, x, weights, reach)[:, past:], inputs
