"""The skeleton that architectures share: a ternary U-Net of blocks, each a token mixer and an MLP. The first half of the blocks encodes
and saves its streams, the second half adds them back.

An architecture names the mixer of every block by the letters of `layer_map` in its `ArchConfig`: a setting, or a class constant where
there is no choice. A map of one letter a block says it all; a shorter one repeats. Shapes: B batch, T time, C model width, V vocabulary.
"""

from dataclasses import dataclass

from trit.layers.attention import attention_layer, attention_specs, attention_tables
from trit.layers.capsules import CapsuleConfig, capsule_layer, capsule_specs
from trit.layers.embed import embed_tokens, embedding_specs, token_logits
from trit.layers.engram import engram_layer, engram_specs
from trit.layers.experts import ExpertConfig, expert_layer, expert_specs, first_expert_layer
from trit.layers.feedback import FeedbackConfig, fast_weights, feedback_layer, feedback_specs
from trit.layers.koopman import koopman_layer, koopman_specs, koopman_tables
from trit.layers.mlp import mlp_layer, mlp_specs
from trit.layers.sharing import shared_specs, tallied, unshared
from trit.layers.skc import skc_layer, skc_specs, skc_tables
from trit.params import scalar_spec
from trit.setting import setting


@dataclass(frozen=True)
class BackboneConfig(ExpertConfig, FeedbackConfig, CapsuleConfig):
    """What every architecture on this skeleton lets one set."""

    mlp_scale_init: float = setting(0.5, "initial gain of the MLP branch")
    parallel: bool = setting(False, "MLP and mixer of a block read the same stream and are added at once", env="SKC_PARALLEL_RESIDUAL")
    x0_mix_init: float = setting(0.05, "initial share of the embedding mixed into the input of every block")
    recurrent_layers: tuple = setting((), "blocks visited several times in a row, such as 3,4,5", env="RECUR_LAYERS")
    recurrence: int = setting(2, "visits of each of them; in training from train.recurrence_start on", env="RECURRENCE_DEPTH")
    shared_blocks: int = setting(0, "blocks of mixer and MLP weights that all layers share, as many for each letter; 0 is one a layer")


def mixer_of(cfg, i):
    """Letter of block i's mixer. Ask first whether the map holds a letter at all: that folds, and with it what no block needs."""
    return cfg.arch.layer_map[i % len(cfg.arch.layer_map)]


def mixers_of(cfg):
    """Letters of all blocks' mixers."""
    return [mixer_of(cfg, i) for i in range(cfg.model.num_layers)]


def first_attention(cfg):
    """The block whose attention has no earlier values to mix in."""
    return 0 if cfg.arch.layer_map == "a" else cfg.arch.layer_map.find("a")


def visits(cfg, p):
    """[(block, whether it is visited again at once)] in the order in which the stream meets the blocks: recurrent ones several times in a
    row, and after the last the decoder again, as often as the feedback says. A `p` that holds "shallow" asks for one visit in a row:
    training before train.recurrence_start."""
    layers = cfg.model.num_layers
    deep = 1 if cfg.train.recurrence_start and "shallow" in p else cfg.arch.recurrence
    order = [(i, turn > 0) for i in range(layers) for turn in range(deep if i in cfg.arch.recurrent_layers else 1)]
    return order + [visit for visit in order if visit[0] >= layers - layers // 2] * cfg.arch.feedback_passes


def param_specs(cfg):
    """Table of all tensors."""
    width = cfg.model.model_dim
    specs = embedding_specs(cfg)
    if cfg.engram.engram_buckets:
        specs += engram_specs(cfg)
    if cfg.arch.capsules:
        specs += capsule_specs(cfg)
    if cfg.arch.feedback_passes:
        specs += feedback_specs(cfg)
    for i in range(cfg.model.num_layers):
        name, decoder = f"block{i}", i >= cfg.model.num_layers - cfg.model.num_layers // 2
        kind = "decoder_scale" if decoder else "scale"
        specs += [
            scalar_spec(cfg, name + ".mix", (2, width), 0.0, "mix"),
            scalar_spec(cfg, name + ".mlp_scale", (width,), cfg.arch.mlp_scale_init, kind),
        ]
        if decoder:
            specs.append(scalar_spec(cfg, name + ".skip", (width,), 1.0, "skip"))
        if "k" in cfg.arch.layer_map and mixer_of(cfg, i) == "k":
            specs.append(scalar_spec(cfg, name + ".koopman_scale", (width,), cfg.arch.koopman_scale_init, kind))
            specs += koopman_specs(cfg, name + ".koopman")
        elif "s" in cfg.arch.layer_map and mixer_of(cfg, i) == "s":
            specs.append(scalar_spec(cfg, name + ".skc_scale", (width,), cfg.arch.skc_scale_init, kind))
            specs += skc_specs(cfg, name + ".skc")
        elif "a" in cfg.arch.layer_map:
            specs.append(scalar_spec(cfg, name + ".attn_scale", (width,), cfg.arch.attn_scale_init, kind))
            specs += attention_specs(cfg, name + ".attn", i == first_attention(cfg))
        if cfg.arch.experts and i >= first_expert_layer(cfg):
            specs += expert_specs(cfg, name + ".experts")
        else:
            specs += mlp_specs(cfg, name + ".mlp")
    if cfg.arch.shared_blocks:
        specs = shared_specs(cfg, mixers_of(cfg), specs)
    return specs


def forward(ops, p, cfg, tokens):
    """Token ids (B, T) -> (stream (B, T, C), auxiliary losses {name: scalar}). The stream at t depends on tokens up to t only."""
    layers = cfg.model.num_layers
    if cfg.arch.shared_blocks:
        p = unshared(p, cfg, mixers_of(cfg))
    if (cfg.arch.shared_blocks or cfg.arch.recurrent_layers or cfg.arch.feedback_passes) and "taps" in p:
        p = tallied(p, cfg, mixers_of(cfg))
    x = start = embed_tokens(ops, p, cfg, tokens)
    if cfg.arch.capsules or cfg.arch.experts:
        losses, capsules_due = {}, True
    if "a" in cfg.arch.layer_map:
        tables = attention_tables(ops, cfg, tokens)
    if "k" in cfg.arch.layer_map:
        koopman = koopman_tables(ops, cfg, tokens)
    if "s" in cfg.arch.layer_map:
        skc, losses = skc_tables(ops, cfg, tokens), {}
        mixers = sum(mixer_of(cfg, i) == "s" for i, _ in visits(cfg, p))
    if cfg.arch.experts:
        expert_visits = sum(i >= first_expert_layer(cfg) for i, _ in visits(cfg, p))
    saved, first_values = [], None
    if cfg.arch.feedback_passes:
        entry = memory = None
    for i in visits(cfg, p) if cfg.arch.recurrent_layers or cfg.arch.feedback_passes else range(cfg.model.num_layers):
        if cfg.arch.recurrent_layers or cfg.arch.feedback_passes:
            i, again = i
        name = f"block{i}"
        if cfg.arch.capsules and i == layers // 2 and capsules_due:
            capsules_due = False
            branch, found = capsule_layer(ops, p, cfg, ops.rms_norm(x), tokens)
            x, losses = x + branch, losses | found
        if cfg.arch.feedback_passes and i == layers - layers // 2 and not again:
            # A pass begins: the first with what it finds, every other with the same and what the one before it made of that.
            if entry:
                memory = fast_weights(ops, p, cfg, ops.rms_norm(x), tokens)
            else:
                entry = x, saved, first_values
            x, saved, first_values = entry[0], list(entry[1]), entry[2]
        if cfg.engram.engram_buckets and i == cfg.engram.engram_layer and not (cfg.arch.recurrent_layers and again):
            x = x + engram_layer(ops, p, cfg, x, tokens)
        if i >= layers - layers // 2 and not (cfg.arch.recurrent_layers and again):
            x = x + p[name + ".skip"] * saved.pop()
        mix = p[name + ".mix"]
        # Stored as the distance from (1 - x0_mix, x0_mix), so that Adam's steps and 16-bit rounding act on small numbers.
        x = (mix[0] + (1.0 - cfg.arch.x0_mix_init)) * x + (mix[1] + cfg.arch.x0_mix_init) * start
        if cfg.train.drop_path:
            base = x
        if cfg.arch.feedback_passes and memory:
            x = x + feedback_layer(ops, p, cfg, "feedback." + name, ops.rms_norm(x), memory)
        if cfg.arch.parallel:
            before = ops.rms_norm(x)
        if "k" in cfg.arch.layer_map and mixer_of(cfg, i) == "k":
            x = x + p[name + ".koopman_scale"] * koopman_layer(ops, p, cfg, name + ".koopman", ops.rms_norm(x), koopman)
        elif "s" in cfg.arch.layer_map and mixer_of(cfg, i) == "s":
            branch, found = skc_layer(ops, p, cfg, name + ".skc", ops.rms_norm(x), skc)
            losses |= {key: losses.get(key, 0.0) + loss / mixers for key, loss in found.items()}
            x = x + p[name + ".skc_scale"] * branch
        elif "a" in cfg.arch.layer_map:
            branch, values = attention_layer(
                ops,
                p,
                cfg,
                name + ".attn",
                ops.rms_norm(x),
                tables,
                None if cfg.arch.recurrent_layers and i == first_attention(cfg) else first_values,
                i >= layers - cfg.model.xsa_layers,
            )
            first_values = values if first_values is None else first_values
            x = x + p[name + ".attn_scale"] * branch
        if cfg.arch.experts and i >= first_expert_layer(cfg):
            branch, found = expert_layer(ops, p, cfg, name + ".experts", before if cfg.arch.parallel else ops.rms_norm(x), True)
            losses |= {key: losses.get(key, 0.0) + loss / expert_visits for key, loss in found.items()}
            x = x + p[name + ".mlp_scale"] * branch
        else:
            x = x + p[name + ".mlp_scale"] * mlp_layer(ops, p, cfg, name + ".mlp", before if cfg.arch.parallel else ops.rms_norm(x))
        if cfg.train.drop_path and "keep" in p:
            x = base + p["keep"][i] * (x - base)
        if cfg.arch.recurrent_layers and again and i < layers // 2:
            saved.pop()  # the decoder gets what the block's last visit gave
        if i < layers // 2:
            saved.append(x)
    if "s" in cfg.arch.layer_map or cfg.arch.capsules or cfg.arch.experts:
        return x, losses
    return x, {}


def carry_shapes(cfg):
    """[(K, S)] of all that is kept of a text (trit/layers/scan.py), in the order in which `forward` meets it."""
    sizes, found = {}, []
    if "k" in cfg.arch.layer_map:
        sizes["k"] = [(cfg.arch.koopman_conv_kernel, cfg.arch.koopman_state_dim)]
    if "s" in cfg.arch.layer_map:
        sizes["s"] = [(cfg.arch.skc_conv_kernel, cfg.arch.skc_state_dim)]
        if cfg.arch.skc_mix_init:
            sizes["s"].append((1, cfg.arch.skc_capsules * cfg.arch.skc_state_dim))
    capsules_due = cfg.arch.capsules > 0
    for i, _ in visits(cfg, {}):
        if capsules_due and i == cfg.model.num_layers // 2:
            capsules_due = False
            found.append((1, cfg.arch.capsules * (cfg.arch.capsule_dim + 1)))
        found += sizes.get(mixer_of(cfg, i), [])
    return found


def readout(ops, p, cfg, x):
    """Any positions of the stream (B, T, C) -> logits (B, T, V) float32, each from its own position alone."""
    return token_logits(ops, p, cfg, x)
