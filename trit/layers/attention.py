"""Causal grouped-query attention with normalised queries and keys, partial rotary positions, value residual and XSA.

Shapes: B batch, T time, H query heads, K key heads, D head width, C model width.
"""

from dataclasses import dataclass

from trit.layers.document import visible_blocks, visible_tokens
from trit.layers.linear import normed_project, normed_projection_specs, project
from trit.params import matrix_spec, scalar_spec
from trit.setting import setting


@dataclass(frozen=True)
class AttentionConfig:
    """What an architecture with attention lets one set of its branch; the rest is in `ModelConfig`."""

    attn_scale_init: float = setting(0.5, "initial gain of the attention branch")


def attention_specs(cfg, name, first):
    """Parameters of one attention layer; the first one of a model has no earlier values to mix in."""
    width = cfg.model.model_dim
    head_dim = cfg.model.model_dim // cfg.model.num_heads
    specs = [
        matrix_spec(cfg, name + ".qkv", width + 2 * cfg.model.num_kv_heads * head_dim, width, 0.02),
        scalar_spec(cfg, name + ".q_gain", (cfg.model.num_heads, 1, 1), cfg.model.qk_gain_init),
    ]
    if cfg.model.value_residual and not first:
        specs.append(scalar_spec(cfg, name + ".value_mix", (1,), 4.0))
    return specs + normed_projection_specs(cfg, name + ".out", width, width, 0.02)


def rope_frequencies(ops, cfg, like):
    """YaRN-ramped rotary frequencies (partial_rope_dims / 2,) in radians a position."""
    half = cfg.model.partial_rope_dims // 2
    index = ops.arange(half, like)
    frequencies = ops.exp(index * (-2.0 / cfg.model.partial_rope_dims) * ops.log(ops.zeros((1,), index) + cfg.model.rope_base))
    if cfg.model.yarn_max_len == cfg.train.train_seq_len:
        return frequencies
    ramp = ops.clip((index / half - 0.25) / 0.75, 0.0, 1.0)
    return frequencies / (1.0 + ramp * (cfg.model.yarn_max_len / cfg.train.train_seq_len - 1.0))


def attention_tables(ops, cfg, tokens):
    """What all attention layers of a forward of tokens (B, T) share: the table of rotations, then the masks, where there are any.

    A sequence longer than eval_seq_len is a segment of one-pass evaluation; nothing else is that long (trit/config_check.py sees to it).
    """
    tables = [ops.rotary_table(rope_frequencies(ops, cfg, tokens), tokens.shape[1], cfg.train.compute_dtype)]
    if cfg.eval.eval_segment_tokens and tokens.shape[1] > cfg.eval.eval_seq_len:
        tables.append(visible_blocks(ops, cfg, tokens))
    elif cfg.model.isolate_documents:
        tables.append(visible_tokens(ops, tokens))
    return tables


def banded_attention(ops, q, k, v, masks):
    """`ops.attention` under the masks of `visible_blocks`: its cost grows with T, not with its square, and no T x T array exists."""
    parts, end = [], 0
    for mask in masks:
        begin, end = end, end + mask.shape[2]
        near = slice(end - mask.shape[3], end)
        parts.append(ops.masked_attention(q[:, :, begin:end], k[:, :, near], v[:, :, near], mask))
    return ops.concat(parts, 2)


def choose_attention(ops, cfg, like):
    """Let `ops.flash_attention` choose its kernel, on heads like the model's, before a function that calls it is compiled."""
    shape = (1, cfg.model.num_heads, 1, cfg.model.model_dim // cfg.model.num_heads)
    heads = ops.cast(ops.zeros(shape, like), cfg.train.compute_dtype)
    ops.flash_attention(heads, heads[:, : cfg.model.num_kv_heads], heads[:, : cfg.model.num_kv_heads])


def attended(ops, cfg, q, k, v, tables):
    """What queries (B, H, T, D) read of keys and values (B, K, T, D), each of those that it may see -> (B, H, T, D). The settings choose
    how; `tables` is what `attention_tables` made of the tokens."""
    if cfg.eval.eval_segment_tokens and q.shape[2] > cfg.eval.eval_seq_len:
        return banded_attention(ops, q, k, v, tables[1])
    if cfg.model.isolate_documents:
        return ops.masked_attention(q, k, v, tables[1])
    if cfg.train.attention_kernel == "float32":
        return ops.cast(ops.attention(*[ops.cast(part, "float32") for part in (q, k, v)]), cfg.train.compute_dtype)
    if cfg.train.attention_kernel == "flash":
        return ops.flash_attention(q, k, v)
    return ops.attention(q, k, v)


def attention_layer(ops, p, cfg, name, x, tables, first_values, exclude_self):
    """x (B, T, C) -> (output (B, T, C), values (B, K, T, D)). `first_values` is None in the first layer.

    `tables` is what `attention_tables` made of the tokens.
    `exclude_self` removes from every output its projection on the token's own value (XSA, corrected form).
    """
    batch, length = x.shape[0], x.shape[1]
    heads, kv_heads = cfg.model.num_heads, cfg.model.num_kv_heads
    head_dim = cfg.model.model_dim // cfg.model.num_heads
    qkv = ops.reshape(project(ops, p, cfg, name + ".qkv", x), (batch, length, heads + 2 * kv_heads, head_dim))
    qkv = ops.permute(qkv, (0, 2, 1, 3))
    q = ops.rotary(ops.rms_norm(qkv[:, :heads]), tables[0]) * p[name + ".q_gain"]
    k = ops.rotary(ops.rms_norm(qkv[:, heads : heads + kv_heads]), tables[0])
    v = qkv[:, heads + kv_heads :]
    if cfg.model.value_residual and first_values is not None:
        keep = ops.sigmoid(p[name + ".value_mix"])
        v = keep * v + (1.0 - keep) * first_values
    y = attended(ops, cfg, q, k, v, tables)
    if cfg.model.xsa_layers and exclude_self:
        grouped = ops.reshape(y, (batch, kv_heads, heads // kv_heads, length, head_dim))
        own = ops.reshape(v, (batch, kv_heads, 1, length, head_dim))
        share = ops.sum(grouped * own, -1, True) / (ops.sum(own * own, -1, True) + 1e-6)
        y = ops.reshape(grouped - share * own, (batch, heads, length, head_dim))
    y = ops.reshape(ops.permute(y, (0, 2, 1, 3)), (batch, length, heads * head_dim))
    return normed_project(ops, p, cfg, name + ".out", y), v
