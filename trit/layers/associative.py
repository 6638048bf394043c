"""Dense associative memory: the state of every position relaxes by a fixed number of steps towards a minimum of an energy of its own.

E_t(v) = |v - a_t|^2 / 2 - sum_h log(sum_(s <= t) exp(beta_h k_ts . (Q v)_h)) / beta_h - |relu(f X v + c)|^2 / 2, one state v for a position:
a_t is the drive, k_ts the memory of position s as head h sees it from t (turned by the distance), X learned patterns, shrunk by f so that no
direction gains more than arch.pattern_gain < 1: the energy then has a lower bound. Both memories lower it by convex functions, so its
curvature is 1 at most, and a step of any size below 2 along its slope lowers it, whatever the weights.

The memory of a position holds its token and the one before it. Who asks with the one is answered with the other: a pattern completes
itself, which is how one relaxation can go on with what followed the same token before. Shapes: B batch, T time, D model width, H heads,
M patterns.
"""

import math
from dataclasses import dataclass

from trit.layers.attention import attended, attention_tables, rope_frequencies
from trit.layers.document import document_starts, visible_tokens
from trit.layers.linear import normed_project, normed_projection_specs, project
from trit.params import matrix_spec, scalar_spec
from trit.setting import check_values, setting

SQUARINGS = 5  # of the Gram matrix: the bound is then at most D ** (1 / 64) too large, 7 % for 96 channels


@dataclass(frozen=True)
class AssociativeConfig:
    """What one can set of the memory."""

    relaxation_steps: int = setting(2, "steps by which a state relaxes towards a minimum of its energy")
    pattern_gain: float = setting(0.95, "largest gain of the learned patterns, below 1: the energy then has a lower bound")


def check_associative(cfg):
    """ValueError where the memory's settings cannot be."""
    gain = cfg.arch.pattern_gain
    check_values(
        ("relaxation_steps", cfg.arch.relaxation_steps, cfg.arch.relaxation_steps > 0, "must be 1 or more"),
        ("pattern_gain", gain, 0 < gain < 1, "must lie between 0 and 1: from 1 on the energy has no lower bound"),
    )


def associative_specs(cfg, name):
    """Parameters of one memory. Rows of `query` and `memory`: the heads, one behind another."""
    width, hidden = cfg.model.model_dim, cfg.model.mlp_mult * cfg.model.model_dim
    return [
        scalar_spec(cfg, name + ".gain", (width,), 1.0),
        matrix_spec(cfg, name + ".drive", width, width, width**-0.5),
        matrix_spec(cfg, name + ".memory", width, 2 * width, (2 * width) ** -0.5),
        matrix_spec(cfg, name + ".query", width, width, width**-0.5),
        scalar_spec(cfg, name + ".sharpness", (cfg.model.num_heads, 1, 1), math.log(cfg.model.qk_gain_init)),
        matrix_spec(cfg, name + ".patterns", hidden, width, width**-0.5),
        scalar_spec(cfg, name + ".threshold", (hidden,), 0.0),
        scalar_spec(cfg, name + ".rate", (width,), 0.0),
        *normed_projection_specs(cfg, name + ".out", width, width, 0.02),
    ]


def largest_gain(ops, x):
    """Upper bound (), float32, of the largest singular value of a matrix x (M, D): a Schatten norm, so smooth, and no iteration that
    could stop short of it."""
    x = ops.cast(x, "float32")
    total = ops.sum(x * x) + 1e-30
    share, bound = (ops.swap_last(x) @ x) / total, ops.log(total)
    for i in range(SQUARINGS):
        trace = ops.sum(share * share) + 1e-12  # of the square, for it is symmetric
        bound = bound + 0.5 ** (i + 1) * ops.log(trace)
        share = (share @ share) / trace
    return ops.exp(0.5 * bound)


def split_heads(ops, cfg, x):
    """(B, T, D) -> (B, H, T, D / H)."""
    heads = cfg.model.num_heads
    return ops.permute(ops.reshape(x, (x.shape[0], x.shape[1], heads, x.shape[2] // heads)), (0, 2, 1, 3))


def associative_tables(ops, cfg, tokens):
    """What all memories of a forward of tokens (B, T) share: (tables of attention, table of the rotation that undoes that of positions)."""
    back = ops.rotary_table(-rope_frequencies(ops, cfg, tokens), tokens.shape[1], cfg.train.compute_dtype)
    return attention_tables(ops, cfg, tokens), back


def memory_field(ops, p, cfg, name, x, tokens, tables):
    """What stays as it is while states relax, of the stream x (B, T, D): (drive (B, T, D), memories (B, H, T, D / H) turned by their
    positions, shrinking factor () of the patterns). `tables` is what `associative_tables` made of the tokens."""
    u = ops.rms_norm(x) * p[name + ".gain"]
    before = ops.pad(u, ((0, 0), (1, 0), (0, 0)))[:, : u.shape[1]]
    if cfg.model.isolate_documents:
        inside = ops.arange(tokens.shape[1], tokens) > document_starts(ops, tokens)
        before = before * ops.cast(inside, cfg.train.compute_dtype)[:, :, None]
    rows = split_heads(ops, cfg, project(ops, p, cfg, name + ".memory", ops.concat([u, before], 2)))
    shrink = ops.cast(cfg.arch.pattern_gain / largest_gain(ops, p[name + ".patterns"]), cfg.train.compute_dtype)
    return project(ops, p, cfg, name + ".drive", u), ops.rotary(ops.rms_norm(rows), tables[0][0]), shrink


def associative_velocity(ops, p, cfg, name, v, field, tables):
    """Minus the slope of the energy of states v (B, T, D), each in its own."""
    drive, rows, shrink = field
    asked = ops.rotary(split_heads(ops, cfg, project(ops, p, cfg, name + ".query", v)), tables[0][0]) * ops.exp(p[name + ".sharpness"])
    found = ops.rotary(attended(ops, cfg, asked, rows, rows, tables[0]), tables[1])
    found = ops.reshape(ops.permute(found, (0, 2, 1, 3)), v.shape)
    active = ops.maximum(shrink * project(ops, p, cfg, name + ".patterns", v) + p[name + ".threshold"], 0.0)
    return drive - v + found @ p[name + ".query"] + (shrink * active) @ p[name + ".patterns"]


def associative_energy(ops, p, cfg, name, v, field, tables, tokens):
    """Energy (B, T) of states v (B, T, D). Not part of the forward: what `associative_velocity` is the slope of."""
    drive, rows, shrink = field
    width = cfg.model.model_dim // cfg.model.num_heads
    beta = ops.exp(p[name + ".sharpness"]) * width**-0.5  # as the attention of the array vocabulary scales scores
    asked = ops.rotary(split_heads(ops, cfg, project(ops, p, cfg, name + ".query", v)), tables[0][0])
    scores = beta * (asked @ ops.swap_last(rows))
    positions = ops.arange(tokens.shape[1], tokens)
    visible = visible_tokens(ops, tokens) if cfg.model.isolate_documents else positions <= positions[:, None]
    found = ops.logsumexp(ops.where(visible, scores, ops.zeros((), scores) - math.inf), 3) / beta[:, :, 0]
    active = ops.maximum(shrink * project(ops, p, cfg, name + ".patterns", v) + p[name + ".threshold"], 0.0)
    return 0.5 * ops.sum((v - drive) * (v - drive), 2) - ops.sum(found, 1) - 0.5 * ops.sum(active * active, 2)


def relaxed(ops, p, cfg, name, field, tables):
    """States (B, T, D) after every step, from the drive on: a list of relaxation_steps + 1. Every channel has its own step below 2."""
    rate, states = 2.0 * ops.sigmoid(p[name + ".rate"]), [field[0]]
    for _ in range(cfg.arch.relaxation_steps):
        states.append(states[-1] + rate * associative_velocity(ops, p, cfg, name, states[-1], field, tables))
    return states


def associative_layer(ops, p, cfg, name, x, tokens, tables):
    """Stream x (B, T, D) -> what the memory adds to it."""
    field = memory_field(ops, p, cfg, name, x, tokens, tables)
    return normed_project(ops, p, cfg, name + ".out", relaxed(ops, p, cfg, name, field, tables)[-1])
