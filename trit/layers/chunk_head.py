"""Head that foretells the next C tokens from one position: for each offset a projection to R numbers, and one table that scores tokens.

Offset 1 is the model's next-token distribution, at every position: that is what is scored. The other offsets are trained at the ends of
chunks, and serve generation by whole chunks. Shapes: B batch, T time, D model width, C offsets, R rank, V vocabulary.
"""

from dataclasses import dataclass

from trit.layers.linear import project
from trit.params import ParamSpec, matrix_spec, on_grid, scalar_spec
from trit.setting import check_values, setting


@dataclass(frozen=True)
class ChunkConfig:
    """What one can set of the head."""

    chunk: int = setting(0, "tokens that the head foretells from one position; 0 is the tied embedding's readout, of the next token alone")
    chunk_rank: int = setting(96, "numbers that an offset is foretold from")
    chunk_weight: float = setting(1.0, "weight of the loss of whole chunks, beside that of all next tokens")


def check_chunk(cfg):
    """ValueError where the head's settings cannot be."""
    width, embed = cfg.model.model_dim, cfg.model.embed_dim
    check_values(
        ("chunk", cfg.arch.chunk, cfg.arch.chunk >= 0 and cfg.arch.chunk != 1, "must be 2 or more, or 0 for the tied readout"),
        ("chunk_rank", cfg.arch.chunk_rank, cfg.arch.chunk_rank > 0, "must be positive"),
        ("chunk_weight", cfg.arch.chunk_weight, cfg.arch.chunk_weight > 0, "must be positive; arch.chunk=0 has no such loss"),
    )
    if cfg.arch.chunk and embed != width:
        raise ValueError(f"model.embed_dim={embed} is read by no table of its own with arch.chunk; set it to model.model_dim={width}")
    if not cfg.arch.chunk:
        check_values(
            ("chunk_rank", cfg.arch.chunk_rank, cfg.arch.chunk_rank == ChunkConfig.chunk_rank, "does nothing while arch.chunk=0"),
            ("chunk_weight", cfg.arch.chunk_weight, cfg.arch.chunk_weight == ChunkConfig.chunk_weight, "does nothing while arch.chunk=0"),
        )


def chunk_specs(cfg):
    """Gain of the stream (D,), projections of all offsets (C R, D), table (V, R). The bias (V,) is the embedding's."""
    rank, width = cfg.arch.chunk_rank, cfg.model.model_dim
    table = ParamSpec("head.table", (cfg.model.vocab_size, rank), "normal", cfg.model.embed_init_std, "embed")
    return [
        scalar_spec(cfg, "head.gain", (width,), 1.0),
        matrix_spec(cfg, "head.chunk", cfg.arch.chunk * rank, width, width**-0.5),
        on_grid(table, cfg.quant.embed_bits, rank, cfg.quant.int_clip),
    ]


def chunk_logits(ops, p, cfg, x, offsets):
    """Stream x (B, T, D) -> logits (B, T, offsets, V) float32 of the first so many offsets, bounded as `token_logits` bounds them."""
    rank = cfg.arch.chunk_rank
    q = {**p, "head.chunk": p["head.chunk"][: offsets * rank]}
    found = project(ops, q, cfg, "head.chunk", ops.rms_norm(x) * p["head.gain"])
    found = ops.reshape(found, (x.shape[0], x.shape[1], offsets, rank))
    z = ops.cast(project(ops, p, cfg, "head.table", found), "float32")
    return z * ops.rsqrt(1.0 + z * z * (1.0 / cfg.model.logit_softcap**2)) + p["vocab_bias"]


def offset_losses(ops, p, cfg, x, tokens):
    """Losses (B, chunks, C) in nats of the tokens of every chunk but the first, each foretold from the end of the chunk before it, where
    the stream is x (B, T, D). None where there is no second chunk."""
    size = cfg.arch.chunk
    chunks = tokens.shape[1] // size - 1
    if chunks < 1:
        return None
    ends = ops.reshape(x[:, : chunks * size], (x.shape[0], chunks, size, -1))[:, :, -1]
    targets = ops.reshape(tokens[:, size : (chunks + 1) * size], (tokens.shape[0], chunks, size))
    return ops.cross_entropy(chunk_logits(ops, p, cfg, ends, size), targets)


def chunk_losses(ops, p, cfg, x, tokens):
    """{name: scalar} that training adds. Targets lie in the future: they are in no logit."""
    losses = offset_losses(ops, p, cfg, x, tokens)
    return {} if losses is None else {"chunk": cfg.arch.chunk_weight * ops.mean(losses)}
