"""SKC mixer: a local path of gated, decaying states beside the block-lagged spectral path, both of one projection of the stream.

skc.md C1: s = in x, h = decaying state of gate * conv(s), y = what earlier blocks foretell of s; out = normed projection of h + mix * y.
Shapes: B batch, T time, C model width, S state channels.
"""

from dataclasses import dataclass

from trit.data.token_ids import BOS_ID
from trit.layers.conv import carried_conv, carried_reach, causal_conv, conv_reach, conv_specs
from trit.layers.linear import normed_project, normed_projection_specs, project
from trit.layers.scan import decay_scan, entering, leave, state_share, token_horizon_logits
from trit.layers.spectral import SpectralConfig, check_spectral, spectral_path, spectral_specs, spectral_tables
from trit.params import matrix_spec, scalar_spec
from trit.setting import setting


@dataclass(frozen=True)
class SkcConfig(SpectralConfig):
    """What one can set of the mixer."""

    skc_scale_init: float = setting(0.5, "initial gain of the SKC branch", env="SKC_RESIDUAL_SCALE_INIT")
    skc_state_dim: int = setting(128, "channels of the SKC state, a power of two", env="SKC_CAPSULE_DIM")
    skc_conv_kernel: int = setting(4, "taps of the causal convolution before the local state; 1 is off")
    skc_mix_init: float = setting(0.1, "initial gain of what earlier blocks foretell; 0 takes the spectral path out")


def check_skc(cfg):
    """ValueError where the mixer's settings cannot be."""
    size = cfg.arch.skc_state_dim
    if size < 1 or size & (size - 1):
        raise ValueError(f"arch.skc_state_dim={size} must be a power of two")
    if cfg.arch.skc_conv_kernel < 1:
        raise ValueError(f"arch.skc_conv_kernel={cfg.arch.skc_conv_kernel} must be 1 (no convolution) or more")
    check_spectral(cfg)


def skc_specs(cfg, name):
    """Parameters of one mixer. Rows of `in`: what enters both paths (S), its gate (S), the rate at which the state is replaced (S)."""
    size = cfg.arch.skc_state_dim
    specs = [matrix_spec(cfg, name + ".in", 3 * size, cfg.model.model_dim, 0.02), scalar_spec(cfg, name + ".rate", (size,), 0.0, "decay")]
    if cfg.arch.skc_conv_kernel > 1:
        specs += conv_specs(cfg, name + ".conv", cfg.arch.skc_conv_kernel, size)
    if cfg.arch.skc_mix_init:
        specs.append(scalar_spec(cfg, name + ".mix", (size,), cfg.arch.skc_mix_init))
        specs += spectral_specs(cfg, name, size)
    return specs + normed_projection_specs(cfg, name + ".out", cfg.model.model_dim, size, 0.02)


def skc_tables(ops, cfg, tokens):
    """What all mixers of a forward of tokens (B, T) share: the logits (S,) at which each channel replaces its state at the start, with
    isolate_documents 0 at a BOS and 1 elsewhere (B, T, 1) and the reach (B, T, 1) of the convolution (with train.carry also of the K - 1
    places before it), then the tables of the spectral path."""
    size, tables = cfg.arch.skc_state_dim, []
    # Local horizons are log-spaced from 2 tokens to 4 blocks: the spectral path remembers what lies further back.
    tables.append(token_horizon_logits(ops, size, 4.0 * cfg.arch.skc_block, tokens))
    if cfg.model.isolate_documents and cfg.train.carry:
        tables += [ops.cast(tokens != BOS_ID, "float32")[:, :, None], carried_reach(ops, tokens, cfg.arch.skc_conv_kernel)]
    elif cfg.model.isolate_documents:
        tables += [ops.cast(tokens != BOS_ID, "float32")[:, :, None], conv_reach(ops, tokens)]
    if cfg.arch.skc_mix_init:
        tables.append(spectral_tables(ops, cfg, tokens, size))
    return tables


def skc_layer(ops, p, cfg, name, x, tables):
    """x (B, T, C) -> (output (B, T, C), {name: auxiliary loss}); `tables` is what `skc_tables` made of the tokens."""
    size = cfg.arch.skc_state_dim
    mixed = project(ops, p, cfg, name + ".in", x)
    signal, gate, logits = mixed[..., :size], mixed[..., size : 2 * size], mixed[..., 2 * size :]
    local, losses = signal, {}
    if cfg.train.carry:
        before, inputs = entering(ops, p, (x.shape[0], cfg.arch.skc_conv_kernel, size), signal), None
        if cfg.arch.skc_conv_kernel > 1:
            reach = tables[2] if cfg.model.isolate_documents else None
            local, inputs = carried_conv(ops, cfg, signal, p[name + ".conv"], before, reach)
    elif cfg.arch.skc_conv_kernel > 1:
        local = causal_conv(ops, signal, p[name + ".conv"], tables[2] if cfg.model.isolate_documents else None)
    share = state_share(ops, ops.cast(logits, "float32") + p[name + ".rate"] + tables[0])
    decays = 1.0 - share
    if cfg.model.isolate_documents:
        decays = decays * tables[1]
    if cfg.train.carry:
        state = decay_scan(ops, decays, share * ops.sigmoid(gate) * local, before[:, 0])
        leave(ops, p, state, inputs)
    else:
        state = decay_scan(ops, decays, share * ops.sigmoid(gate) * local)
    if cfg.arch.skc_mix_init:
        told, losses = spectral_path(ops, p, cfg, name, signal, tables[-1])
        state = state + ops.cast(p[name + ".mix"], "float32") * told
    return normed_project(ops, p, cfg, name + ".out", ops.cast(state, cfg.train.compute_dtype)), losses
