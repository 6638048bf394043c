"""Equilibrium cell: a block whose output is where a relaxation comes to rest, so that any depth costs the weights of one.

F(z) = x - z - c z + N(z), with x the drive of the tokens and N(z) = Attn(LN z) + FFN(LN z), the part that is no gradient of anything; over
several cells each reads what the ones before it added. All of F is per position but attention, which is causal: so is every explicit
step, and the Jacobian is block lower triangular over positions. Its spectrum is that of the blocks J_tt on the diagonal (equilibrium.md
A1.4). Shapes: B batch, T time, H heads, D width.
"""

import math
from dataclasses import dataclass

from trit.layers.attention import rope_frequencies
from trit.layers.document import visible_tokens
from trit.layers.embed import embed_tokens
from trit.layers.engram import engram_layer
from trit.layers.linear import project
from trit.params import matrix_spec
from trit.setting import setting

PARTS = ("qkv", "output", "expand", "contract")
HIDDEN = -1e30  # a score whose weight is exactly 0: no later token moves a bit


@dataclass(frozen=True)
class EquilibriumConfig:
    """What one can set of the cell and of its relaxation."""

    relax_steps: int = setting(60, "explicit steps of the relaxation, in evaluation always so many")
    relax_rate: float = setting(0.25, "length of a step; relax_steps * relax_rate is the time that a token has")
    drive_scale: float = setting(1.0, "size of the drive: what the cell does to the state's direction shrinks as this grows")
    leak: float = setting(1.0, "decay c of the state beside that of the drive")
    branch_start: float = setting(0.5, "factor on the starts of both output matrices: training begins where the cell contracts")
    cell_optimizer: str = setting(
        "muon", "what trains the matrices: Muon at train.matrix_lr, Adam at train.scalar_lr", choices=("muon", "adam")
    )
    norm_cap: float = setting(4.0, "largest norm of a matrix as a multiple of that at its start; 0 is off")


def cell_shapes(cfg):
    """{part: (rows, columns, standard deviation of the start)} of one cell."""
    width, hidden, start = cfg.model.model_dim, cfg.model.mlp_mult * cfg.model.model_dim, cfg.arch.branch_start
    return {
        "qkv": (3 * width, width, width**-0.5),
        "output": (width, width, start * width**-0.5),
        "expand": (hidden, width, width**-0.5),
        "contract": (width, hidden, start * hidden**-0.5),
    }


def cell_specs(cfg):
    """Matrices of all cells."""
    specs = [
        matrix_spec(cfg, f"cell{i}.{part}", rows, columns, std)
        for i in range(cfg.model.num_layers)
        for part, (rows, columns, std) in cell_shapes(cfg).items()
    ]
    return [spec._replace(group="scalar") for spec in specs] if cfg.arch.cell_optimizer == "adam" else specs


def capped(ops, p, cfg):
    """`p` with the matrices of the cells no larger than arch.norm_cap times their start: what every use of them sees, rounded or not."""
    if not cfg.arch.norm_cap:
        return p
    found = dict(p)
    for i in range(cfg.model.num_layers):
        for part, (rows, columns, std) in cell_shapes(cfg).items():
            weight = p[f"cell{i}.{part}"]
            most = cfg.arch.norm_cap * std * (rows * columns) ** 0.5
            found[f"cell{i}.{part}"] = weight * ops.clip(most * ops.rsqrt(ops.sum(weight * weight) + 1e-20), 0.0, 1.0)
    return found


def cell_tables(ops, cfg, tokens):
    """(rotations, mask (B or 1, 1, T, T) of what a token sees) for tokens (B, T)."""
    length = tokens.shape[1]
    table = ops.rotary_table(rope_frequencies(ops, cfg, tokens), length, cfg.train.compute_dtype)
    places = ops.arange(length, tokens)
    if cfg.model.isolate_documents:
        visible = visible_tokens(ops, tokens)
    else:
        visible = (places <= places[:, None])[None, None]
    if cfg.eval.eval_segment_tokens and length > cfg.eval.eval_seq_len:
        visible = visible & (places[:, None] - places < cfg.eval.eval_seq_len)
    return table, visible


def drive(ops, p, cfg, tokens):
    """What pulls on the state of every token, (B, T, D): its embedding, and what the hashed memory finds. The relaxation begins there."""
    x = cfg.arch.drive_scale * embed_tokens(ops, p, cfg, tokens)
    if cfg.engram.engram_buckets:
        x = x + engram_layer(ops, p, cfg, x, tokens)
    return x


def layer_norm(ops, x):
    """x less its mean over the last axis, over its deviation; nothing learned."""
    return ops.rms_norm(x - ops.mean(x, -1, True))


def plain_heads(ops, p, cfg, name, u):
    """Normalised queries, keys and the values (B, H, T, D / H) of u (B, T, D), before positions turn the first two."""
    heads = cfg.model.num_heads
    qkv = ops.reshape(project(ops, p, cfg, name + ".qkv", u), (u.shape[0], u.shape[1], 3 * heads, -1))
    qkv = ops.permute(qkv, (0, 2, 1, 3))
    return ops.rms_norm(qkv[:, :heads]), ops.rms_norm(qkv[:, heads : 2 * heads]), qkv[:, 2 * heads :]


def heads_of(ops, p, cfg, name, u, table):
    """Normalised, turned queries and keys and the values (B, H, T, D / H) of u (B, T, D). Scores are at most the root of D / H."""
    q, k, v = plain_heads(ops, p, cfg, name, u)
    return ops.rotary(q, table) * q.shape[-1] ** -0.5, ops.rotary(k, table), v


def rejoined(ops, y):
    """Heads (B, H, T, D / H) -> (B, T, D)."""
    y = ops.permute(y, (0, 2, 1, 3))
    return ops.reshape(y, (y.shape[0], y.shape[1], -1))


def feed_forward(ops, p, cfg, name, u):
    """GELU in its tanh form between two matrices."""
    h = project(ops, p, cfg, name + ".expand", u)
    h = h * ops.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (h + 0.044715 * h * h * h))
    return project(ops, p, cfg, name + ".contract", h)


def hidden_scores(ops, like, visible):
    """What is added to scores: 0 where `visible`, elsewhere so little that no score is left of the sum."""
    zero = ops.zeros((), like)
    return ops.where(visible, zero, zero + HIDDEN)


def cell(ops, p, cfg, z, tables):
    """N(z) for a state z (B, T, D); `tables` of `cell_tables`, `p` of `capped`."""
    added, hidden = 0.0, hidden_scores(ops, z, tables[1])
    for i in range(cfg.model.num_layers):
        name, u = f"cell{i}", layer_norm(ops, z + added)
        q, k, v = heads_of(ops, p, cfg, name, u, tables[0])
        weights = ops.softmax(q @ ops.swap_last(k) + hidden)
        added = added + project(ops, p, cfg, name + ".output", rejoined(ops, weights @ v)) + feed_forward(ops, p, cfg, name, u)
    return added


def own_cell(ops, p, cfg, own, past, tables):
    """`cell` at every position where that position's state is own (B, T, D) and those before it are past (B, T, D): equal to cell(z) where
    both are z. Its Jacobian in `own` holds the blocks J_tt alone, all of them at once."""
    added, before = 0.0, 0.0
    places = ops.arange(own.shape[1], own)
    hidden = hidden_scores(ops, own, tables[1])
    not_earlier = hidden_scores(ops, own, tables[1] & (places < places[:, None]))
    for i in range(cfg.model.num_layers):
        name, u, w = f"cell{i}", layer_norm(ops, own + added), layer_norm(ops, past + before)
        q, k, v = heads_of(ops, p, cfg, name, u, tables[0])
        past_q, past_k, past_v = heads_of(ops, p, cfg, name, w, tables[0])
        scores = q @ ops.swap_last(past_k) + not_earlier
        weights = ops.softmax(ops.concat([scores, ops.sum(q * k, -1, True)], -1))
        y = weights[..., :-1] @ past_v + weights[..., -1:] * v
        added = added + project(ops, p, cfg, name + ".output", rejoined(ops, y)) + feed_forward(ops, p, cfg, name, u)
        if i + 1 < cfg.model.num_layers:
            weights = ops.softmax(past_q @ ops.swap_last(past_k) + hidden)
            before = before + project(ops, p, cfg, name + ".output", rejoined(ops, weights @ past_v)) + feed_forward(ops, p, cfg, name, w)
    return added


def force(ops, p, cfg, z, x, tables):
    """F(z) for a state z and the drive x, both (B, T, D); `p` of `capped`."""
    return x - (1.0 + cfg.arch.leak) * z + cell(ops, p, cfg, z, tables)


def own_force(ops, p, cfg, own, past, x, tables):
    """`force` at every position where that position's state is own and those before it are past, all (B, T, D)."""
    return x - (1.0 + cfg.arch.leak) * own + own_cell(ops, p, cfg, own, past, tables)


def deployed(ops, p, cfg, tokens):
    """State (B, T, D) after arch.relax_steps explicit steps from the drive: the deployed computation. Causal to the last bit, for nothing in
    it looks at more than one position but attention."""
    z = x = drive(ops, p, cfg, tokens)
    p, tables = capped(ops, p, cfg), cell_tables(ops, cfg, tokens)
    for _ in range(cfg.arch.relax_steps):
        z = z + cfg.arch.relax_rate * force(ops, p, cfg, z, x, tables)
    return z
