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
