"""A text that an equilibrium cell goes on with, one token at a time, from keys and values that were kept (equilibrium.md A8.6).

`exact` keeps them for every step of the relaxation, since a joint pass has all tokens move at once: relax_steps times the memory of an
ordinary cache, and the same states. Otherwise one cache holds those of the earlier tokens' last states, as if these had been at rest all the time:
as good as their rest. Shapes: B batch, T time, H heads, D width.
"""

from trit.layers.equilibrium import capped, cell_tables, drive, feed_forward, hidden_scores, layer_norm, plain_heads, rejoined
from trit.layers.linear import project


def grown_cell(ops, p, cfg, z, tables, kept):
    """(N(z) for the last token's state z (B, 1, D), [(keys not turned yet, values) (B, H, T, D / H)] of every cell with its own behind) given
    `kept`, the same of the tokens before it, None for the first; `tables` of all T positions."""
    added, grown = 0.0, []
    for i in range(cfg.model.num_layers):
        name, u = f"cell{i}", layer_norm(ops, z + added)
        q, k, v = plain_heads(ops, p, cfg, name, u)
        if kept is not None:
            k, v = (ops.concat([before, new], 2) for before, new in zip(kept[i], (k, v)))
        q = ops.rotary(ops.concat([k[:, :, :-1], q], 2), tables[0])[:, :, -1:] * q.shape[-1] ** -0.5
        weights = ops.softmax(q @ ops.swap_last(ops.rotary(k, tables[0])) + hidden_scores(ops, z, tables[1][:, :, -1:]))
        added = added + project(ops, p, cfg, name + ".output", rejoined(ops, weights @ v)) + feed_forward(ops, p, cfg, name, u)
        grown.append((k, v))
    return added, grown


def appended(ops, p, cfg, tokens, cache, exact):
    """(state (B, 1, D) of the last of tokens (B, T), cache for the token after it), given the cache of those before it, None where it is the
    first. ValueError where the cache is one of another form."""
    steps = cfg.arch.relax_steps
    if cache is not None and len(cache) != (steps if exact else 1):
        raise ValueError(f"a cache of {len(cache)} steps; {'exact' if exact else 'settled'} decoding keeps {steps if exact else 1}")
    z = x = drive(ops, p, cfg, tokens)[:, -1:]
    p, tables, left = capped(ops, p, cfg), cell_tables(ops, cfg, tokens), []
    for step in range(steps):
        kept = None if cache is None else cache[step if exact else 0]
        moved, grown = grown_cell(ops, p, cfg, z, tables, kept)
        left.append(grown)
        z = z + cfg.arch.relax_rate * (x - (1.0 + cfg.arch.leak) * z + moved)
    if not exact:
        left = [grown_cell(ops, p, cfg, z, tables, None if cache is None else cache[0])[1]]
    return z, left
