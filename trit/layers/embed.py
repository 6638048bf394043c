"""Factorised tied embedding: the same stored tensor reads tokens in and scores tokens out.

Shapes: V vocabulary, E embedding width, C model width.
"""

from trit.layers.linear import project
from trit.params import ParamSpec, matrix_spec, on_grid, scalar_spec


def embedding_specs(cfg):
    """Embedding (V, E), adapters up (C, E) and down (E, C) where E < C, vocabulary bias (V,)."""
    specs = [
        on_grid(
            ParamSpec(
                "embed",
                (cfg.model.vocab_size, cfg.model.embed_dim),
                "normal",
                cfg.model.embed_init_std,
                "embed",
                rotate=cfg.quant.rotate_embedding,
            ),
            cfg.quant.embed_bits,
            cfg.quant.embed_group_size or cfg.model.embed_dim,
            cfg.quant.int_clip,
        ),
        scalar_spec(cfg, "vocab_bias", (cfg.model.vocab_size,), 0.0),
    ]
    if cfg.model.embed_dim != cfg.model.model_dim:
        specs.append(matrix_spec(cfg, "embed.up", cfg.model.model_dim, cfg.model.embed_dim, cfg.model.embed_dim**-0.5))
        specs.append(matrix_spec(cfg, "embed.down", cfg.model.embed_dim, cfg.model.model_dim, cfg.model.model_dim**-0.5))
    return specs


def embed_tokens(ops, p, cfg, tokens):
    """Token ids (B, T) -> normalised stream (B, T, C)."""
    x = ops.take(p["embed"], tokens)
    if cfg.model.embed_dim != cfg.model.model_dim:
        x = project(ops, p, cfg, "embed.up", x)
    return ops.rms_norm(x)


def token_logits(ops, p, cfg, x):
    """Stream (B, T, C) -> soft-capped logits (B, T, V) in float32: c u / sqrt(1 + u^2) with u = z / c, then the bias."""
    x = ops.rms_norm(x)
    if cfg.model.embed_dim != cfg.model.model_dim:
        x = project(ops, p, cfg, "embed.down", x)
    z = ops.cast(project(ops, p, cfg, "embed", x), "float32")
    return z * ops.rsqrt(1.0 + z * z * (1.0 / cfg.model.logit_softcap**2)) + p["vocab_bias"]
