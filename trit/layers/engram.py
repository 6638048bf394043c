"""EngramHash: hashed n-gram tables of several orders and heads, read through a gate that compares them with the stream.

Shapes: N tables (orders * heads), M buckets, R row width, C model width.
"""

from trit.layers.document import document_starts
from trit.layers.linear import project
from trit.params import ParamSpec, matrix_spec, on_grid, scalar_spec


def engram_specs(cfg):
    """Tables (N, M, R), value and gate projections (C, N * R), gate scale and bias."""
    tables = cfg.engram.engram_heads * cfg.engram.engram_orders
    columns = tables * cfg.engram.engram_row_dim
    return [
        on_grid(
            ParamSpec("engram.table", (tables * cfg.engram.engram_buckets, cfg.engram.engram_row_dim), "normal", 0.02, "engram"),
            cfg.quant.engram_bits,
            cfg.quant.engram_group_size,
            cfg.quant.engram_clip,
        ),
        # The packed memory is frozen after training, with the matrices that read it.
        matrix_spec(cfg, "engram.value", cfg.model.model_dim, columns, columns**-0.5)._replace(adapt=""),
        matrix_spec(cfg, "engram.key", cfg.model.model_dim, columns, columns**-0.5)._replace(adapt=""),
        # softplus(0.378) + 0.1 = 1: the clamp of skc.md EN03 starts the gate's slope at one.
        scalar_spec(cfg, "engram.gate_scale", (1,), 0.378),
        scalar_spec(cfg, "engram.gate_bias", (1,), cfg.engram.gate_bias_init),
    ]


def mix_bits(x):
    """Odd-multiply and xor-shift of int64 arrays; shifts are masked so that they are logical (skc.md D7)."""
    x = x * -7046029254386353131
    x = x ^ ((x >> 29) & 0x7FFFFFFFF)
    x = x * -4658895280553007687
    return x ^ ((x >> 32) & 0xFFFFFFFF)


def engram_rows(ops, cfg, tokens):
    """Table rows (B, T, N) read at each position, from the last 2 .. orders + 1 tokens up to it, and 0/1 masks (T, N) that
    silence orders reaching over the left edge; with isolate_documents (B, T, N), over the document's start."""
    length = tokens.shape[1]
    ids = ops.cast(tokens, "int64") + 1
    key, rows, masks = ids, [], []
    positions = ops.arange(length, tokens)
    if cfg.model.isolate_documents:
        positions = positions - document_starts(ops, tokens)
    for order in range(cfg.engram.engram_orders):
        past = ops.pad(ids, ((0, 0), (order + 1, 0)))[:, :length]
        key = mix_bits(key * 65599 + past + order)
        for head in range(cfg.engram.engram_heads):
            table = order * cfg.engram.engram_heads + head
            bucket = (mix_bits(key + (head + 1) * 1000003) & 0x7FFFFFFFFFFFFFFF) % cfg.engram.engram_buckets
            rows.append(bucket + table * cfg.engram.engram_buckets)
            masks.append(ops.cast(positions > order, "float32"))
    return ops.stack(rows, -1), ops.stack(masks, -1)


def engram_layer(ops, p, cfg, x, tokens):
    """What the memory adds to the stream x (B, T, C). A `p` that holds "idle" asks for the tables to get no gradient: a training step
    between two that engram.write_every lets write."""
    rows, masks = engram_rows(ops, cfg, tokens)
    found = ops.take(p["engram.table"], rows)  # (B, T, N, R)
    if cfg.engram.write_every > 1 and "idle" in p:
        found = ops.stop_gradient(found)
    found = found * ops.reshape(ops.cast(masks, cfg.train.compute_dtype), (*masks.shape, 1))
    found = ops.rms_norm(ops.reshape(found, (found.shape[0], found.shape[1], -1)))
    key = ops.rms_norm(project(ops, p, cfg, "engram.key", found))
    cosine = ops.mean(ops.rms_norm(x) * key, -1, True)
    scale = ops.clip(ops.log(1.0 + ops.exp(p["engram.gate_scale"])) + 0.1, 0.1, 4.0)
    return ops.sigmoid(scale * cosine + p["engram.gate_bias"]) * project(ops, p, cfg, "engram.value", found)
