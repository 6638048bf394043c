"""What keeps an equilibrium cell contracting: a penalty on its Jacobian whose strength follows the residual, and one on the residual.

Shapes: B batch, T time, D width.
"""

from dataclasses import dataclass

from trit.layers.equilibrium import capped, cell, cell_tables, deployed, drive, force
from trit.layers.noise import even_noise
from trit.layers.relaxation import text_norms
from trit.setting import setting

JACOBIAN_RANGE = (0.05, 16.0)  # of the penalty's strength
ADJUST_EVERY = 10  # steps from one look at the deployed residual, and adjustment of the strength, to the next
ADJUST_RATE = 0.1  # of its logarithm, per logarithm of residual over target
RESIDUAL_MEMORY = 0.35  # of the mean residual that it follows, from look to look: 0.9 for each of ten steps
WILD = 1e3  # stands for a residual that is no number


@dataclass(frozen=True)
class HomeostatConfig:
    """How a cell is kept stable."""

    jacobian_penalty: float = setting(0.3, "weight of |J e|^2 / |e|^2 for noise e, J without its leak, at first; 0 is off")
    residual_target: float = setting(
        0.02, "residual of the worst text after the deployed steps that the penalty's weight steers for; 0 leaves the weight as it is"
    )
    residual_penalty: float = setting(0.0, "penalty on |F(z)|^2 / |z|^2, as a share of the norm of the loss's gradient")


def homeostat_state(ops, p, cfg):
    """float32 (3,): weight of the Jacobian's penalty, mean residual of the worst text, steps. From that of the step before and from what
    it left under "relaxed", of which the last number is that step's `deployed_worst`."""
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
        moved = ops.clip(weight * ops.exp(ADJUST_RATE * off), JACOBIAN_RANGE[0], JACOBIAN_RANGE[1])
        weight = ops.where(looked, moved, weight)
    return ops.stack([weight, mean, count + 1.0], 0)


def deployed_worst(ops, q, cfg, tokens):
    """|F(z)| / |z| () of the worst text of (B, T) after the deployed steps, where a step is due to look at it; else -1. The state that training
    solves for says nothing of it: a better solver finds a rest that those steps circle."""
    steers = cfg.arch.jacobian_penalty and cfg.arch.residual_target
    if not steers or int(ops.to_numpy(q["homeostat"][2])) % ADJUST_EVERY:
        return ops.zeros((), next(iter(q.values()))) - 1.0
    z, p = deployed(ops, q, cfg, tokens), capped(ops, q, cfg)
    pull = force(ops, p, cfg, z, drive(ops, p, cfg, tokens), cell_tables(ops, cfg, tokens))
    return ops.max(text_norms(ops, pull) / text_norms(ops, z))


def jacobian_gradients(ops, q, cfg, tokens, z, names, key):
    """[gradient] of |J_N e|^2 / |e|^2 at the state z (B, T, D) with respect to the weights `names`; noise e by `key`, int64 (1,)."""
    tables = cell_tables(ops, cfg, tokens)
    noise = ops.reshape(even_noise(ops, (z.shape[0] * z.shape[1], z.shape[2]), key, z), z.shape)
    size = ops.sum(noise * noise)

    def gain(*given):
        p = capped(ops, {**q, **dict(zip(names, given))}, cfg)
        moved = ops.pushforward(lambda z: cell(ops, p, cfg, z, tables), [z], [noise])[1]
        return ops.sum(moved * moved) / size

    value, transpose = ops.pullback(gain, *[q[name] for name in names])
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
