"""The array vocabulary in PyTorch. Everything above it is written once; `mlx_ops` is its twin and numpy the exchange type.

Only what the operators of the array types themselves (+ - * / @ ^ & >> comparison, slicing) do not give alike. Axes follow numpy.
"""

import torch
import torch.nn.functional as functional
from torch.utils.checkpoint import checkpoint

from trit.ops.torch_filter import ComplexFilter
from trit.ops.torch_flash import flash_kernel
from trit.ops.torch_fp8 import Fp8Product
from trit.ops.torch_scan import ComplexScan, LinearScan


def from_numpy(array, like=None):
    """numpy array -> tensor (a copy), on the device of `like` where given."""
    return torch.tensor(array, device=None if like is None else like.device)


def constant(values, like):
    """List of plain numbers -> float32 tensor, also inside a compiled function (which may not keep a numpy array alive)."""
    return like.new_tensor(values, dtype=torch.float32)


def to_numpy(x):
    """Tensor -> numpy array (bfloat16 widens to float32)."""
    x = x.detach()
    return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()


def cast(x, dtype):
    """`x` as float32, bfloat16, float16, int32 or int64."""
    return x.to(getattr(torch, dtype))


def zeros(shape, like):
    """Zeros of `shape` with the type and device of `like`."""
    return like.new_zeros(shape)


def arange(count, like):
    """0 .. count-1 as float32 on the device of `like`."""
    return torch.arange(float(count), device=like.device)


def reshape(x, shape):
    """`x` with another shape of as many numbers; one length may be -1."""
    return x.reshape(shape)


def permute(x, axes):
    """`x` with its axes in the order that `axes`, a tuple of all of them, says."""
    return x.permute(axes)


def swap_last(x):
    """Transpose of the last two axes."""
    return x.mT


def concat(parts, axis):
    """List of arrays, alike but for their length along `axis`, one behind another."""
    return torch.cat(parts, axis)


def stack(parts, axis):
    """List of N arrays of one shape -> one array with a new axis of length N at `axis`."""
    return torch.stack(parts, axis)


def pad(x, widths):
    """Zeros around `x`; `widths` is ((before, after), ...) for every axis."""
    return functional.pad(x, [count for pair in reversed(widths) for count in pair])


def take(table, indices):
    """Rows of `table` (N, D) at integer `indices` of any shape -> (..., D)."""
    return functional.embedding(indices, table)


def weighted_rows(table, indices, weights):
    """Sums of rows of `table` (N, D), float32, at int64 `indices` (M, K) times `weights` (M, K) -> (M, D): a product with a sparse matrix."""
    return functional.embedding_bag(indices, table, mode="sum", per_sample_weights=weights)


def where(condition, a, b):
    """`a` where the boolean `condition` holds, else `b`; shapes broadcast."""
    return torch.where(condition, a, b)


def sum(x, axis=None, keepdims=False):
    """Sum over an axis, or of all numbers."""
    return torch.sum(x, axis, keepdim=keepdims)


def mean(x, axis=None, keepdims=False):
    """Mean over an axis, or of all numbers."""
    return torch.mean(x, axis, keepdim=keepdims)


def max(x, axis=None, keepdims=False):
    """Largest value along an axis, or of all numbers. Among equals the gradient is an array library's own affair."""
    return torch.amax(x) if axis is None else torch.amax(x, axis, keepdim=keepdims)


def cummax(x, axis):
    """Largest value of `x` so far along an axis."""
    return torch.cummax(x, axis).values


def abs(x):
    """Magnitude of every number."""
    return torch.abs(x)


def sign(x):
    """-1, 0 or 1 for every number, in the type of `x`; no gradient."""
    return torch.sign(x)


def round(x):
    """Nearest integer, ties to even."""
    return torch.round(x)


def clip(x, low, high):
    """Every number but at least `low` and at most `high`, two plain numbers; no gradient outside."""
    return torch.clamp(x, low, high)


def maximum(x, low):
    """`x` but at least the number `low`."""
    return torch.clamp_min(x, low)


def exp(x):
    """e to the power of every number."""
    return torch.exp(x)


def log(x):
    """Natural logarithm of every number."""
    return torch.log(x)


def expm1(x):
    """exp(x) - 1, exact near 0."""
    return torch.expm1(x)


def softplus(x):
    """log(1 + exp(x))."""
    return functional.softplus(x)


def cos(x):
    """Cosine of every number, in radians."""
    return torch.cos(x)


def sin(x):
    """Sine of every number, in radians."""
    return torch.sin(x)


def sqrt(x):
    """Square root of every number."""
    return torch.sqrt(x)


def rsqrt(x):
    """One over the square root of every number."""
    return torch.rsqrt(x)


def sigmoid(x):
    """1 / (1 + exp(-x)) of every number."""
    return torch.sigmoid(x)


def leaky_relu(x, slope):
    """Every number, those below zero times `slope`."""
    return functional.leaky_relu(x, slope)


def linear(x, weight):
    """(..., I) and (O, I) -> (..., O)."""
    return functional.linear(x, weight)


def fp8_linear(x, weight):
    """`linear` in 8-bit floats: x (..., I) rounds, a decoded ternary matrix (O, I) with one scale a row does not. Multiples of 16."""
    return Fp8Product.apply(x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], -1)


def inverse(x):
    """Inverses of matrices (..., N, N) float32."""
    return torch.linalg.inv(x)


def rotary_table(frequencies, length, dtype):
    """What `rotary` needs for `length` positions of x with `dtype`: of frequencies (F,) in radians a position."""
    angles = torch.arange(float(length), device=frequencies.device)[:, None] * frequencies
    return angles.cos().to(getattr(torch, dtype)), angles.sin().to(getattr(torch, dtype))


def rotary(x, table):
    """x (..., T, D) with its first 2 F channels turned by their positions' angles, halves paired; the rest carries no position."""
    cos, sin = table
    half = cos.shape[1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def rms_norm(x):
    """`x` divided by the root mean square of its last axis (epsilon 1e-6)."""
    return functional.rms_norm(x, x.shape[-1:], eps=1e-6)


def attention(q, k, v):
    """Causal attention: q (B, H, T, D), k and v (B, K, T, D) with K dividing H; scores are scaled by 1/sqrt(D). -> (B, H, T, D)."""
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def flash_attention(q, k, v):
    """`attention`, by FlashAttention where this machine has it: chosen at the first call and printed. Measurements in float32 keep `attention`."""
    return (attention if q.dtype == torch.float32 else flash_kernel(q, k, attention))(q, k, v)


def masked_attention(q, k, v, visible):
    """`attention` that is not causal by itself: boolean `visible` (B, 1, T, T) is True where a query (third axis) sees a key (fourth)."""
    repeat = q.shape[1] // k.shape[1]  # with a mask, enable_gqa leaves a GPU only its plain kernel, which stores every score
    if repeat > 1:
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    return functional.scaled_dot_product_attention(q, k, v, visible)


def linear_scan(decays, inputs):
    """States h_t = decays_t * h_(t-1) + inputs_t along the second axis of (B, T, C), from h = 0. Linear in T, forward and back."""
    return LinearScan.apply(decays, inputs)


def complex_scan(decays, inputs):
    """`linear_scan` of complex numbers, arrays (B, T, 2 C) with the real parts first. Decays have a modulus of 1 at most."""
    return ComplexScan.apply(decays, inputs)


def logsumexp(x, axis):
    """Logarithm of the sum of exponentials along an axis, which goes away."""
    return torch.logsumexp(x, axis)


def complex_filter(x, taps):
    """Causal filter of complex channels over time: real x (B, T, 2C), real parts before imaginary ones, and taps (2C, K), likewise and
    that of lag 0 first -> (B, T, 2C). By FFT, so that an output holds rounding of what comes after it."""
    return ComplexFilter.apply(x, taps)


def softmax(x):
    """Softmax of `x` over its last axis."""
    return functional.softmax(x, -1)


def log_softmax(x):
    """`x` minus the logarithm of the sum of exponentials over its last axis."""
    return functional.log_softmax(x, -1)


def cross_entropy(logits, targets):
    """Negative log-likelihood in nats of integer `targets` (...) under float32 `logits` (..., V) -> (...)."""
    flat = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).long(), reduction="none")
    return flat.reshape(targets.shape)


def recomputed(function, *inputs):
    """function(*inputs), whose inner values the backward pass computes again instead of keeping. Gradients reach `inputs` only."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def pullback(function, *inputs):
    """(function(*inputs), its transpose: an array like that value -> [gradients of their inner product with respect to each of `inputs`]),
    the linear map that a backward pass is, to be applied as often as one likes. What else the function reads is constant."""
    with torch.enable_grad():
        given = [x.detach().requires_grad_() for x in inputs]
        value = function(*given)

    def transpose(cotangent):
        return list(torch.autograd.grad(value, given, cotangent, retain_graph=True, materialize_grads=True))

    return value.detach(), transpose


def pushforward(function, inputs, tangents):
    """(function(*inputs), its derivative along `tangents`), two lists of arrays alike. Gradients pass through both."""
    return torch.func.jvp(function, tuple(inputs), tuple(tangents))


def stop_gradient(x):
    """`x` going forward, no gradient going back."""
    return x.detach()


def straight_through(x, value):
    """`value` going forward, the gradient of `x` going back (STE)."""
    return value.detach() + (x - x.detach())
