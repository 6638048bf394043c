"""Koopman token mixer: a state of independent channels that decay at learned rates, coupled by a low rank. Its cost is linear in time.

skc.md B7 with the corrections of D10 and D29: s = conv(in x) H, h_t = a_t h_(t-1) + (1 - a_t) g_t s_t, h <- (h + (h V) U^T) H, normed out.
Shapes: B batch, T time, C model width, S state channels, R rank.
"""

from dataclasses import dataclass

from trit.data.token_ids import BOS_ID
from trit.layers.conv import carried_conv, carried_reach, causal_conv, conv_reach, conv_specs
from trit.layers.hadamard import hadamard_matrix
from trit.layers.linear import normed_project, normed_projection_specs, project
from trit.layers.scan import SHARE_MARGIN, decay_scan, entering, leave, state_share, token_horizon_logits
from trit.params import matrix_spec, scalar_spec, table_spec
from trit.setting import setting


@dataclass(frozen=True)
class KoopmanConfig:
    """What one can set of the mixer."""

    koopman_scale_init: float = setting(0.5, "initial gain of the Koopman branch")
    koopman_state_dim: int = setting(128, "channels of the Koopman state")
    koopman_conv_kernel: int = setting(4, "taps of the causal convolution before the state; 1 is off", env="KOOPMAN_CONV_KERNEL")
    koopman_rank: int = setting(4, "rank of the coupling between the state's channels; 0 is off")
    koopman_hadamard: bool = setting(True, "mix the channels before the state, and after it back, by a Hadamard matrix")
    koopman_horizon: float = setting(2048.0, "tokens that the slowest channel remembers at the start; the fastest remembers 2")


def check_koopman(cfg):
    """ValueError where the mixer's settings cannot be."""
    size, horizon, longest = cfg.arch.koopman_state_dim, cfg.arch.koopman_horizon, 1.0 / SHARE_MARGIN
    if size < 1 or cfg.arch.koopman_hadamard and size & (size - 1):
        reason = "must be a power of two with arch.koopman_hadamard" if size > 0 else "must be positive"
        raise ValueError(f"arch.koopman_state_dim={size} {reason}")
    if cfg.arch.koopman_conv_kernel < 1:
        raise ValueError(f"arch.koopman_conv_kernel={cfg.arch.koopman_conv_kernel} must be 1 (no convolution) or more")
    if not 0 <= cfg.arch.koopman_rank <= size:
        raise ValueError(f"arch.koopman_rank={cfg.arch.koopman_rank} must be 0 (no coupling) to arch.koopman_state_dim={size}")
    if not 2 < horizon < longest:
        raise ValueError(f"arch.koopman_horizon={horizon} must lie between 2 and {longest:.0f}")


def koopman_specs(cfg, name):
    """Parameters of one mixer. Rows of `in`: what enters the state (S), its gate (S), the rate at which the state is replaced (S)."""
    size, rank = cfg.arch.koopman_state_dim, cfg.arch.koopman_rank
    specs = [
        matrix_spec(cfg, name + ".in", 3 * size, cfg.model.model_dim, 0.02),
        # Added to the log-spaced start that `koopman_tables` computes, so that small steps and short codes act on small numbers.
        scalar_spec(cfg, name + ".rate", (size,), 0.0, "decay"),
    ]
    if cfg.arch.koopman_conv_kernel > 1:
        specs += conv_specs(cfg, name + ".conv", cfg.arch.koopman_conv_kernel, size)
    if cfg.arch.koopman_rank:
        # Both factors start off zero: with one at zero the other would get no gradient (skc.md D13).
        specs.append(table_spec(cfg, name + ".couple_in", (rank, size), 0.001))
        specs.append(table_spec(cfg, name + ".couple_out", (size, rank), 0.001))
    return specs + normed_projection_specs(cfg, name + ".out", cfg.model.model_dim, size, 0.02)


def koopman_tables(ops, cfg, tokens):
    """What all mixers of a forward of tokens (B, T) share: the logits (S,) float32 at which each channel replaces its state at the start,
    the Hadamard matrix (S, S) or None, and with isolate_documents what tells documents apart: 0 at a BOS and 1 elsewhere (B, T, 1),
    and the reach (B, T, 1) of the convolution, with train.carry also that of the K - 1 places before it."""
    size, tables = cfg.arch.koopman_state_dim, []
    tables.append(token_horizon_logits(ops, size, cfg.arch.koopman_horizon, tokens))
    if cfg.arch.koopman_hadamard:
        tables.append(ops.cast(hadamard_matrix(ops, size, tables[0]), cfg.train.compute_dtype))
    else:
        tables.append(None)
    if cfg.model.isolate_documents and cfg.train.carry:
        tables += [ops.cast(tokens != BOS_ID, "float32")[:, :, None], carried_reach(ops, tokens, cfg.arch.koopman_conv_kernel)]
    elif cfg.model.isolate_documents:
        tables += [ops.cast(tokens != BOS_ID, "float32")[:, :, None], conv_reach(ops, tokens)]
    return tables


def koopman_layer(ops, p, cfg, name, x, tables):
    """x (B, T, C) -> (B, T, C); `tables` is what `koopman_tables` made of the tokens."""
    size = cfg.arch.koopman_state_dim
    mixed = project(ops, p, cfg, name + ".in", x)
    state, gate, logits = mixed[..., :size], mixed[..., size : 2 * size], mixed[..., 2 * size :]
    if cfg.train.carry:
        before, inputs = entering(ops, p, (x.shape[0], cfg.arch.koopman_conv_kernel, size), state), None
        if cfg.arch.koopman_conv_kernel > 1:
            reach = tables[3] if cfg.model.isolate_documents else None
            state, inputs = carried_conv(ops, cfg, state, p[name + ".conv"], before, reach)
    elif cfg.arch.koopman_conv_kernel > 1:
        state = causal_conv(ops, state, p[name + ".conv"], tables[3] if cfg.model.isolate_documents else None)
    if cfg.arch.koopman_hadamard:
        state = ops.linear(state, tables[1])
    share = state_share(ops, ops.cast(logits, "float32") + p[name + ".rate"] + tables[0])
    decays = 1.0 - share
    if cfg.model.isolate_documents:
        decays = decays * tables[2]  # the state is forgotten, the token's share of it is not changed by what stood before
    if cfg.train.carry:
        states = decay_scan(ops, decays, share * ops.sigmoid(gate) * state, before[:, 0])
        leave(ops, p, states, inputs)
        state = ops.cast(states, cfg.train.compute_dtype)
    else:
        state = ops.cast(decay_scan(ops, decays, share * ops.sigmoid(gate) * state), cfg.train.compute_dtype)
    if cfg.arch.koopman_rank:
        state = state + ops.linear(ops.linear(state, p[name + ".couple_in"]), p[name + ".couple_out"])
    if cfg.arch.koopman_hadamard:
        state = ops.linear(state, tables[1])
    return normed_project(ops, p, cfg, name + ".out", state)
