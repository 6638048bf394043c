"""The skeleton that architectures share: a ternary U-Net of blocks, each a token mixer and an MLP. The first half of the blocks encodes
and saves its streams, the second half adds them back.

An architecture chooses the mixer of every block by `layer_map`, in its `ArchConfig`: a setting, or a class constant where it has no
choice. Shapes: B batch, T time, C model width, V vocabulary.
"""

from dataclasses import dataclass

from trit.layers.attention import attention_layer, attention_specs, attention_tables
from trit.layers.embed import embed_tokens, embedding_specs, token_logits
from trit.layers.engram import engram_layer, engram_specs
from trit.layers.mlp import mlp_layer, mlp_specs
from trit.params import scalar_spec
from trit.setting import setting


@dataclass(frozen=True)
class BackboneConfig:
    """What every architecture on this skeleton lets one set."""

    attn_scale_init: float = setting(0.5, "initial gain of the attention branch")
    mlp_scale_init: float = setting(0.5, "initial gain of the MLP branch")
    x0_mix_init: float = setting(0.05, "initial share of the embedding mixed into the input of every block")


def param_specs(cfg):
    """Table of all tensors."""
    width = cfg.model.model_dim
    specs = embedding_specs(cfg)
    if cfg.engram.engram_buckets:
        specs += engram_specs(cfg)
    for i in range(cfg.model.num_layers):
        name, decoder = f"block{i}", i >= cfg.model.num_layers - cfg.model.num_layers // 2
        kind = "decoder_scale" if decoder else "scale"
        specs += [
            scalar_spec(cfg, name + ".mix", (2, width), 0.0, "mix"),
            scalar_spec(cfg, name + ".attn_scale", (width,), cfg.arch.attn_scale_init, kind),
            scalar_spec(cfg, name + ".mlp_scale", (width,), cfg.arch.mlp_scale_init, kind),
        ]
        if decoder:
            specs.append(scalar_spec(cfg, name + ".skip", (width,), 1.0, "skip"))
        specs += attention_specs(cfg, name + ".attn", i == 0) + mlp_specs(cfg, name + ".mlp")
    return specs


def forward(ops, p, cfg, tokens):
    """Token ids (B, T) -> (stream (B, T, C), auxiliary losses {name: scalar}). The stream at t depends on tokens up to t only."""
    layers = cfg.model.num_layers
    x = start = embed_tokens(ops, p, cfg, tokens)
    tables = attention_tables(ops, cfg, tokens)
    saved, first_values = [], None
    for i in range(cfg.model.num_layers):
        name = f"block{i}"
        if cfg.engram.engram_buckets and i == cfg.engram.engram_layer:
            x = x + engram_layer(ops, p, cfg, x, tokens)
        if i >= layers - layers // 2:
            x = x + p[name + ".skip"] * saved.pop()
        mix = p[name + ".mix"]
        # Stored as the distance from (1 - x0_mix, x0_mix), so that Adam's steps and 16-bit rounding act on small numbers.
        x = (mix[0] + (1.0 - cfg.arch.x0_mix_init)) * x + (mix[1] + cfg.arch.x0_mix_init) * start
        branch, values = attention_layer(
            ops, p, cfg, name + ".attn", ops.rms_norm(x), tables, first_values, i >= layers - cfg.model.xsa_layers
        )
        first_values = values if first_values is None else first_values
        x = x + p[name + ".attn_scale"] * branch
        x = x + p[name + ".mlp_scale"] * mlp_layer(ops, p, cfg, name + ".mlp", ops.rms_norm(x))
        if i < layers // 2:
            saved.append(x)
    return x, {}


def readout(ops, p, cfg, x):
    """Any positions of the stream (B, T, C) -> logits (B, T, V) float32, each from its own position alone."""
    return token_logits(ops, p, cfg, x)
