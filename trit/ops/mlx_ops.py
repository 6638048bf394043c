"""The array vocabulary in MLX, twin of `torch_ops`: the same functions with the same meaning, on Apple GPUs or any CPU.

Arrays are lazy: nothing runs until the backend evaluates them or `to_numpy` asks for the numbers.
"""

import mlx.core as mx
import numpy as np

from trit.ops.chunked_scan import chunked_scan, scan_gradients
from trit.ops.complex_scan import complex_scan_gradients, complex_scan_states
from trit.ops.fft_size import fft_size


def from_numpy(array, like=None):
    """numpy array -> array (a copy). `like` is there for torch's sake: memory is unified."""
    return mx.array(np.array(array))


def constant(values, like):
    """List of plain numbers -> float32 array, also inside a compiled function."""
    return mx.array(values, dtype=mx.float32)


def to_numpy(x):
    """Array -> numpy array (bfloat16 widens to float32)."""
    return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x)


def cast(x, dtype):
    """`x` as float32, bfloat16, float16, int32 or int64."""
    return x.astype(getattr(mx, dtype))


def zeros(shape, like):
    """Zeros of `shape` with the type of `like`."""
    return mx.zeros(shape, like.dtype)


def arange(count, like):
    """0 .. count-1 as float32."""
    return mx.arange(count, dtype=mx.float32)


def reshape(x, shape):
    """`x` with another shape of as many numbers; one length may be -1."""
    return x.reshape(shape)


def permute(x, axes):
    """`x` with its axes in the order that `axes`, a tuple of all of them, says."""
    return x.transpose(axes)


def swap_last(x):
    """Transpose of the last two axes."""
    return x.swapaxes(-1, -2)


def concat(parts, axis):
    """List of arrays, alike but for their length along `axis`, one behind another."""
    return mx.concatenate(parts, axis)


def stack(parts, axis):
    """List of N arrays of one shape -> one array with a new axis of length N at `axis`."""
    return mx.stack(parts, axis)


def pad(x, widths):
    """Zeros around `x`; `widths` is ((before, after), ...) for every axis."""
    return mx.pad(x, widths)


def take(table, indices):
    """Rows of `table` (N, D) at integer `indices` of any shape -> (..., D)."""
    return table[indices]


def weighted_rows(table, indices, weights):
    """Sums of rows of `table` (N, D), float32, at int64 `indices` (M, K) times `weights` (M, K) -> (M, D): a product with a sparse matrix."""
    found = weights[:, :1] * table[indices[:, 0]]
    for k in range(1, indices.shape[1]):
        found = found + weights[:, k : k + 1] * table[indices[:, k]]
    return found


def where(condition, a, b):
    """`a` where the boolean `condition` holds, else `b`; shapes broadcast."""
    return mx.where(condition, a, b)


def sum(x, axis=None, keepdims=False):
    """Sum over an axis, or of all numbers."""
    return mx.sum(x, axis, keepdims=keepdims)


def mean(x, axis=None, keepdims=False):
    """Mean over an axis, or of all numbers."""
    return mx.mean(x, axis, keepdims=keepdims)


def max(x, axis=None, keepdims=False):
    """Largest value along an axis, or of all numbers. Among equals the gradient is an array library's own affair."""
    return mx.max(x, axis, keepdims=keepdims)


def cummax(x, axis):
    """Largest value of `x` so far along an axis."""
    return mx.cummax(x, axis=axis)


def abs(x):
    """Magnitude of every number."""
    return mx.abs(x)


def sign(x):
    """-1, 0 or 1 for every number, in the type of `x`; no gradient."""
    return mx.sign(x)


def round(x):
    """Nearest integer, ties to even."""
    return mx.round(x)


def clip(x, low, high):
    """Every number but at least `low` and at most `high`, two plain numbers; no gradient outside."""
    return mx.clip(x, low, high)


def maximum(x, low):
    """`x` but at least the number `low`."""
    return mx.maximum(x, low)


def exp(x):
    """e to the power of every number."""
    return mx.exp(x)


def log(x):
    """Natural logarithm of every number."""
    return mx.log(x)


def expm1(x):
    """exp(x) - 1, exact near 0."""
    return mx.expm1(x)


def softplus(x):
    """log(1 + exp(x))."""
    return mx.logaddexp(x, mx.zeros((), x.dtype))


def cos(x):
    """Cosine of every number, in radians."""
    return mx.cos(x)


def sin(x):
    """Sine of every number, in radians."""
    return mx.sin(x)


def sqrt(x):
    """Square root of every number."""
    return mx.sqrt(x)


def rsqrt(x):
    """One over the square root of every number."""
    return mx.rsqrt(x)


def sigmoid(x):
    """1 / (1 + exp(-x)) of every number."""
    return mx.sigmoid(x)


def leaky_relu(x, slope):
    """Every number, those below zero times `slope`."""
    return mx.where(x > 0, x, slope * x)


def linear(x, weight):
    """(..., I) and (O, I) -> (..., O)."""
    return x @ weight.T


def fp8_linear(x, weight):
    """`linear`: MLX multiplies no 8-bit floats, so its backend refuses train.fp8."""
    return x @ weight.T


def inverse(x):
    """Inverses of matrices (..., N, N) float32. MLX has them on the CPU only and without a gradient."""
    function = mx.custom_function(lambda given: mx.linalg.inv(given, stream=mx.cpu))
    function.vjp(lambda given, gradient, found: -found.swapaxes(-1, -2) @ gradient @ found.swapaxes(-1, -2))
    return function(x)


def rotary_table(frequencies, length, dtype):
    """What `rotary` needs for `length` positions of x with `dtype`: of frequencies (F,) in radians a position. Here their inverses."""
    return 1.0 / frequencies


def rotary(x, table):
    """x (..., T, D) with its first 2 F channels turned by their positions' angles, halves paired; the rest carries no position."""
    return mx.fast.rope(x, 2 * table.shape[0], traditional=False, base=None, scale=1.0, offset=0, freqs=table)


def rms_norm(x):
    """`x` divided by the root mean square of its last axis (epsilon 1e-6)."""
    return mx.fast.rms_norm(x, None, 1e-6)


def attention(q, k, v):
    """Causal attention: q (B, H, T, D), k and v (B, K, T, D) with K dividing H; scores are scaled by 1/sqrt(D). -> (B, H, T, D)."""
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask="causal")


def flash_attention(q, k, v):
    """`attention`: MLX has one kernel."""
    return attention(q, k, v)


def masked_attention(q, k, v, visible):
    """`attention` that is not causal by itself: boolean `visible` (B, 1, T, T) is True where a query (third axis) sees a key (fourth)."""
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=visible)


def linear_scan(decays, inputs):
    """States h_t = decays_t * h_(t-1) + inputs_t along the second axis of (B, T, C), from h = 0. Linear in T, forward and back."""

    def pad_time(x, before, after):
        return mx.pad(x, ((0, 0), (before, after), (0, 0)))

    scan = mx.custom_function(lambda a, b: chunked_scan(mx.stack, pad_time, a, b, False))
    scan.vjp(lambda given, gradient, states: scan_gradients(mx.stack, pad_time, given[0], states, gradient))
    return scan(decays, inputs)


def complex_scan(decays, inputs):
    """`linear_scan` of complex numbers, arrays (B, T, 2 C) with the real parts first. Decays have a modulus of 1 at most."""

    def pad_time(x, before, after):
        return mx.pad(x, ((0, 0), (before, after), (0, 0)))

    scan = mx.custom_function(lambda a, b: complex_scan_states(mx.stack, mx.concatenate, pad_time, a, b))
    scan.vjp(lambda given, gradient, states: complex_scan_gradients(mx.stack, mx.concatenate, pad_time, given[0], states, gradient))
    return scan(decays, inputs)


def logsumexp(x, axis):
    """Logarithm of the sum of exponentials along an axis, which goes away."""
    return mx.logsumexp(x, axis)


def complex_filter(x, taps):
    """Causal filter of complex channels over time: real x (B, T, 2C), real parts before imaginary ones, and taps (2C, K), likewise and
    that of lag 0 first -> (B, T, 2C). By FFT, so that an output holds rounding of what comes after it."""
    length, count = x.shape[1], taps.shape[1]
    size = fft_size(length + count - 1)

    def signal_spectrum(x):
        planes = x.reshape(x.shape[0], length, 2, -1).transpose(0, 3, 1, 2)
        return mx.fft.fft(mx.contiguous(planes).view(mx.complex64).squeeze(-1), size)

    def signal_of(transform):
        planes = mx.contiguous(mx.fft.ifft(transform)[..., :length, None]).view(mx.float32)
        return planes.transpose(0, 2, 3, 1).reshape(planes.shape[0], length, -1)

    def taps_spectrum(taps):
        planes = mx.contiguous(taps.reshape(2, -1, count).transpose(1, 2, 0))
        return mx.fft.fft(planes.view(mx.complex64).squeeze(-1), size)

    def gradients(given, gradient, _):
        x, taps = given
        arriving = signal_spectrum(gradient)
        of_taps = mx.fft.ifft((arriving * signal_spectrum(x).conj()).sum(0))[:, :count, None]
        of_taps = mx.contiguous(of_taps).view(mx.float32).transpose(2, 0, 1).reshape(taps.shape)
        return signal_of(arriving * taps_spectrum(taps).conj()), of_taps

    applied = mx.custom_function(lambda x, taps: signal_of(signal_spectrum(x) * taps_spectrum(taps)))
    applied.vjp(gradients)
    return applied(x, taps)


def softmax(x):
    """Softmax of `x` over its last axis."""
    return mx.softmax(x, axis=-1)


def log_softmax(x):
    """`x` minus the logarithm of the sum of exponentials over its last axis."""
    return x - mx.logsumexp(x, -1, keepdims=True)


def cross_entropy(logits, targets):
    """Negative log-likelihood in nats of integer `targets` (...) under float32 `logits` (..., V) -> (...)."""
    chosen = mx.take_along_axis(logits, mx.stop_gradient(targets)[..., None], -1).squeeze(-1)
    return mx.logsumexp(logits, -1) - chosen


def recomputed(function, *inputs):
    """function(*inputs), whose inner values the backward pass computes again instead of keeping. Gradients reach `inputs` only."""
    return mx.checkpoint(function)(*inputs)


def pullback(function, *inputs):
    """(function(*inputs), its transpose: an array like that value -> [gradients of their inner product with respect to each of `inputs`]),
    the linear map that a backward pass is, to be applied as often as one likes. What else the function reads is constant."""
    return function(*inputs), lambda cotangent: mx.vjp(function, list(inputs), [cotangent])[1]


def pushforward(function, inputs, tangents):
    """(function(*inputs), its derivative along `tangents`), two lists of arrays alike. Gradients pass through both."""
    values, derivatives = mx.jvp(function, list(inputs), list(tangents))
    return values[0], derivatives[0]


def stop_gradient(x):
    """`x` going forward, no gradient going back."""
    return mx.stop_gradient(x)


def straight_through(x, value):
    """`value` going forward, the gradient of `x` going back (STE)."""
    return mx.stop_gradient(value) + (x - mx.stop_gradient(x))
