"""Causal filters without an end: of every complex channel one decaying oscillation, g[k] = A rho^k e^(j theta k), as a recurrence.

s_t = rho e^(j theta) s_(t-1) + A z_t: what a filter of so many taps cuts off goes on, a text streams from one number a channel, and the
cost of a token does not grow with the memory. One pole where the taps of trit/layers/fir.py may have any shape.

Learned is the share of its state that a channel forgets, on a logistic scale between bounds (trit/layers/scan.py): that is the horizon,
1 / (1 - rho) tokens, on a logarithmic one. rho itself would need more digits than are stored where horizons are long.

Complex numbers are two planes, real parts before imaginary ones. Shapes: B batch, T time, M complex channels.
"""

from trit.data.token_ids import BOS_ID
from trit.layers.fir import first_pitches
from trit.layers.scan import state_share, token_horizon_logits
from trit.params import ParamSpec, on_grid


def modal_spec(cfg, name, channels):
    """Modes (4, M), a scale for each row: logits of the share forgotten, frequencies in radians a token, and real and imaginary parts of
    the amplitude, all as distances from their start."""
    spec = ParamSpec(name, (4, channels), "constant", 0.0, "scalar", adapt="conv")
    return on_grid(spec, cfg.quant.scalar_bits, channels, cfg.quant.scalar_clip)


def modal_rates(ops, cfg, modes, layer):
    """modes (4, M) -> (rho e^(j theta), A), (2M,) float32 each. At the start horizons are log-spaced from 2 to a third of arch.fir_taps,
    frequencies are those of `first_taps`, and every filter has energy 1: |A|^2 = 1 - rho^2."""
    channels = modes.shape[1]
    if cfg.train.compute_dtype != "float32":
        modes = ops.cast(modes, "float32")
    share = state_share(ops, modes[0] + token_horizon_logits(ops, channels, max(cfg.arch.fir_taps / 3.0, 2.0), modes))
    angle = modes[1] + ops.constant(first_pitches(channels, layer), modes)
    size = ops.sqrt(share * (2.0 - share))  # from the share: 1 - rho^2 of a long horizon would have few digits left
    decay = ops.concat([(1.0 - share) * ops.cos(angle), (1.0 - share) * ops.sin(angle)], 0)
    return decay, ops.concat([size * (1.0 + modes[2]), size * modes[3]], 0)


def complex_product(ops, a, b):
    """Product of complex numbers (..., 2M)."""
    half = a.shape[-1] // 2
    (p, q), (x, y) = (a[..., :half], a[..., half:]), (b[..., :half], b[..., half:])
    return ops.concat([p * x - q * y, p * y + q * x], -1)


def modal_filter(ops, cfg, modes, layer, x, tokens, before):
    """x (B, T, 2M) float32 filtered by modes (4, M) -> (B, T, 2M), exactly causal. `before` (B, 1, 2M) is the state before x, None for
    zeros. With model.isolate_documents states begin anew at the start of a document."""
    decay, size = modal_rates(ops, cfg, modes, layer)
    decays = ops.zeros(x.shape, x) + decay  # the op takes one for every token
    if cfg.model.isolate_documents:
        decays = decays * ops.cast(tokens != BOS_ID, "float32")[:, :, None]
    inputs = complex_product(ops, x, size)
    if before is not None:
        inputs = ops.concat([inputs[:, :1] + complex_product(ops, before, decays[:, :1]), inputs[:, 1:]], 1)
    return ops.complex_scan(decays, inputs)
