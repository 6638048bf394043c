"""Mixture of experts in place of the MLP: every token goes to the top-k of E ternary MLPs by a router of its own stream alone.

Dropless: no expert has a capacity, so no token is turned away for another, and a token's experts depend on nothing but itself (skc.md A8).
All experts compute all tokens and the weights of those not chosen are 0: exact, and for few experts and small ones quicker than to sort
tokens; it saves no arithmetic. Shapes: B batch, T time, D model width, E experts.
"""

from dataclasses import dataclass

from trit.layers.mlp import mlp_layer, mlp_specs
from trit.params import ParamSpec, on_grid
from trit.setting import check_values, setting


@dataclass(frozen=True)
class ExpertConfig:
    """What one can set of the experts."""

    experts: int = setting(0, "experts in place of the MLP in the upper layers; 0 is off")
    expert_top_k: int = setting(1, "experts that each token goes to")
    expert_layer_fraction: float = setting(0.33, "share of the layers, from above, that have experts")
    expert_balance_weight: float = setting(0.01, "weight of the loss where few experts get most tokens; 0 is off")


def check_experts(cfg):
    """ValueError where the experts' settings cannot be."""
    experts, fraction, layers = cfg.arch.experts, cfg.arch.expert_layer_fraction, cfg.model.num_layers
    check_values(
        ("experts", experts, experts > 1, "must be 0 (off) or 2 and more"),
        ("expert_top_k", cfg.arch.expert_top_k, 0 < cfg.arch.expert_top_k <= experts, f"must be 1 to arch.experts={experts}"),
        ("expert_layer_fraction", fraction, 0 < fraction <= 1, "must lie above 0 and up to 1"),
        (
            "expert_layer_fraction",
            fraction,
            first_expert_layer(cfg) < layers,
            f"gives experts to none of model.num_layers={layers} layers; {1 / layers:.2g} and more does",
        ),
        ("expert_balance_weight", cfg.arch.expert_balance_weight, cfg.arch.expert_balance_weight >= 0, "must be 0 (off) or more"),
    )


def first_expert_layer(cfg):
    """Number of the first layer that has experts: as many as expert_layer_fraction of the layers holds whole, give or take a twentieth."""
    return cfg.model.num_layers - int(cfg.model.num_layers * cfg.arch.expert_layer_fraction + 0.05)


def expert_specs(cfg, name):
    """Parameters of one layer's experts, and its router (E, D): 16-bit floats, or 8 bits a weight where scalars lie on a grid, which is
    finer than theirs: small differences decide where a token goes (skc.md T12, MO10)."""
    width = cfg.model.model_dim
    router = ParamSpec(name + ".router", (cfg.arch.experts, width), "normal", width**-0.5, "scalar", adapt="scale")
    specs = [on_grid(router, 16 if cfg.quant.scalar_bits == 16 else 8, width, cfg.quant.scalar_clip)]
    for expert in range(cfg.arch.experts):
        specs += mlp_specs(cfg, f"{name}.{expert}")
    return specs


def expert_shares(ops, cfg, logits):
    """Router logits (..., E) float32 -> (weights of the experts (..., E), 0 for those not chosen; probabilities (..., E); which are chosen
    (..., E), 0 or 1). Chosen is who fewer than k experts come before: those with a larger logit, or an equal one and a lower number.

    With one expert to a token its weight is its probability, which is what trains the router; with more they are a share of their sum,
    so that all E together are the sum over experts that the probabilities weigh (skc.md MO01, MO06).
    """
    experts, probabilities = cfg.arch.experts, ops.softmax(logits)
    lower = ops.constant([[float(other < expert) for other in range(experts)] for expert in range(experts)], logits)
    mine, others = logits[..., None], logits[..., None, :]
    before = ops.cast(others > mine, "float32") + ops.cast(others == mine, "float32") * lower
    chosen = ops.cast(ops.sum(before, -1) < cfg.arch.expert_top_k, "float32")
    weights = probabilities * chosen
    if cfg.arch.expert_top_k > 1:
        weights = weights / ops.sum(weights, -1, True)
    return weights, probabilities, chosen


def expert_layer(ops, p, cfg, name, x, routed):
    """Normalised stream x (B, T, D) -> (output (B, T, D), {name: auxiliary loss}). Where `routed` is False, which is fixed before a graph
    is made, the first expert is the MLP of all tokens and no other computes. The loss E * sum over experts of their share of the choices
    times their mean probability is 1 where both are even; training alone knows it, so it may look over the batch."""
    if not routed:
        return mlp_layer(ops, p, cfg, name + ".0", x), {}
    logits = ops.linear(ops.cast(x, "float32"), ops.cast(p[name + ".router"], "float32"))
    weights, probabilities, chosen = expert_shares(ops, cfg, logits)
    out = 0.0
    for expert in range(cfg.arch.experts):
        weight = ops.cast(weights[..., expert : expert + 1], cfg.train.compute_dtype)
        out = out + weight * mlp_layer(ops, p, cfg, f"{name}.{expert}", x)
    losses = {}
    if cfg.arch.expert_balance_weight:
        load = ops.mean(ops.mean(ops.stop_gradient(chosen), 0), 0) * (1.0 / cfg.arch.expert_top_k)
        balance = ops.sum(load * ops.mean(ops.mean(probabilities, 0), 0)) * cfg.arch.experts
        losses["expert_balance"] = cfg.arch.expert_balance_weight * balance
    return out, losses
