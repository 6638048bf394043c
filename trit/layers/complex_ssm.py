"""Complex state-space layer: states that decay and turn at rates each token sets, linear in time, behind a short convolution and a spinor gate.

h_t = a_t h_(t-1) + sqrt(1 - |a_t|^2) u_t with a_t = e^(-alpha + i theta): |a| stays below 1 whatever is learned, and every mode has unit
variance for white input at any horizon (sem.md 1.2). Shapes: B batch, T time, D complex channels, G groups, N modes of each, C = G N.
"""

import math
from dataclasses import dataclass

from trit.data.token_ids import BOS_ID
from trit.layers.conv import causal_conv, conv_reach
from trit.layers.linear import project
from trit.layers.pairs import doubled, halves, pair_matrix_spec, pair_norm, pair_norm_spec, pair_project, quarter_turned
from trit.layers.spinor import spinor_gate, spinor_gates, spinor_specs
from trit.params import matrix_spec, scalar_spec, table_spec
from trit.setting import check_values, setting

UNIT_STEP = 0.5413248546129181  # softplus of it is 1: another start would stretch every horizon
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class ComplexSsmConfig:
    """What one can set of the layer."""

    state_groups: int = setting(4, "groups of modes, each with its own steps in time")
    state_modes: int = setting(32, "modes of a group")
    spinor_block: int = setting(8, "channels that the spinor gate turns together")
    conv_taps: int = setting(4, "taps of the causal convolution before the state")
    horizon: str = setting(
        "spread",
        "tokens that modes remember at the start: 2 to a third of the training window, a third of it, or e-th part of it",
        choices=("spread", "issue2", "s_over_e"),
    )
    residual: str = setting(
        "vector", "gains of the layers' outputs: learned, or the published function of depth", choices=("vector", "issue5a")
    )
    depth_rate: float = setting(1.65, "learning rate of the last layer as a multiple of the first's")


def check_complex_ssm(cfg):
    """ValueError where the layer's settings cannot be."""
    width, block = cfg.model.model_dim, cfg.arch.spinor_block
    near = " or ".join(str(n) for n in range(1, width + 1) if width % n == 0)
    check_values(
        ("state_groups", cfg.arch.state_groups, cfg.arch.state_groups > 0, "must be positive"),
        ("state_modes", cfg.arch.state_modes, cfg.arch.state_modes > 0, "must be positive"),
        ("spinor_block", block, block > 0 and width % block == 0, f"does not divide model.model_dim={width}; possible: {near}"),
        ("conv_taps", cfg.arch.conv_taps, cfg.arch.conv_taps > 0, "must be 1 (the token itself) or more"),
        ("depth_rate", cfg.arch.depth_rate, cfg.arch.depth_rate > 0, "must be positive"),
    )


def first_horizons(cfg):
    """Tokens that each of the C modes remembers at the start, of the training window, whatever the length of a text."""
    longest, modes = cfg.train.train_seq_len / 3.0, cfg.arch.state_modes
    if cfg.arch.horizon == "issue2":
        horizons = [longest] * modes
    elif cfg.arch.horizon == "s_over_e":
        horizons = [cfg.train.train_seq_len / math.e] * modes
    else:
        horizons = [2.0 * (longest / 2.0) ** (mode / max(modes - 1, 1)) for mode in range(modes)]
    return horizons * cfg.arch.state_groups


def first_rates(cfg):
    """(decay parameters, frequencies in radians a token) of the C modes at the start: softplus of the first is 1 / horizon, and the
    others are evenly spread over 0 .. pi / 5, in another order than horizons."""
    decays = [math.log(math.expm1(1.0 / horizon)) for horizon in first_horizons(cfg)]
    return decays, [math.pi / 5.0 * ((mode + 1) * GOLDEN % 1.0) for mode in range(len(decays))]


def depth_scale(cfg, layer):
    """Learning rate of a layer as a multiple of the first's: geometric in depth."""
    return cfg.arch.depth_rate ** (layer / max(cfg.model.num_layers - 1, 1))


def complex_ssm_specs(cfg, name, layer):
    """Parameters of one layer. `decay` and `frequency` are distances from `first_rates`: rounding moves a horizon by a share of what was
    learned, never of the horizon itself."""
    width, groups, modes = cfg.model.model_dim, cfg.arch.state_groups, cfg.arch.state_groups * cfg.arch.state_modes
    specs = [
        pair_norm_spec(cfg, name + ".norm", width),
        table_spec(cfg, name + ".conv", (cfg.arch.conv_taps, 2 * width), 0.2, "conv"),
        *spinor_specs(cfg, name + ".spinor"),
        table_spec(cfg, name + ".step", (2 * groups, 2 * width), 0.02),
        scalar_spec(cfg, name + ".step_bias", (2 * groups,), UNIT_STEP),
        scalar_spec(cfg, name + ".decay", (modes,), 0.0, "decay"),
        scalar_spec(cfg, name + ".frequency", (modes,), 0.0, "decay"),
        pair_matrix_spec(cfg, name + ".in", modes, width),
        pair_matrix_spec(cfg, name + ".read", width, modes),
        scalar_spec(cfg, name + ".through", (width,), 1.0),
        scalar_spec(cfg, name + ".power", (1,), 0.0),
        matrix_spec(cfg, name + ".gate", width, 2 * width, 0.5 * width**-0.5),
        scalar_spec(cfg, name + ".gate_bias", (width,), 0.0),
        pair_matrix_spec(cfg, name + ".out", width, width),
    ]
    start = cfg.model.num_layers**-0.5 if cfg.arch.residual == "vector" else 0.0
    specs.append(scalar_spec(cfg, name + ".residual", (width,), start))
    return [spec._replace(lr_scale=depth_scale(cfg, layer)) for spec in specs]


def complex_ssm_tables(ops, cfg, tokens):
    """What all layers of a forward of tokens (B, T) share: the start of decays and frequencies, (C,) float32 each, and with
    isolate_documents 0 at a BOS and 1 elsewhere (B, T, 1) and the reach of the convolution."""
    decays, frequencies = first_rates(cfg)
    tables = [ops.constant(decays, tokens), ops.constant(frequencies, tokens)]
    if cfg.model.isolate_documents:
        tables += [ops.cast(tokens != BOS_ID, "float32")[:, :, None], conv_reach(ops, tokens)]
    return tables


def mode_rates(ops, p, cfg, name, features, tables):
    """(alpha, theta), float32 (B, T, C) each, of features (B, T, 2 D): how much every mode forgets and turns at a token."""
    groups, modes = cfg.arch.state_groups, cfg.arch.state_modes
    logits = ops.linear(features, p[name + ".step"])
    steps = ops.softplus(ops.cast(logits, "float32") + ops.cast(p[name + ".step_bias"], "float32"))
    decay = ops.softplus(ops.cast(p[name + ".decay"], "float32") + tables[0])
    frequency = ops.cast(p[name + ".frequency"], "float32") + tables[1]
    found = []
    for part, rates in ((steps[..., :groups], decay), (steps[..., groups:], frequency)):
        found.append(ops.reshape(part[..., None] * ops.reshape(rates, (groups, modes)), (*part.shape[:2], groups * modes)))
    return found


def complex_ssm_states(ops, p, cfg, name, features, inputs, tables):
    """States (B, T, 2 C) float32 of inputs (B, T, 2 C)."""
    alpha, theta = mode_rates(ops, p, cfg, name, features, tables)
    modulus = ops.exp(-alpha)
    # From expm1: 1 - |a|^2 of a long horizon would have no digits left. The floor keeps the root's slope finite.
    gain = ops.sqrt(ops.maximum(-ops.expm1(-2.0 * alpha), 1e-12))
    if cfg.model.isolate_documents:
        modulus = modulus * tables[2]
    decays = ops.concat([modulus * ops.cos(theta), modulus * ops.sin(theta)], -1)
    return ops.complex_scan(decays, doubled(ops, gain) * ops.cast(inputs, "float32"))


def residual_gain(ops, p, cfg, name, layer):
    """Gains (D,) of a layer's output: learned, or sqrt(1 - A^(2 (L - l))) with A = exp(-3 / S e^tau) and tau learned."""
    if cfg.arch.residual == "vector":
        return p[name + ".residual"]
    rate = ops.exp(p[name + ".residual"]) * (6.0 / cfg.train.train_seq_len * (cfg.model.num_layers - layer))
    return ops.sqrt(-ops.expm1(-rate))


def complex_ssm_layer(ops, p, cfg, name, x, tables, layer):
    """x (B, T, 2 D) -> what the layer adds to it."""
    n, width = pair_norm(ops, p, name + ".norm", x), cfg.model.model_dim
    reach, taps = tables[3] if cfg.model.isolate_documents else None, p[name + ".conv"]
    # Beside the token itself, which starts the taps at the identity.
    q = n + causal_conv(ops, n, doubled(ops, taps[:, :width]), reach)
    q = q + causal_conv(ops, quarter_turned(ops, n), doubled(ops, taps[:, width:]), reach)
    features = q
    q = spinor_gate(ops, p, cfg, name + ".spinor", q, spinor_gates(ops, p, name + ".spinor", features))
    states = complex_ssm_states(ops, p, cfg, name, features, pair_project(ops, p, cfg, name + ".in", q), tables)
    y = pair_project(ops, p, cfg, name + ".read", ops.cast(states, cfg.train.compute_dtype)) + doubled(ops, p[name + ".through"]) * q
    real, imaginary = halves(y)
    gate = 1.0 - ops.exp(-ops.exp(p[name + ".power"]) * (real * real + imaginary * imaginary))
    gate = gate * (2.0 * ops.sigmoid(project(ops, p, cfg, name + ".gate", features) + p[name + ".gate_bias"]))
    branch = pair_project(ops, p, cfg, name + ".out", doubled(ops, gate) * y)
    return doubled(ops, residual_gain(ops, p, cfg, name, layer)) * branch
