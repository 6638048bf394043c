"""Feedback: the decoder runs again over what it made of the text so far. Block means of its finished stream are keys and values of fast
weights, and in the next pass the tokens of later blocks query them at every decoder layer (skc.md C4).

A token in block k reads blocks before k alone, and every pass runs in training and evaluation alike. No block halts early: a graph over
batches would save nothing by it, and a threshold on rounded sums would let a score depend on the batch. Shapes: B batch, T time, K blocks,
D model width, F feedback channels.
"""

from dataclasses import dataclass

from trit.layers.document import document_blocks
from trit.layers.functions import hyperbolic_tangent
from trit.layers.linear import project
from trit.layers.scan import block_horizon_logits, decay_scan, state_share
from trit.params import matrix_spec, scalar_spec
from trit.setting import check_values, setting


@dataclass(frozen=True)
class FeedbackConfig:
    """What one can set of the feedback."""

    feedback_passes: int = setting(0, "times that the decoder runs again, in training and evaluation; 0 is off")
    feedback_dim: int = setting(32, "channels of the keys, values and queries between passes")
    feedback_block: int = setting(16, "tokens in a block: each queries what the last pass made of the blocks before its own")
    feedback_memory: float = setting(32.0, "blocks that the slowest key channel remembers at the start; the fastest remembers 1")
    feedback_gate_init: float = setting(
        0.05, "initial gate of what a layer reads, before its tanh; not 0, which would cut off its gradient"
    )


def check_feedback(cfg):
    """ValueError where the feedback's settings cannot be."""
    block, length = cfg.arch.feedback_block, cfg.train.train_seq_len
    check_values(
        ("feedback_passes", cfg.arch.feedback_passes, cfg.arch.feedback_passes > 0, "must be 0 (off) or more"),
        ("feedback_passes", cfg.arch.feedback_passes, cfg.model.num_layers > 1, "needs a decoder: model.num_layers must be 2 or more"),
        ("feedback_dim", cfg.arch.feedback_dim, cfg.arch.feedback_dim > 0, "must be positive"),
        (
            "feedback_block",
            block,
            0 < block < length,
            f"must be positive and below train.train_seq_len={length}: tokens read earlier blocks",
        ),
        ("feedback_memory", cfg.arch.feedback_memory, cfg.arch.feedback_memory > 1, "must be more than 1 block"),
        (
            "feedback_gate_init",
            cfg.arch.feedback_gate_init,
            cfg.arch.feedback_gate_init != 0,
            "must not be 0, where a gate passes no gradient",
        ),
    )


def feedback_specs(cfg):
    """Parameters of the feedback: rows of `in` are keys (F) and values (F); every decoder layer has its queries, its way back and a gate."""
    size, width, layers = cfg.arch.feedback_dim, cfg.model.model_dim, cfg.model.num_layers
    specs = [matrix_spec(cfg, "feedback.in", 2 * size, width, width**-0.5), scalar_spec(cfg, "feedback.memory", (size,), 0.0)]
    for i in range(layers - layers // 2, layers):
        specs += [
            matrix_spec(cfg, f"feedback.block{i}.query", size, width, width**-0.5),
            matrix_spec(cfg, f"feedback.block{i}.out", width, size, size**-0.5),
            scalar_spec(cfg, f"feedback.block{i}.gate", (1,), cfg.arch.feedback_gate_init),
        ]
    return [spec._replace(adapt="feedback") for spec in specs]


def fast_weights(ops, p, cfg, x, tokens):
    """Normalised stream x (B, T, D) after a pass -> (fast weights (B, K, F, F) float32 that the tokens of each block query, and with
    isolate_documents the mask (B, T, 1) of the tokens that see no block, else None).

    The weights of block k are the sum over blocks j before it of the outer products of key and value, each key channel of which has
    decayed k - 1 - j times.
    """
    batch, length = tokens.shape
    block, size = cfg.arch.feedback_block, cfg.arch.feedback_dim
    sources, fresh = (length - 1) // block, None  # complete blocks with a block after them
    both = ops.cast(project(ops, p, cfg, "feedback.in", x), "float32")
    memory = ops.zeros((batch, 1, size, size), both)
    if cfg.model.isolate_documents:
        unbroken, counted, fresh = document_blocks(ops, tokens, block)
    if sources:
        # The projection of a mean is the mean of projections.
        both = ops.reshape(both[:, : sources * block], (batch, sources, block, 2 * size))
        if cfg.model.isolate_documents:
            pooled = ops.sum(both * counted[..., None], 2) / ops.sum(counted, 2, True)
        else:
            pooled = ops.mean(both, 2)
        keys, values = ops.rms_norm(pooled[..., :size]), ops.rms_norm(pooled[..., size:])
        horizons = block_horizon_logits(ops, size, cfg.arch.feedback_memory, both)
        share = state_share(ops, ops.cast(p["feedback.memory"], "float32") + horizons)
        written = keys[..., None] * values[:, :, None]
        decays = ops.reshape(1.0 - share, (-1, 1)) + ops.zeros(written.shape, written)
        if cfg.model.isolate_documents:
            decays = decays * unbroken[:, :, None, None]
        flat = (batch, sources, size * size)
        held = decay_scan(ops, ops.reshape(decays, flat), ops.reshape(written, flat))
        memory = ops.concat([memory, ops.reshape(held, written.shape)], 1)
    return memory, fresh


def feedback_layer(ops, p, cfg, name, x, memory):
    """Normalised stream x (B, T, D) -> what the layer reads of the last pass (B, T, D); `memory` is what `fast_weights` returned."""
    (batch, length, _), block, size = x.shape, cfg.arch.feedback_block, cfg.arch.feedback_dim
    weights, fresh = memory
    blocks = weights.shape[1]
    queries = ops.rms_norm(ops.cast(project(ops, p, cfg, name + ".query", x), "float32"))
    queries = ops.pad(queries, ((0, 0), (0, blocks * block - length), (0, 0)))
    # Keys and queries have a mean square of 1: divided by F their product is a cosine.
    told = ops.reshape(queries, (batch, blocks, block, size)) @ weights / size
    told = ops.reshape(told, (batch, blocks * block, size))[:, :length]
    if cfg.model.isolate_documents:
        told = ops.where(fresh, ops.zeros((), told), told)
    return hyperbolic_tangent(ops, p[name + ".gate"]) * project(ops, p, cfg, name + ".out", ops.cast(told, cfg.train.compute_dtype))
