"""Matrix products by parameter name, so that calibration can observe the inputs of every stored matrix."""

from trit.params import matrix_spec, scalar_spec


def project(ops, p, cfg, name, x):
    """`x` (..., I) times the matrix called `name` (O, I) -> (..., O). Where `p` holds a dict under "taps", the second moment of the
    inputs (I, I), the mean of x^T x, is left there under the matrix's name. A `p` that holds "fp8" asks for products in 8-bit floats:
    its matrices are ternary with one scale a row."""
    if (cfg.compress.calibration_evals or cfg.compress.allocate) and "taps" in p:
        channels = ops.swap_last(ops.cast(ops.reshape(x, (-1, x.shape[-1])), "float32"))
        p["taps"][name] = ops.linear(channels, channels) / channels.shape[1]
    if cfg.train.fp8 and "fp8" in p:
        return ops.fp8_linear(x, p[name])
    return ops.linear(x, p[name])


def normed_projection_specs(cfg, name, rows, columns, std):
    """A matrix whose input is normalised first, with a learned gain for every input channel."""
    return [scalar_spec(cfg, name + ".gain", (columns,), 1.0), matrix_spec(cfg, name, rows, columns, std)]


def normed_project(ops, p, cfg, name, x):
    """RMS-normalise `x` (..., I), scale its channels and multiply by the matrix called `name` -> (..., O)."""
    return project(ops, p, cfg, name, ops.rms_norm(x) * p[name + ".gain"])
