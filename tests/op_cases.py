"""One row or more for every op of the vocabulary: how to call it, a numpy reference, inputs. `test_parity` runs them on both backends."""

import math
from typing import NamedTuple

import numpy as np

GENERATOR = np.random.default_rng(7)


class Case(NamedTuple):
    """`call(ops, *arrays)` on backend arrays and `reference(*arrays)` on numpy ones must agree; `gradients` says whether these must too."""

    op: str
    call: object
    reference: object
    inputs: tuple
    gradients: bool = True


def normal(*shape):
    return GENERATOR.normal(0, 1, shape).astype(np.float32)


def logistic(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(q, k, v):
    return masked_attention(q, k, v, np.tril(np.ones((q.shape[2], q.shape[2]), bool)))


def masked_attention(q, k, v, visible):
    repeat = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeat, 1), np.repeat(v, repeat, 1)
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    return softmax(np.where(visible, scores, -np.inf)) @ v


def rotary(x, frequencies):
    """x (B, H, T, D), the first two times (F,) channels as F complex numbers, halves paired, turned by position times frequency."""
    half = len(frequencies)
    angles = np.arange(x.shape[2])[:, None] * frequencies.astype(np.float64)
    turned = (x[..., :half] + 1j * x[..., half : 2 * half]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag, x[..., 2 * half :]], -1)


def turned(ops, x, frequencies):
    """`rotary` by the vocabulary: an array library's table is its own affair. Frequencies are no parameters."""
    return ops.rotary(x, ops.rotary_table(ops.stop_gradient(frequencies), x.shape[2], "float32"))


def linear_scan(decays, inputs):
    state, states = np.zeros_like(inputs[:, 0]), []
    for step in range(inputs.shape[1]):
        state = decays[:, step] * state + inputs[:, step]
        states.append(state)
    return np.stack(states, 1)


def complex_scan(decays, inputs):
    """The recurrence in complex128, step by step; arrays (B, T, 2 C), real parts first."""
    a, b = (np.float64(x[..., : x.shape[-1] // 2]) + 1j * x[..., x.shape[-1] // 2 :] for x in (decays, inputs))
    states = linear_scan(a, b)
    return np.concatenate([states.real, states.imag], -1)


def turning_decays(*shape):
    """Complex numbers of a modulus up to 1, one in eight of them 0, real parts first."""
    modulus, angle = some_decays(*shape), GENERATOR.uniform(-3, 3, shape)
    return np.concatenate([modulus * np.cos(angle), modulus * np.sin(angle)], -1).astype(np.float32)


def complex_filter(x, taps):
    """x (B, T, 2C) and taps (2C, K) as C complex channels, filtered lag by lag."""
    channels, length = x.shape[2] // 2, x.shape[1]
    z = x[..., :channels].astype(np.float64) + 1j * x[..., channels:]
    weights = taps[:channels].astype(np.float64) + 1j * taps[channels:]
    y = np.zeros(z.shape, np.complex128)
    for lag in range(min(taps.shape[1], length)):
        y[:, lag:] += weights[:, lag] * z[:, : length - lag]
    return np.concatenate([y.real, y.imag], -1)


def some_decays(*shape):
    """Uniform in (0, 1), one in eight of them 0."""
    return (GENERATOR.random(shape) * (GENERATOR.random(shape) > 0.125)).astype(np.float32)


def some_visible(rows, length):
    """Random boolean mask (rows, 1, length, length) in which every query sees itself at least."""
    return (GENERATOR.random((rows, 1, length, length)) < 0.3) | np.eye(length, dtype=bool)


def cross_entropy(logits, targets):
    return -np.log(np.take_along_axis(softmax(logits.astype(np.float64)), targets[..., None].astype(np.int64), -1)[..., 0])


X = normal(3, 4, 5)
POSITIVE = np.abs(normal(3, 4)) + 0.1
TOKENS = GENERATOR.integers(0, 6, (2, 3)).astype(np.int32)
EIGHT_BITS = np.concatenate([np.full((2, 3, 1), 7), GENERATOR.integers(-7, 8, (2, 3, 15))], -1).astype(np.float32)
TERNARY = (GENERATOR.integers(-1, 2, (32, 16)) * GENERATOR.uniform(0.5, 2.0, (32, 1))).astype(np.float32)
HALVES = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997, 3.2], np.float32)
SPREAD = np.concatenate([normal(50), normal(50) * 1e-4, normal(20) * 1e4, [0.0, 65504.0]]).astype(np.float32)
SUBNORMAL = np.array([6e-8, 3e-5, -1e-6, 2.98e-8], np.float32)

CASES = [
    Case(
        "from_numpy",
        lambda ops, x: ops.from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3), x),
        lambda x: np.arange(6.0).reshape(2, 3),
        (X,),
        False,
    ),
    Case(
        "to_numpy",
        lambda ops, x: ops.from_numpy(ops.to_numpy(ops.cast(x, "bfloat16"))),
        lambda x: np.round(x),
        (np.arange(9, dtype=np.float32),),
        False,
    ),
    Case("cast", lambda ops, x: ops.cast(ops.cast(x, "float16"), "float32"), lambda x: x.astype(np.float16), (SPREAD,)),
    Case("cast", lambda ops, x: ops.cast(ops.cast(x, "float16"), "float32"), lambda x: x.astype(np.float16), (SUBNORMAL,)),
    Case("cast", lambda ops, x: ops.cast(x, "int64"), lambda x: x.astype(np.int64), (HALVES,), False),
    Case("cast", lambda ops, x: ops.cast(x > 0, "float32"), lambda x: x > 0, (X,), False),
    Case("zeros", lambda ops, x: ops.zeros((2, 3), x), lambda x: np.zeros((2, 3)), (X,), False),
    Case("zeros", lambda ops, x: ops.zeros((), x), lambda x: np.zeros(()), (X,), False),
    Case("constant", lambda ops, x: ops.constant([1.0, 2.5, -3.0], x), lambda x: np.array([1, 2.5, -3]), (TOKENS,), False),
    Case("arange", lambda ops, x: ops.arange(5, x), lambda x: np.arange(5.0), (TOKENS,), False),
    Case("reshape", lambda ops, x: ops.reshape(x, (5, -1)), lambda x: x.reshape(5, -1), (X,)),
    Case("permute", lambda ops, x: ops.permute(x, (2, 0, 1)), lambda x: x.transpose(2, 0, 1), (X,)),
    Case("swap_last", lambda ops, x: ops.swap_last(x), lambda x: x.swapaxes(-1, -2), (X,)),
    Case("concat", lambda ops, x, y: ops.concat([x, y], -1), lambda x, y: np.concatenate([x, y], -1), (X, normal(3, 4, 2))),
    Case("stack", lambda ops, x, y: ops.stack([x, y], -1), lambda x, y: np.stack([x, y], -1), (X, normal(3, 4, 5))),
    Case("pad", lambda ops, x: ops.pad(x, ((0, 1), (2, 0), (0, 0))), lambda x: np.pad(x, ((0, 1), (2, 0), (0, 0))), (X,)),
    Case("pad", lambda ops, x: ops.pad(x, ((0, 0), (2, 0))), lambda x: np.pad(x, ((0, 0), (2, 0))), (TOKENS,), False),
    Case("take", lambda ops, table, i: ops.take(table, i), lambda table, i: table[i], (normal(6, 4), TOKENS)),
    Case("take", lambda ops, table, i: ops.take(table, i), lambda table, i: table[i], (normal(6, 4), TOKENS.astype(np.int64))),
    Case(
        "weighted_rows",
        lambda ops, table, i, weights: ops.weighted_rows(table, i, weights),
        lambda table, i, weights: (weights[..., None] * table[i]).sum(1),
        (normal(6, 4), np.array([[0, 5, 5], [2, 1, 0], [3, 3, 3], [4, 0, 1], [5, 2, 2]]), normal(5, 3)),
    ),
    Case("where", lambda ops, x, y: ops.where(x > 0, x, y), lambda x, y: np.where(x > 0, x, y), (X, normal(3, 4, 5))),
    Case("where", lambda ops, x, y: ops.where(x > 0, x, y), lambda x, y: np.where(x > 0, x, y), (normal(3, 1), normal(3, 4))),
    Case("sum", lambda ops, x: ops.sum(x), lambda x: x.sum(), (X,)),
    Case("sum", lambda ops, x: ops.sum(x, 1, True), lambda x: x.sum(1, keepdims=True), (X,)),
    Case("mean", lambda ops, x: ops.mean(x), lambda x: x.mean(), (X,)),
    Case("mean", lambda ops, x: ops.mean(x, -1, True), lambda x: x.mean(-1, keepdims=True), (X,)),
    Case("mean", lambda ops, x: ops.mean(x, 0), lambda x: x.mean(0), (X,)),
    Case("max", lambda ops, x: ops.max(x), lambda x: x.max(), (X,)),
    Case("max", lambda ops, x: ops.max(x, -1, True), lambda x: x.max(-1, keepdims=True), (X,)),
    Case("cummax", lambda ops, x: ops.cummax(x, 1), lambda x: np.maximum.accumulate(x, 1), (X,), False),
    Case("cummax", lambda ops, x: ops.cummax(x, -1), lambda x: np.maximum.accumulate(x, -1), (np.float32([[0, 3, 3, 0, -1, 9]]),), False),
    Case("abs", lambda ops, x: ops.abs(x), np.abs, (X,)),
    Case("sign", lambda ops, x: ops.sign(x), np.sign, (HALVES * X[0, 0, 0],)),
    Case("sign", lambda ops, x: ops.sign(x), np.sign, (np.zeros(3, np.float32),)),
    Case("round", lambda ops, x: ops.round(x), np.round, (HALVES,)),
    Case("clip", lambda ops, x: ops.clip(x, -0.5, 0.7), lambda x: np.clip(x, -0.5, 0.7), (X,)),
    Case("maximum", lambda ops, x: ops.maximum(x, 0.25), lambda x: np.maximum(x, 0.25), (X,)),
    Case("exp", lambda ops, x: ops.exp(x), np.exp, (X,)),
    Case("log", lambda ops, x: ops.log(x), np.log, (POSITIVE,)),
    Case("expm1", lambda ops, x: ops.expm1(x), np.expm1, (X * np.float32(1e-3),)),
    Case("softplus", lambda ops, x: ops.softplus(x), lambda x: np.logaddexp(x, 0), (normal(20) * 6,)),
    Case("sqrt", lambda ops, x: ops.sqrt(x), np.sqrt, (POSITIVE,)),
    Case("rsqrt", lambda ops, x: ops.rsqrt(x), lambda x: 1 / np.sqrt(x), (POSITIVE,)),
    Case("inverse", lambda ops, x: ops.inverse(x), np.linalg.inv, (np.eye(5, dtype=np.float32) * 4 + normal(3, 5, 5),)),
    Case("rotary_table", turned, rotary, (normal(2, 3, 300, 8), np.float32([1.0, 0.03]))),
    Case("rotary", turned, rotary, (normal(2, 1, 17, 6), np.float32([1.0, 0.5, 0.01]))),
    Case("cos", lambda ops, x: ops.cos(x), np.cos, (normal(20) * 50,)),
    Case("sin", lambda ops, x: ops.sin(x), np.sin, (normal(20) * 50,)),
    Case("sigmoid", lambda ops, x: ops.sigmoid(x), lambda x: 1 / (1 + np.exp(-x)), (normal(20) * 5,)),
    Case(
        "leaky_relu", lambda ops, x: ops.leaky_relu(x, 0.5), lambda x: np.where(x > 0, x, 0.5 * x), (np.append(X.ravel(), np.float32(0)),)
    ),
    Case("linear", lambda ops, x, w: ops.linear(x, w), lambda x, w: x @ w.T, (X, normal(7, 5))),
    # Rows of whole numbers up to 7 are exact in 8-bit floats, so that rounding and plain products agree; their gradients are not.
    Case("fp8_linear", lambda ops, x, w: ops.fp8_linear(x, w), lambda x, w: x @ w.T, (EIGHT_BITS, TERNARY), False),
    Case("rms_norm", lambda ops, x: ops.rms_norm(x), lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6), (X,)),
    Case("rms_norm", lambda ops, x: ops.rms_norm(x), lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6), (X * 1e-3,), False),
    Case("rms_norm", lambda ops, x: ops.rms_norm(x), lambda x: x, (np.zeros((2, 4), np.float32),), False),
    Case("attention", lambda ops, q, k, v: ops.attention(q, k, v), attention, (normal(2, 4, 9, 8), normal(2, 2, 9, 8), normal(2, 2, 9, 8))),
    Case(
        "attention", lambda ops, q, k, v: ops.attention(q, k, v), attention, (normal(1, 3, 17, 4), normal(1, 3, 17, 4), normal(1, 3, 17, 4))
    ),
    Case("attention", lambda ops, q, k, v: ops.attention(q, k, v), attention, (normal(1, 4, 1, 8), normal(1, 1, 1, 8), normal(1, 1, 1, 8))),
    Case(
        "flash_attention",
        lambda ops, q, k, v: ops.flash_attention(q, k, v),
        attention,
        (normal(2, 4, 9, 8), normal(2, 2, 9, 8), normal(2, 2, 9, 8)),
    ),
    Case(
        "masked_attention",
        lambda ops, q, k, v, m: ops.masked_attention(q, k, v, m),
        masked_attention,
        (normal(2, 4, 9, 8), normal(2, 2, 9, 8), normal(2, 2, 9, 8), some_visible(2, 9)),
    ),
    Case(
        "masked_attention",
        lambda ops, q, k, v, m: ops.masked_attention(q, k, v, m),
        masked_attention,
        (normal(1, 3, 17, 4), normal(1, 3, 17, 4), normal(1, 3, 17, 4), some_visible(1, 17)),
    ),
    Case(
        "masked_attention",
        lambda ops, q, k, v, m: ops.masked_attention(q, k, v, m),
        masked_attention,
        (normal(1, 4, 1, 8), normal(1, 1, 1, 8), normal(1, 1, 1, 8), some_visible(1, 1)),
    ),
    Case("linear_scan", lambda ops, a, b: ops.linear_scan(a, b), linear_scan, (some_decays(2, 77, 3), normal(2, 77, 3))),
    Case("linear_scan", lambda ops, a, b: ops.linear_scan(a, b), linear_scan, (some_decays(1, 1, 4), normal(1, 1, 4))),
    Case("linear_scan", lambda ops, a, b: ops.linear_scan(a, b), linear_scan, (some_decays(1, 700, 2) * 0.2 + 0.8, normal(1, 700, 2))),
    Case("complex_scan", lambda ops, a, b: ops.complex_scan(a, b), complex_scan, (turning_decays(2, 77, 3), normal(2, 77, 6))),
    Case("complex_scan", lambda ops, a, b: ops.complex_scan(a, b), complex_scan, (turning_decays(1, 1, 4), normal(1, 1, 8))),
    Case("logsumexp", lambda ops, x: ops.logsumexp(x, 0), lambda x: np.log(np.exp(x).sum(0)), (X * 4,)),
    Case("logsumexp", lambda ops, x: ops.logsumexp(x, 1), lambda x: np.log(np.exp(x).sum(1)), (X + 30,)),
    Case("complex_filter", lambda ops, x, taps: ops.complex_filter(x, taps), complex_filter, (normal(2, 21, 6), normal(6, 8))),
    Case("complex_filter", lambda ops, x, taps: ops.complex_filter(x, taps), complex_filter, (normal(1, 1, 2), normal(2, 5))),
    Case("complex_filter", lambda ops, x, taps: ops.complex_filter(x, taps), complex_filter, (normal(2, 3, 4), normal(4, 1))),
    Case("softmax", lambda ops, z: ops.softmax(z), softmax, (normal(2, 3, 6) * 4,)),
    Case("softmax", lambda ops, z: ops.softmax(z), softmax, (normal(2, 3, 6) + 30,)),
    Case("log_softmax", lambda ops, z: ops.log_softmax(z), lambda z: np.log(softmax(z)), (normal(2, 3, 6) * 4,)),
    Case("log_softmax", lambda ops, z: ops.log_softmax(z), lambda z: np.log(softmax(z)), (normal(2, 3, 6) + 30,)),
    Case("cross_entropy", lambda ops, z, t: ops.cross_entropy(z, t), cross_entropy, (normal(2, 3, 6) * 4, TOKENS)),
    Case("cross_entropy", lambda ops, z, t: ops.cross_entropy(z, t), cross_entropy, (normal(2, 3, 6) + 30, TOKENS.astype(np.int64))),
    Case("recomputed", lambda ops, x, y: ops.recomputed(lambda a, b: ops.exp(a) * b, x, y), lambda x, y: np.exp(x) * y, (X, X + 1)),
    Case(
        "pullback",
        lambda ops, x, y: ops.concat([ops.pullback(lambda a, b: a * a * b, x, y)[0], *ops.pullback(lambda a, b: a * a * b, x, y)[1](x)], 0),
        lambda x, y: np.concatenate([x * x * y, 2 * x * x * y, x**3]),
        (X, X + 1),
        gradients=False,
    ),
    Case(
        "pushforward",
        lambda ops, x, y: ops.concat(ops.pushforward(lambda a, b: ops.sigmoid(a) * b, [x, y], [y, x]), 0),
        lambda x, y: np.concatenate([logistic(x) * y, logistic(x) * (1 - logistic(x)) * y * y + logistic(x) * x]),
        (X, X + 1),
    ),
    Case("stop_gradient", lambda ops, x: ops.stop_gradient(x) * x, lambda x: x * x, (X,)),
    Case("straight_through", lambda ops, x: ops.straight_through(x, ops.round(x)) * 2.0, lambda x: np.round(x) * 2, (X,)),
]
