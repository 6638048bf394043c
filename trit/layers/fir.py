"""Causal filters with complex taps, one for every complex channel, and the two ways to apply them.

Training convolves by FFT (the op `complex_filter`), whose outputs hold rounding of what comes after them. What is scored must not, bit for
bit (the certificate's prefix replay), so evaluation multiplies blocks of the signal by the taps laid out as matrices: there the future
meets exact zeros. That form also streams, from the K - 1 values that it is handed.

Complex numbers are two planes, real parts before imaginary ones. Shapes: B batch, T time, M complex channels, K taps.
"""

import math

from trit.layers.conv import conv_reach
from trit.params import ParamSpec, on_grid

FILTER_BLOCK = 16  # tokens whose outputs one product gives; more waste arithmetic on zeros, fewer on copies


def filter_spec(cfg, name, channels):
    """Taps (2M, K), that of lag 0 first, as distances from `first_taps`. A filter is no matrix: it is trained by Adam and stored with
    arch.fir_bits, a scale for every row, whatever the matrices are stored with."""
    spec = ParamSpec(name, (2 * channels, cfg.arch.fir_taps), "constant", 0.0, "scalar", adapt="conv")
    return on_grid(spec, cfg.arch.fir_bits, cfg.arch.fir_taps, cfg.quant.scalar_clip)


def first_pitches(channels, layer):
    """Frequencies at the start, radians a token, of a block's channels: spread over the circle by the golden ratio, elsewhere in every
    layer."""
    return [math.tau * ((c + 0.5 + layer * channels) * 0.6180339887498949 % 1.0) - math.pi for c in range(channels)]


def first_taps(ops, channels, count, layer, like):
    """Taps (2M, K) float32 at the start: decaying oscillations of energy 1. Decay times are log-spaced from 1 to K/3 tokens."""
    times = [max(count / 3.0, 1.0) ** (c / max(channels - 1, 1)) for c in range(channels)]
    sizes = [math.sqrt((1.0 - math.exp(-2.0 / time)) / (1.0 - math.exp(-2.0 * count / time))) for time in times]
    lags = ops.arange(count, like)
    sizes = ops.constant(sizes, like)[:, None] * ops.exp(ops.constant([-1.0 / time for time in times], like)[:, None] * lags)
    angles = ops.constant(first_pitches(channels, layer), like)[:, None] * lags
    return ops.concat([sizes * ops.cos(angles), sizes * ops.sin(angles)], 0)


def block_matrices(ops, taps, past, size):
    """taps (2M, K) -> (M, 2 size, 2 (past + 1) size): what takes `past` blocks of `size` values and the block behind them to that block's
    outputs. Every row holds the taps from the oldest lag to lag 0, one place further right than the row above."""
    count, width = taps.shape[1], (past + 1) * size
    order = ops.cast(count - 1 - ops.arange(count, taps), "int32")
    row = ops.swap_last(ops.take(ops.swap_last(taps), order))
    row = ops.pad(row, ((0, 0), (past * size - count + 1, size)))  # one longer than the width: so that repeating it shifts it
    rows = ops.reshape(ops.concat([row] * size, 1)[:, : size * width], (2, -1, size, width))
    real, imaginary = rows[0], rows[1]
    return ops.concat([ops.concat([real, -imaginary], 2), ops.concat([imaginary, real], 2)], 1)


def block_filter(ops, x, taps, before):
    """x (B, T, 2M) filtered by taps (2M, K) -> (B, T, 2M), exactly causal. `before` holds the K - 1 values before x, None for zeros."""
    batch, length, count = x.shape[0], x.shape[1], taps.shape[1]
    size = min(FILTER_BLOCK, length)
    past, blocks = -(-(count - 1) // size), -(-length // size)
    front = past * size
    if before is not None:
        x, front = ops.concat([before, x], 1), front - count + 1
    x = ops.pad(x, ((0, 0), (front, blocks * size - length), (0, 0)))
    x = ops.permute(ops.reshape(x, (batch, past + blocks, size, 2, -1)), (4, 3, 2, 0, 1))  # (M, 2, size, B, blocks)
    frames = ops.concat([x[..., i : i + blocks] for i in range(past + 1)], 2)
    frames = ops.reshape(frames, (frames.shape[0], 2 * (past + 1) * size, batch * blocks))
    y = ops.reshape(block_matrices(ops, taps, past, size) @ frames, (-1, 2, size, batch, blocks))
    return ops.reshape(ops.permute(y, (3, 4, 2, 1, 0)), (batch, blocks * size, -1))[:, :length]


def document_filter(ops, x, taps, tokens):
    """`block_filter` of x (B, T, 2M) that stops at the start of each token's document: lag by lag, which is slow."""
    length, half = x.shape[1], x.shape[2] // 2
    reach, y, nothing = conv_reach(ops, tokens), 0.0, ops.zeros((), x)
    for lag in range(min(taps.shape[1], length)):
        past = ops.where(reach >= lag, ops.pad(x, ((0, 0), (lag, 0), (0, 0)))[:, :length], nothing)
        turned = ops.concat([-past[..., half:], past[..., :half]], 2)
        real, imaginary = taps[:half, lag], taps[half:, lag]
        y = y + past * ops.concat([real, real], 0) + turned * ops.concat([imaginary, imaginary], 0)
    return y
