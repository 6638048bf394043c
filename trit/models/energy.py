"""`energy`: dense associative memories as a language model. Each layer lets the state of every position relax by a fixed number of steps
down an energy of its own, made of its token and of memories of the positions up to it, and adds what it finds to the stream.

The causal form of an energy transformer: nothing is global, the number of steps is fixed, so the past stays put bit for bit, and training
is ordinary backpropagation through the relaxation. Shapes: B batch, T time, D model width, V vocabulary.
"""

from dataclasses import dataclass

from trit.layers.associative import (
    AssociativeConfig,
    associative_energy,
    associative_layer,
    associative_specs,
    associative_tables,
    check_associative,
    memory_field,
    relaxed,
)
from trit.layers.embed import embed_tokens, embedding_specs, token_logits
from trit.layers.engram import engram_layer, engram_specs


@dataclass(frozen=True)
class ArchConfig(AssociativeConfig):
    """Settings of the memories."""

    experts = 0  # no annotation: a constant, which the optimiser asks every architecture for


def check_settings(cfg):
    """ValueError where the settings of this architecture cannot be."""
    check_associative(cfg)


def param_specs(cfg):
    """Table of all tensors."""
    specs = embedding_specs(cfg)
    if cfg.engram.engram_buckets:
        specs += engram_specs(cfg)
    for i in range(cfg.model.num_layers):
        specs += associative_specs(cfg, f"layer{i}")
    return specs


def forward(ops, p, cfg, tokens):
    """Token ids (B, T) -> (stream (B, T, D), no auxiliary losses). The stream at t depends on tokens up to t only."""
    x, tables = embed_tokens(ops, p, cfg, tokens), associative_tables(ops, cfg, tokens)
    for i in range(cfg.model.num_layers):
        if cfg.engram.engram_buckets and i == cfg.engram.engram_layer:
            x = x + engram_layer(ops, p, cfg, x, tokens)
        update = associative_layer(ops, p, cfg, f"layer{i}", x, tokens, tables)
        if cfg.train.drop_path and "keep" in p:
            update = p["keep"][i] * update
        x = x + update
    return x, {}


def readout(ops, p, cfg, x):
    """Any positions of the stream (B, T, D) -> logits (B, T, V) float32, each from its own position alone."""
    return token_logits(ops, p, cfg, x)


def energy_of(ops, p, cfg, tokens):
    """Energies of tokens (B, T) along their relaxation: for every layer a list of relaxation_steps + 1 arrays (B, T), which never rise."""
    x, tables, found = embed_tokens(ops, p, cfg, tokens), associative_tables(ops, cfg, tokens), []
    for i in range(cfg.model.num_layers):
        name = f"layer{i}"
        if cfg.engram.engram_buckets and i == cfg.engram.engram_layer:
            x = x + engram_layer(ops, p, cfg, x, tokens)
        field = memory_field(ops, p, cfg, name, x, tokens, tables)
        states = relaxed(ops, p, cfg, name, field, tables)
        found.append([associative_energy(ops, p, cfg, name, v, field, tables, tokens) for v in states])
        x = x + associative_layer(ops, p, cfg, name, x, tokens, tables)
    return found
