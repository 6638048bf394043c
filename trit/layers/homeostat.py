"""What keeps an equilibrium cell contracting: a penalty on its Jacobian whose strength follows the residual, and one on the residual.

Shapes: B batch, T time, D width.
"""

from dataclasses import dataclass

from trit.layers.equilibrium import capped, cell, cell_tables, deployed, drive, force, own_cell
from trit.layers.noise import even_noise
from trit.layers.relaxation import norms, text_residual
from trit.setting import setting

MOST = 30.0  # times the penalty's weight at first, below which it does not fall: within its bound the penalty presses on nothing anyway
ADJUST_EVERY = 10  # steps from one look at the deployed residual, and adjustment of the strength, to the next
RISE = 0.5  # of its logarithm, per logarithm of residual over target: rests are lost within twenty steps, and for good
FALL = 0.1  # likewise where the residual is below the target
LOSS_RISE = 0.5  # of its logarithm in one step that leaves all texts out
RESIDUAL_MEMORY = 0.35  # of the mean residual that it follows, from look to look: 0.9 for each of ten steps
WILD = 1e3  # stands for a residual that is no number


@dataclass(frozen=True)
class HomeostatConfig:
    """How a cell is kept stable."""

    jacobian_penalty: float = setting(
        1.0, "weight, at first and at least, of the penalty on the Jacobian J of the cell, without its leak; 0 is off"
    )
    jacobian_scope: str = setting(
        "token",
        "it presses on how a token's state moves itself, where the spectrum stands, or also on what tokens hand on, which fewer deployed steps "
        "than tokens do not outlive",
        choices=("token", "text"),
    )
    jacobian_bound: float = setting(1.0, "gain |J v| / |v| at a token from which on it presses; a rest needs less than 1 + arch.leak")
    jacobian_turns: int = setting(3, "products with J that turn the noise v towards what grows most; 0 presses on all directions alike")
    jacobian_share: float = setting(0.25, "share of a step's texts that it looks at")
    residual_target: float = setting(
        0.02, "residual of the worst text after the deployed steps that the penalty's weight steers for; 0 leaves the weight as it is"
    )
    residual_penalty: float = setting(0.0, "penalty on |F(z)|^2 / |z|^2, as a share of the norm of the loss's gradient")


def homeostat_state(ops, p, cfg):
    """float32 (3,): weight of the Jacobian's penalty, mean residual of the worst text, steps. From that of the step before and from what
    it left under "relaxed", of which the last numbers are that step's share of texts left out and its `deployed_worst`."""
    if "homeostat" not in p:
        any_weight = next(iter(p.values()))
        return ops.constant([cfg.arch.jacobian_penalty, 0.0, 0.0], any_weight)
    weight, mean, count = (p["homeostat"][i] for i in range(3))
    worst = p["relaxed"][-1]
    looked = (worst >= 0) | (worst != worst)  # what is no number has been looked at too
    worst = ops.where(worst < WILD, worst, ops.zeros((), worst) + WILD)
    mean = ops.where(looked, ops.where(mean > 0, RESIDUAL_MEMORY * mean + (1.0 - RESIDUAL_MEMORY) * worst, worst), mean)
    if cfg.arch.residual_target:
        off = ops.clip(ops.log(ops.maximum(mean, 1e-12) / cfg.arch.residual_target), -3.0, 3.0)
        off = ops.where(looked, ops.where(off > 0, RISE * off, FALL * off), off * 0.0) + LOSS_RISE * p["relaxed"][-2]
        weight = ops.clip(weight * ops.exp(off), cfg.arch.jacobian_penalty, cfg.arch.jacobian_penalty * MOST)
    return ops.stack([weight, mean, count + 1.0], 0)


def deployed_worst(ops, q, cfg, tokens):
    """|F(z)| / |z| () of the worst text of (B, T) after the deployed steps, where a step is due to look at it; else -1. The state that training
    solves for says nothing of it: a better solver finds a rest that those steps circle."""
    steers = cfg.arch.jacobian_penalty and cfg.arch.residual_target
    if not steers or int(ops.to_numpy(q["homeostat"][2])) % ADJUST_EVERY:
        return ops.zeros((), next(iter(q.values()))) - 1.0
    z, p = deployed(ops, q, cfg, tokens), capped(ops, q, cfg)
    pull = force(ops, p, cfg, z, drive(ops, p, cfg, tokens), cell_tables(ops, cfg, tokens))
    return ops.max(text_residual(ops, pull, z))


def jacobian_gradients(ops, q, cfg, tokens, z, names, key):
    """[gradient] with respect to the weights `names` of the mean over the tokens of the first texts, arch.jacobian_share of all, of
    max(gain - arch.jacobian_bound, 0)^2 at the state z (B, T, D). The gain is |J v| of noise by `key`, int64 (1,), of norm 1 at every token,
    turned by arch.jacobian_turns products towards what grows most; of "token" J holds the blocks of single tokens, where the whole spectrum
    stands, and v is turned and stretched by J^T, whose modes are the same. With "text", all texts and neither turns nor bound it is
    |J e|^2 / |e|^2 of all directions alike (equilibrium.md A4.1)."""
    count = max(1, int(cfg.arch.jacobian_share * tokens.shape[0]))
    tokens, z = tokens[:count], z[:count]  # batches are drawn at random: the first texts are as good as any
    tables, single = cell_tables(ops, cfg, tokens), cfg.arch.jacobian_scope == "token"

    def moved(p, state):
        return own_cell(ops, p, cfg, state, z, tables) if single else cell(ops, p, cfg, state, tables)

    def along(p, v):
        return ops.pushforward(lambda state: moved(p, state), [z], [v])[1]

    weights = capped(ops, q, cfg)
    if single:
        _, transpose = ops.pullback(lambda state: moved(weights, state), z)
    after = ops.reshape(even_noise(ops, (z.shape[0] * z.shape[1], z.shape[2]), key, z), z.shape)
    after = after / norms(ops, after)[..., None]
    for _ in range(cfg.arch.jacobian_turns + 1):
        before, after = after, transpose(after)[0] if single else along(weights, after)
        after = after / norms(ops, after)[..., None]
    left, right = (before, after) if single else (after, before)

    # The gain is <left, J right>, and its derivative is that of this product with both held.
    def excess(*given):
        p = capped(ops, {**q, **dict(zip(names, given))}, cfg)
        over = ops.maximum(ops.sum(left * along(p, right), -1) - cfg.arch.jacobian_bound, 0.0)
        return ops.mean(over * over)

    value, transpose = ops.pullback(excess, *[q[name] for name in names])
    return transpose(value * 0.0 + 1.0)


def residual_gradients(ops, q, cfg, tokens, z, names):
    """[gradient] of the mean over texts of |F(z)|^2 / |z|^2 at the state z (B, T, D) with respect to the weights `names`."""
    tables = cell_tables(ops, cfg, tokens)
    size = ops.sum(ops.sum(z * z, -1), -1)

    def rest(*given):
        p = capped(ops, {**q, **dict(zip(names, given))}, cfg)
        pull = force(ops, p, cfg, z, drive(ops, p, cfg, tokens), tables)
        return ops.mean(ops.sum(ops.sum(pull * pull, -1), -1) / size)

    value, transpose = ops.pullback(rest, *[q[name] for name in names])
    return transpose(value * 0.0 + 1.0)


def whole_norm(ops, gradients):
    """Euclidean norm of a list of arrays taken as one vector."""
    return ops.sqrt(sum(ops.sum(x * x) for x in gradients) + 1e-30)


def stabilised(ops, q, cfg, tokens, z, names, gradients):
    """{name: gradient} with the penalties added to those of the loss. The residual's penalty is scaled by the loss's gradient alone, so
    that the other penalty does not change it."""
    found = dict(gradients)
    if cfg.arch.residual_penalty:
        task = whole_norm(ops, list(gradients.values()))
        parts = residual_gradients(ops, q, cfg, tokens, z, names)
        scale = cfg.arch.residual_penalty * task / whole_norm(ops, parts)
        found = {name: found[name] + scale * part for name, part in zip(names, parts)}
    if cfg.arch.jacobian_penalty:
        key = ops.cast(q["homeostat"][2:], "int64")
        parts = jacobian_gradients(ops, q, cfg, tokens, z, names, key)
        found = {name: found[name] + q["homeostat"][0] * part for name, part in zip(names, parts)}
    return found
