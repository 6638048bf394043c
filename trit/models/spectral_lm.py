"""`spectral_lm`: a frequency-native language model, causal by construction. Blocks of complex filters and turns, nothing else.

Not built on the U-Net of trit/layers/backbone.py: the blocks form a plain residual stack, without skips, MLPs or mixes. The turn is the
block's only function that is not linear, and its filters see arch.fir_taps tokens each, so a token sees num_layers * (fir_taps - 1) back;
with arch.filter=modal everything.

The head is the project's tied readout, or with arch.chunk one that foretells a whole chunk from every position; what is scored is its
first offset, a distribution of the next token like any other. Shapes: B batch, T time, D model width, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np

from trit.layers.chunk_head import ChunkConfig, check_chunk, chunk_logits, chunk_losses, chunk_specs, offset_losses
from trit.layers.cutoff import check_rungs, stage_smoothing
from trit.layers.embed import embed_tokens, embedding_specs, token_logits
from trit.layers.engram import engram_layer, engram_specs
from trit.layers.split_step import (
    SplitStepConfig,
    check_split_step,
    filtered_channels,
    lifted,
    scaled,
    split_step_layer,
    split_step_specs,
    split_step_stream,
    turned,
)


@dataclass(frozen=True)
class ArchConfig(ChunkConfig, SplitStepConfig):
    """Settings of the blocks and of the head."""

    experts = 0  # the optimiser asks every architecture


def check_settings(cfg):
    """ValueError where the settings of this architecture cannot be."""
    check_split_step(cfg)
    check_chunk(cfg)
    if cfg.train.ladder:
        check_rungs(cfg.train.ladder)


def param_specs(cfg):
    """Table of all tensors."""
    specs = embedding_specs(cfg)
    if cfg.engram.engram_buckets:
        specs += engram_specs(cfg)
    for i in range(cfg.model.num_layers):
        specs += split_step_specs(cfg, f"block{i}")
    if cfg.arch.chunk:
        specs += chunk_specs(cfg)
    return specs


def in_training(ops, cfg, q):
    """The weights `q` of a training step, told so: filters may then be applied by FFT, and chunks have a loss."""
    return {**q, "training": True}


def stage_arrays(cfg, rung):
    """{name: numpy array} that the forward of a training step finds beside the weights at a rung of train.ladder: here a cutoff, as a share
    of Nyquist."""
    return {"smoothing": stage_smoothing(rung, cfg.arch.fir_taps)}


def forward(ops, p, cfg, tokens):
    """Token ids (B, T) -> (stream (B, T, D), auxiliary losses {name: scalar}). The stream at t depends on tokens up to t only."""
    x = embed_tokens(ops, p, cfg, tokens)
    for i in range(cfg.model.num_layers):
        if cfg.engram.engram_buckets and i == cfg.engram.engram_layer:
            x = x + engram_layer(ops, p, cfg, x, tokens)
        update = split_step_layer(ops, p, cfg, f"block{i}", i, x, tokens)
        if cfg.train.drop_path and "keep" in p:
            update = p["keep"][i] * update
        x = x + update
    if cfg.arch.chunk and "training" in p:
        return x, chunk_losses(ops, p, cfg, x, tokens)
    return x, {}


def readout(ops, p, cfg, x):
    """Any positions of the stream (B, T, D) -> logits (B, T, V) float32, each from its own position alone."""
    if cfg.arch.chunk:
        return chunk_logits(ops, p, cfg, x, 1)[:, :, 0]
    return token_logits(ops, p, cfg, x)


def first_stream(ops, cfg, batch, like):
    """What is known before the first token of a text: no input of any filter. [(B, K - 1, 2M) of every block], (B, 1, 2M) of modes."""
    channels, kept = cfg.arch.fir_channels or cfg.model.model_dim, 1 if cfg.arch.filter == "modal" else cfg.arch.fir_taps - 1
    return [ops.zeros((batch, kept, 2 * channels), like) for _ in range(cfg.model.num_layers)]


def stream(ops, p, cfg, tokens, states, by_fft):
    """Go on with texts by tokens (B, S), one or many -> (stream (B, S, D), states for the tokens after them). The cost of a token does not
    grow with the text. With `by_fft` segments are convolved by FFT (overlap-save); without it nothing of this needs one."""
    x, left = embed_tokens(ops, p, cfg, tokens), []
    for i, before in enumerate(states):
        update, after = split_step_stream(ops, p, cfg, f"block{i}", i, x, tokens, before, by_fft)
        x = x + update
        left.append(after)
    return x, left


def probed_groups(cfg):
    """{group: names of its tensors}: those whose gradients a run reports, for they turn and filter."""
    blocks = [f"block{i}" for i in range(cfg.model.num_layers)]
    parts = [".angle"] + ([".bend"] if cfg.arch.turn != "none" else []) + ([".turn"] if cfg.arch.turn == "input" else [])
    filters = ".modes" if cfg.arch.filter == "modal" else ".taps"
    return {"phase": [block + part for block in blocks for part in parts], "taps": [block + filters for block in blocks]}


def probe(ops, p, cfg, tokens):
    """What a run reports of weights on tokens (B, T), {name: number}: of every block the energy after its turn over that before (1 but for
    rounding) and the stream's root mean square; how far a change of the last half of the tokens moves the first, by FFT and as it is scored,
    over the stream's largest value; and where there is a chunk head the loss of every offset."""
    found, x = {}, embed_tokens(ops, p, cfg, tokens)
    for i in range(cfg.model.num_layers):
        name = f"block{i}"
        u, z = lifted(ops, p, cfg, name, x)
        r = scaled(ops, p, name, filtered_channels(ops, p, cfg, name, i, z, tokens))
        before, after = (np.square(ops.to_numpy(part).astype(np.float64)).sum() for part in (r, turned(ops, p, cfg, name, r, u)))
        found[f"energy{i}"] = float(after / before)
        x = x + split_step_layer(ops, p, cfg, name, i, x, tokens)
        found[f"rms{i}"] = float(ops.mean(x * x)) ** 0.5
    half = tokens.shape[1] // 2
    changed = ops.concat([tokens[:, :half], (tokens[:, half:] + 1) % cfg.model.vocab_size], 1)
    for form, q in (("leak_fft", {**p, "training": True}), ("leak_scored", p)):
        before, moved = forward(ops, q, cfg, tokens)[0], forward(ops, q, cfg, changed)[0]
        found[form] = float(ops.max(ops.abs((before - moved)[:, :half]))) / float(ops.max(ops.abs(before)))
    losses = offset_losses(ops, p, cfg, x, tokens) if cfg.arch.chunk else None
    if losses is not None:
        found |= {f"offset{j + 1}": float(ops.mean(losses[:, :, j])) for j in range(cfg.arch.chunk)}
    return found
