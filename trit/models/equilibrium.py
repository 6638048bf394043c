"""`equilibrium`: a transformer whose one cell relaxes to a rest, so that its depth costs no bytes; trained through the adjoint at the rest, by
contrast of nudged relaxations, or back through all steps. Evaluation takes a fixed number of explicit steps, which is causal to the bit.
"""

from dataclasses import dataclass

import numpy as np

from trit.layers.embed import embedding_specs, token_logits
from trit.layers.engram import engram_specs
from trit.layers.equilibrium import EquilibriumConfig, capped, cell_specs, cell_tables, deployed, drive, force, own_force
from trit.layers.homeostat import HomeostatConfig, deployed_worst, homeostat_state, stabilised
from trit.layers.implicit import ImplicitConfig, at_rest, free_phase, token_losses, unrolled
from trit.layers.newton import critical_steps, own_blocks
from trit.layers.relaxation import residual
from trit.params import parameter_count
from trit.setting import check_values

EXACT_WEIGHTS = 500  # most weights along each of which a derivative is carried forward


@dataclass(frozen=True)
class ArchConfig(HomeostatConfig, ImplicitConfig, EquilibriumConfig):
    """Settings of cell, solver, gradient and stability."""

    experts = 0  # no annotation: a constant, not a setting


def check_settings(cfg):
    """ValueError where settings cannot be."""
    weights = parameter_count(param_specs(cfg)) if cfg.arch.gradient == "eligibility" and not cfg.arch.directions else 0
    check_values(
        ("relax_steps", cfg.arch.relax_steps, cfg.arch.relax_steps > 0, "must be positive"),
        (
            "relax_rate",
            cfg.arch.relax_rate,
            0 < cfg.arch.relax_rate * (1.0 + cfg.arch.leak) < 2,
            "must be positive and below 2 / (1 + arch.leak)",
        ),
        ("leak", cfg.arch.leak, cfg.arch.leak >= 0, "must not be negative"),
        ("drive_scale", cfg.arch.drive_scale, cfg.arch.drive_scale > 0, "must be positive"),
        ("norm_cap", cfg.arch.norm_cap, cfg.arch.norm_cap >= 0, "must not be negative"),
        ("free_budget", cfg.arch.free_budget, cfg.arch.free_budget > 0, "must be positive"),
        ("free_tolerance", cfg.arch.free_tolerance, cfg.arch.free_tolerance > 0, "must be positive"),
        ("residual_gate", cfg.arch.residual_gate, cfg.arch.residual_gate > 0, "must be positive"),
        ("adjoint_tolerance", cfg.arch.adjoint_tolerance, cfg.arch.adjoint_tolerance > 0, "must be positive"),
        ("adjoint_budget", cfg.arch.adjoint_budget, cfg.arch.adjoint_budget > 0, "must be positive"),
        ("nudge", cfg.arch.nudge, cfg.arch.nudge > 0, "must be positive"),
        ("nudge_steps", cfg.arch.nudge_steps, cfg.arch.nudge_steps > 0, "must be positive"),
        ("directions", cfg.arch.directions, cfg.arch.directions >= 0, "must not be negative"),
        (
            "gradient",
            cfg.arch.gradient,
            weights <= EXACT_WEIGHTS,
            f"goes along every one of {weights} weights, at most {EXACT_WEIGHTS}; set arch.directions to draw directions instead",
        ),
        ("jacobian_penalty", cfg.arch.jacobian_penalty, cfg.arch.jacobian_penalty >= 0, "must not be negative"),
        ("jacobian_bound", cfg.arch.jacobian_bound, cfg.arch.jacobian_bound >= 0, "must not be negative"),
        ("jacobian_turns", cfg.arch.jacobian_turns, cfg.arch.jacobian_turns >= 0, "must not be negative"),
        ("jacobian_share", cfg.arch.jacobian_share, 0 < cfg.arch.jacobian_share <= 1, "must be above 0 and at most 1"),
        ("residual_target", cfg.arch.residual_target, cfg.arch.residual_target >= 0, "must not be negative"),
        ("residual_penalty", cfg.arch.residual_penalty, cfg.arch.residual_penalty >= 0, "must not be negative"),
    )
    for name, value, fits, reason in (
        (
            "train.compile",
            cfg.train.compile,
            not cfg.train.compile,
            "relaxes for any number of steps, which is no graph to compile; set it to false",
        ),
        (
            "train.compute_dtype",
            cfg.train.compute_dtype,
            cfg.train.compute_dtype == "float32",
            "nudges by less than it resolves; set it to float32",
        ),
        ("train.fp8", cfg.train.fp8, not cfg.train.fp8, "takes gradients of its own, with no product in 8-bit floats; set it to false"),
        ("train.drop_path", cfg.train.drop_path, not cfg.train.drop_path, "has no rest while a cell is left out; set it to 0"),
        ("engram.write_every", cfg.engram.write_every, cfg.engram.write_every == 1, "writes at every step; set it to 1"),
    ):
        if not fits:
            raise ValueError(f"{name}={value}: model.name={cfg.model.name} {reason}")


def param_specs(cfg):
    """Table of all tensors."""
    specs = embedding_specs(cfg)
    if cfg.engram.engram_buckets:
        specs += engram_specs(cfg)
    return specs + cell_specs(cfg)


def forward(ops, p, cfg, tokens):
    """Token ids (B, T) -> (state (B, T, D) after all steps, no auxiliary losses). The state at t depends on tokens up to t only."""
    return deployed(ops, p, cfg, tokens), {}


def readout(ops, p, cfg, x):
    """Any positions of the state (B, T, D) -> logits (B, T, V) float32, each from its own position alone."""
    return token_logits(ops, p, cfg, x)


def update_state(ops, p, cfg):
    """What a training step shall find in its `p` beside weights, {name: array}: the weight of the Jacobian's penalty."""
    return {"homeostat": homeostat_state(ops, p, cfg)} if cfg.arch.jacobian_penalty else {}


def estimate_gradients(ops, q, cfg, tokens, targets):
    """(mean loss in nats a token, {name: gradient of the objective}, {name: array} that the next step's `update_state` finds) of seen weights
    `q` and what `update_state` made, on int arrays (B, T).

    "relaxed" holds float32 (8,): residual of the worst token, mean residual, step residual of the worst token, the worst rho of the texts
    that count, texts left out, evaluations of the force, share of texts left out, `deployed_worst`.
    """
    q = {name: ops.stop_gradient(x) for name, x in q.items()}
    names = [spec.name for spec in param_specs(cfg)]
    if cfg.arch.gradient == "bptt" or cfg.arch.gradient == "eligibility":
        found = unrolled(ops, q, cfg, tokens, targets, names)
    else:
        found = at_rest(ops, q, cfg, tokens, targets, names)
    count = ops.maximum(ops.sum(found.kept), 1.0) * tokens.shape[1]
    gradients = {name: x / count for name, x in found.gradients.items()}
    gradients = stabilised(ops, q, cfg, tokens, found.state, names, gradients)
    worst = ops.max(found.residuals)
    record = [
        worst,
        ops.mean(found.residuals),
        cfg.arch.relax_rate * worst,
        ops.max(found.kept * ops.where(found.rho < 1e9, found.rho, ops.zeros((), found.rho))),
        ops.sum(1.0 - found.kept),
        worst * 0.0 + float(found.evaluations),
        ops.mean(1.0 - found.kept),
        deployed_worst(ops, q, cfg, tokens),
    ]
    return ops.mean(found.losses), gradients, {"relaxed": ops.stack(record, 0)}


def probed_groups(cfg):
    """{group: names of its tensors}: those whose gradients a run reports."""
    return {part: [f"cell{i}.{part}" for i in range(cfg.model.num_layers)] for part in ("qkv", "output", "expand", "contract")}


def probe(ops, p, cfg, tokens):
    """What a run reports of weights on tokens (B, T), {name: number}, all of one set of weights. `g_` is the residual |F(z)| / |z| and `r_` that of
    a step, of the state after arch.relax_steps steps (`deployed`) and of the one that training solves for (`free`), over all tokens, of the
    worst text and of the worst token, `text_` and `position_` where that token stands; `loss_gap` what the loss of the deployed state is above
    that of the free one; `critical_step` the longest step at which all tokens' own modes are stable. Where `p` holds what a training step
    left, that step's rho, texts left out, evaluations and weight of the Jacobian's penalty."""
    weights, tables = capped(ops, p, cfg), cell_tables(ops, cfg, tokens)
    x, found = drive(ops, weights, cfg, tokens), {}
    free, stepped = free_phase(ops, weights, cfg, x, tables), deployed(ops, p, cfg, tokens)
    for name, z in (("deployed", stepped), ("free", free.state)):
        pull = force(ops, weights, cfg, z, x, tables)
        whole, by_text = (ops.sum(ops.sum(part * part, -1), -1) for part in (pull, z))
        by_token = ops.to_numpy(residual(ops, pull, z))
        text, position = np.unravel_index(by_token.argmax(), by_token.shape)
        found |= {f"text_{name}": int(text), f"position_{name}": int(position)}
        sizes = {
            "": (ops.sum(whole) / ops.sum(by_text)) ** 0.5,
            "_text": ops.max(whole / by_text) ** 0.5,
            "_token": by_token.max(),
        }
        for scope, size in sizes.items():
            found |= {f"g_{name}{scope}": float(size), f"r_{name}{scope}": cfg.arch.relax_rate * float(size)}
    losses = [ops.mean(token_losses(ops, p, cfg, z, tokens[:, 1:])) for z in (stepped[:, :-1], free.state[:, :-1])]
    blocks = own_blocks(ops, lambda own, past: own_force(ops, weights, cfg, own, past, x, tables), free.state)
    found |= {"loss_gap": float(losses[0]) - float(losses[1]), "critical_step": float(critical_steps(ops.to_numpy(blocks)).min())}
    found |= {"free_evaluations": free.evaluations, "free_status": ",".join(sorted(set(free.status)))}
    if "relaxed" in p:
        record = ops.to_numpy(p["relaxed"])
        found |= {
            "step_g_token": float(record[0]),
            "step_rho": float(record[3]),
            "texts_left_out": int(record[4]),
            "step_evaluations": int(record[5]),
        }
    if "homeostat" in p:
        found["jacobian_weight"] = float(p["homeostat"][0])
    return found
