"""Split-step block: complex channels pass a causal filter, then each is turned by an angle that depends on its size and on the token.

As light in a fibre: dispersion acts on frequencies, self-phase modulation on moments. A turn keeps every channel's size, so the energy that
enters the output matrix is set by `gamma` alone; what the phases say becomes values where that matrix adds channels up.

u = gain * rms_norm(h); z = in u; y = taps * z over time; r = gamma y / sqrt(mean |y|^2); angle = pi tanh(a + b |r|^2 / (1 + |r|^2) + turn u);
h + out (r e^(j angle)). Shapes: B batch, T time, D model width, M complex channels as two planes (2M).
"""

import math
from dataclasses import dataclass

from trit.layers.fir import block_filter, document_filter, filter_spec, first_taps
from trit.layers.functions import hyperbolic_tangent
from trit.layers.linear import project
from trit.layers.modal import modal_filter, modal_spec
from trit.params import matrix_spec, scalar_spec
from trit.setting import check_values, setting


@dataclass(frozen=True)
class SplitStepConfig:
    """What one can set of the block."""

    fir_channels: int = setting(0, "complex channels of a block; 0 is model.model_dim")
    filter: str = setting(
        "fir",
        "their filters: taps that are learned one by one, or a decaying oscillation each, without an end and of four numbers",
        choices=("fir", "modal"),
        env="SPECTRAL_FILTER",
    )
    fir_taps: int = setting(
        64, "taps of the filters: a block sees so many tokens, itself included; with filter=modal thrice the longest horizon at the start"
    )
    fir_bits: int = setting(8, "bits of a tap: 4 to 8, or 16 for floats")
    fir_training: str = setting(
        "fft", "how training filters: by FFT, or by blocks as every evaluation does", choices=("fft", "blocks"), env="FIR_TRAINING"
    )
    turn: str = setting(
        "input", "what turns a channel: nothing but a constant, its own size, or that and the token", choices=("input", "self", "none")
    )


def check_split_step(cfg):
    """ValueError where the block's settings cannot be."""
    check_values(
        ("fir_channels", cfg.arch.fir_channels, cfg.arch.fir_channels >= 0, "must be positive, or 0 for model.model_dim"),
        ("fir_taps", cfg.arch.fir_taps, cfg.arch.fir_taps > 0, "must be 1 or more"),
        ("fir_bits", cfg.arch.fir_bits, cfg.arch.fir_bits in (4, 5, 6, 7, 8, 16), "must be 4 to 8, or 16: filters are not ternary"),
    )
    if cfg.arch.filter == "modal":
        check_values(
            ("fir_bits", cfg.arch.fir_bits, cfg.arch.fir_bits == SplitStepConfig.fir_bits, "is of taps; modes have quant.scalar_bits"),
            ("fir_training", cfg.arch.fir_training, cfg.arch.fir_training == "fft", "is of taps; modes have one form"),
        )
        if cfg.train.ladder:
            raise ValueError(f"train.ladder={cfg.train.ladder!r} smooths taps, which arch.filter=modal has not; set arch.filter=fir")


def split_step_specs(cfg, name):
    """Parameters of one block. Rows of `in` and columns of `out`: real parts (M), imaginary parts (M)."""
    width = cfg.model.model_dim
    channels = cfg.arch.fir_channels or width
    specs = [
        scalar_spec(cfg, name + ".gain", (width,), 1.0),
        matrix_spec(cfg, name + ".in", 2 * channels, width, width**-0.5),
        modal_spec(cfg, name + ".modes", channels) if cfg.arch.filter == "modal" else filter_spec(cfg, name + ".taps", channels),
        scalar_spec(cfg, name + ".gamma", (channels,), 1.0),
        scalar_spec(cfg, name + ".angle", (channels,), 0.0),
    ]
    if cfg.arch.turn != "none":
        specs.append(scalar_spec(cfg, name + ".bend", (channels,), 0.5))
    if cfg.arch.turn == "input":
        specs.append(matrix_spec(cfg, name + ".turn", channels, width, 0.5 * width**-0.5))
    deviation = (2 * channels * 2 * cfg.model.num_layers) ** -0.5
    return [*specs, matrix_spec(cfg, name + ".out", width, 2 * channels, deviation)]


def block_taps(ops, p, cfg, name, layer, like):
    """Taps (2M, K) of a block: the start and what was learned, smoothed where `p` says how ("smoothing": (K, K), trit/layers/cutoff.py)."""
    taps = p[name + ".taps"] + first_taps(ops, cfg.arch.fir_channels or cfg.model.model_dim, cfg.arch.fir_taps, layer, like)
    if cfg.train.ladder and "smoothing" in p:
        taps = ops.linear(taps, p["smoothing"])
    return taps


def turn_angle(ops, p, cfg, name, energy, u):
    """Angle in radians, below pi in size, by which channels of squared size `energy` (B, T, M) are turned; the token's normalised stream
    is `u` (B, T, D)."""
    angle = p[name + ".angle"]
    if cfg.arch.turn != "none":
        angle = angle + p[name + ".bend"] * (energy / (1.0 + energy))
    if cfg.arch.turn == "input":
        angle = angle + project(ops, p, cfg, name + ".turn", u)
    return math.pi * hyperbolic_tangent(ops, angle)


def turned(ops, p, cfg, name, x, u):
    """x (B, T, 2M) with every channel turned; nothing is divided by a size, so that a channel at zero has a gradient."""
    # Unpacked, not sliced: the gradient of two slices is a sum of two padded arrays, which a compiler turns into masked loads.
    real, imaginary = ops.permute(ops.reshape(x, (x.shape[0], x.shape[1], 2, -1)), (2, 0, 1, 3))
    angle = turn_angle(ops, p, cfg, name, real * real + imaginary * imaginary, u)
    cosine, sine = ops.cos(angle), ops.sin(angle)
    return ops.concat([real * cosine - imaginary * sine, real * sine + imaginary * cosine], 2)


def lifted(ops, p, cfg, name, x):
    """Stream x (B, T, D) -> (what is read of it (B, T, D), the complex channels before the filter (B, T, 2M) in 32 bits)."""
    u = ops.rms_norm(x) * p[name + ".gain"]
    z = project(ops, p, cfg, name + ".in", u)
    if cfg.train.compute_dtype != "float32":
        z = ops.cast(z, "float32")  # a sum over K tokens, and a transform of hundreds, need more than 16 bits
    return u, z


def scaled(ops, p, name, y):
    """Filtered channels y (B, T, 2M) over their root mean square. One scale for all channels of a token: relative sizes and all phases stay,
    which a norm of every channel would not leave."""
    gamma = p[name + ".gamma"] * math.sqrt(0.5)  # rms_norm divides by the mean over planes, a channel has two
    return ops.rms_norm(y) * ops.concat([gamma, gamma], 0)


def lowered(ops, p, cfg, name, y, u):
    """Filtered channels y (B, T, 2M) -> the block's update (B, T, D)."""
    r = turned(ops, p, cfg, name, scaled(ops, p, name, y), u)
    if cfg.train.compute_dtype != "float32":
        r = ops.cast(r, cfg.train.compute_dtype)
    return project(ops, p, cfg, name + ".out", r)


def filtered_channels(ops, p, cfg, name, layer, z, tokens):
    """Complex channels z (B, T, 2M) behind the filters of block number `layer`."""
    if cfg.arch.filter == "modal":
        return modal_filter(ops, cfg, p[name + ".modes"], layer, z, tokens, None)
    taps = block_taps(ops, p, cfg, name, layer, z)
    if cfg.model.isolate_documents:
        return document_filter(ops, z, taps, tokens)
    if cfg.arch.fir_training == "fft" and "training" in p:
        return ops.complex_filter(z, taps)
    return block_filter(ops, z, taps, None)


def split_step_layer(ops, p, cfg, name, layer, x, tokens):
    """Stream x (B, T, D) -> what block number `layer` adds to it. A `p` that holds "training" is a training step's: its filters may be
    applied by FFT."""
    u, z = lifted(ops, p, cfg, name, x)
    return lowered(ops, p, cfg, name, filtered_channels(ops, p, cfg, name, layer, z, tokens), u)


def split_step_stream(ops, p, cfg, name, layer, x, tokens, before, by_fft):
    """(update of the next tokens' stream x (B, S, D), the K - 1 last inputs of the filter (B, K - 1, 2M) for the tokens after them).
    `before` holds those before x. With `by_fft` the segment is convolved with what is before it, and the outputs of that dropped
    (overlap-save). With arch.filter=modal the last outputs (B, 1, 2M) are all that is kept."""
    u, z = lifted(ops, p, cfg, name, x)
    if cfg.arch.filter == "modal":
        y = modal_filter(ops, cfg, p[name + ".modes"], layer, z, tokens, before)
        return lowered(ops, p, cfg, name, y, u), y[:, y.shape[1] - 1 :]
    taps, whole = block_taps(ops, p, cfg, name, layer, z), ops.concat([before, z], 1)
    y = ops.complex_filter(whole, taps)[:, before.shape[1] :] if by_fft else block_filter(ops, z, taps, before)
    return lowered(ops, p, cfg, name, y, u), whole[:, z.shape[1] :]
