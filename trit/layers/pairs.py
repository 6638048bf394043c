"""Complex numbers as pairs of real arrays, the real parts before the imaginary ones: x (..., 2 C) holds C of them. No complex dtype is used,
so that models of complex numbers run wherever the array libraries do."""

from trit.layers.linear import project
from trit.params import matrix_spec, scalar_spec


def halves(x):
    """Real and imaginary parts (..., C) of x (..., 2 C)."""
    width = x.shape[-1] // 2
    return x[..., :width], x[..., width:]


def doubled(ops, x):
    """Real factors (..., C) of complex numbers, as factors (..., 2 C) of their parts."""
    return ops.concat([x, x], -1)


def quarter_turned(ops, x):
    """i x."""
    real, imaginary = halves(x)
    return ops.concat([-imaginary, real], -1)


def turned(ops, cfg, x, angles):
    """x (..., 2 C) times e^(i angles) with float32 angles (..., C)."""
    real, imaginary = halves(x)
    cosine, sine = ops.cast(ops.cos(angles), cfg.train.compute_dtype), ops.cast(ops.sin(angles), cfg.train.compute_dtype)
    return ops.concat([real * cosine - imaginary * sine, imaginary * cosine + real * sine], -1)


def pair_matrix_spec(cfg, name, rows, columns):
    """A complex matrix (rows, columns) as a real one (rows, 2 columns) whose columns alternate real and imaginary parts, so that every
    group of weights holds both parts of its numbers under one scale: another scale for each would turn their phases. E|Wz|^2 = E|z|^2."""
    return matrix_spec(cfg, name, rows, 2 * columns, (2 * columns) ** -0.5)


def pair_project(ops, p, cfg, name, x):
    """x (..., 2 I) times the complex matrix called `name` (O, I) -> (..., 2 O), as two rows of one real product."""
    real, imaginary = halves(x)
    rows = ops.stack([ops.stack([real, -imaginary], -1), ops.stack([imaginary, real], -1)], 0)
    y = project(ops, p, cfg, name, ops.reshape(rows, (2, *x.shape)))
    return ops.concat([y[0], y[1]], -1)


def pair_norm_spec(cfg, name, channels):
    """Gains (C,) of `pair_norm`."""
    return scalar_spec(cfg, name, (channels,), 1.0)


def pair_norm(ops, p, name, x):
    """x (..., 2 C) divided by the root mean square of its C moduli, times gains. Phases stay: the factor is real, and positive with the
    gain."""
    return ops.rms_norm(x) * doubled(ops, p[name] * 0.5**0.5)
