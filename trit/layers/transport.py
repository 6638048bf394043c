"""Transport encoder: a token becomes its row of an entropic optimal transport plan between the vocabulary and a codebook.

The plan's rows are token ids, never positions of a text: a plan over positions would let every token see all that come after it (sem.md 4).
It is a function of parameters alone. Its dual potential and epsilon are constants for the gradient. Shapes: V vocabulary, E embedding
width, P width of the cost, K codes, M codes that a token shall use, B batch, T time, D complex channels.
"""

import math
from dataclasses import dataclass

from trit.layers.document import document_starts
from trit.layers.linear import project
from trit.layers.pairs import turned
from trit.params import ParamSpec, matrix_spec, on_grid, scalar_spec, table_spec
from trit.setting import check_values, setting

# Makes the mean effective support exp(entropy of a row) M, whatever the scale of the costs (sem.md 1.1).
SUPPORT_FACTOR = 0.82
ROUND_STEPS = 3  # iterations between two corrections of epsilon, and of a training step
SHARPNESS_START = 0.1  # temperature of the re-weighting at the start, and its range
SHARPNESS_RANGE = (0.01, 1.0)


@dataclass(frozen=True)
class TransportConfig:
    """What one can set of the encoder."""

    encoder: str = setting("transport", "tokens become rows of a transport plan, or embeddings", choices=("transport", "embedding"))
    codes: int = setting(128, "candidates of the codebook")
    code_support: int = setting(16, "codes that a token shall use, in effect", env="CODE_SUPPORT")
    cost_dim: int = setting(64, "width in which embeddings and codes are compared")
    epsilon: str = setting(
        "support",
        "entropy's price: from code_support, or the published rule, which ignores the scale of costs",
        choices=("support", "published"),
    )
    sinkhorn_rounds: int = setting(9, "rounds of three iterations of a plan from nothing")
    sparsity: str = setting(
        "soft", "rows re-weighted by themselves, cut to their code_support largest, or as they are", choices=("soft", "hard", "none")
    )
    position_phase: bool = setting(True, "turn every channel by the token's position, at a rate of its own")


def check_transport(cfg):
    """ValueError where the encoder's settings cannot be."""
    codes, support, width = cfg.arch.codes, cfg.arch.code_support, cfg.model.model_dim
    simple = cfg.arch.encoder == "embedding"
    check_values(
        ("code_support", support, 0 < support < codes, f"must be 1 to {codes - 1}, below arch.codes={codes}"),
        ("cost_dim", cfg.arch.cost_dim, cfg.arch.cost_dim > 0, "must be positive"),
        ("sinkhorn_rounds", cfg.arch.sinkhorn_rounds, 0 < cfg.arch.sinkhorn_rounds < 10, "must be 1 to 9"),
        ("encoder", "embedding", not simple or cfg.model.embed_dim == width, f"takes model.embed_dim=model.model_dim={width}"),
    )


def transport_specs(cfg):
    """Embedding (V, E); its way into the cost (P, E), codebook (K, P) and the lift of rows to channels (2 D, K)."""
    width, size = cfg.model.model_dim, cfg.model.embed_dim
    embedding = ParamSpec("embed", (cfg.model.vocab_size, size), "normal", size**-0.5, "embed", rotate=cfg.quant.rotate_embedding)
    specs = [on_grid(embedding, cfg.quant.embed_bits, cfg.quant.embed_group_size or size, cfg.quant.int_clip)]
    if cfg.arch.encoder == "embedding":
        return specs + [matrix_spec(cfg, "encoder.imaginary", width, size, 0.3 * size**-0.5)]
    specs += [
        table_spec(cfg, "encoder.cost", (cfg.arch.cost_dim, size), size**-0.5),
        table_spec(cfg, "encoder.codebook", (cfg.arch.codes, cfg.arch.cost_dim), 0.1),
        matrix_spec(cfg, "encoder.lift", 2 * width, cfg.arch.codes, 1.0),
    ]
    if cfg.arch.sparsity == "soft":
        specs.append(scalar_spec(cfg, "encoder.sharpness", (1,), 0.0))
    return specs


def transport_cost(ops, p):
    """Squared distances (V, K) float32 of embeddings and codes in the space of the cost."""
    points = ops.linear(ops.cast(p["embed"], "float32"), ops.cast(p["encoder.cost"], "float32"))
    codes = ops.cast(p["encoder.codebook"], "float32")
    return ops.sum(points * points, -1, True) + ops.sum(codes * codes, -1) - 2.0 * ops.linear(points, codes)


def transport_epsilon(ops, cfg, cost):
    """Price of entropy at first, a scalar, for costs (V, K). What a balanced plan cannot see, means of rows and columns, does not count."""
    if cfg.arch.epsilon == "published":
        return ops.zeros((), cost) + (2.0 / (cfg.model.model_dim * cfg.arch.code_support)) ** 0.5
    centred = cost - ops.mean(cost, 1, True) - ops.mean(cost, 0, True) + ops.mean(cost)
    spread = (2.0 * math.log(cfg.arch.codes / cfg.arch.code_support)) ** 0.5
    return ops.sqrt(ops.mean(centred * centred) + 1e-12) * (SUPPORT_FACTOR / spread)


def sinkhorn(ops, scaled, dual, steps):
    """Dual potential (K,) after so many iterations that move the columns of softmax(scaled + dual), with scaled (V, K) = -cost / epsilon,
    towards equal masses; rows have mass 1 after each. All in logarithms."""
    rows, codes = scaled.shape
    for _ in range(steps):
        dual = dual - ops.logsumexp(ops.log_softmax(scaled + dual), 0) + math.log(rows / codes)
    return dual


def settled(ops, cfg, cost, dual, epsilon, rounds):
    """(dual potential (K,), epsilon) after so many rounds of ROUND_STEPS iterations. With epsilon from the support each begins with a Newton
    step of ln epsilon towards the support that is asked for: training makes costs that are no longer normally distributed, and for
    those the first guess is off by half. For normal ones the entropy falls by (sigma / epsilon)^2 / 2, which gives the slope."""
    target, most = math.log(cfg.arch.code_support), math.log(cfg.arch.codes)
    for _ in range(rounds):
        if cfg.arch.epsilon == "support":
            rows = ops.log_softmax(cost * (-1.0 / epsilon) + dual)
            support = ops.log(ops.mean(ops.exp(-ops.sum(ops.exp(rows) * rows, -1))))
            change = ops.exp(ops.clip((target - support) / (2.0 * ops.maximum(most - support, 0.25)), -0.5, 0.5))
            epsilon, dual = epsilon * change, dual / change
        dual = sinkhorn(ops, cost * (-1.0 / epsilon), dual, ROUND_STEPS)
    return dual, epsilon


def transport_state(ops, p, cfg):
    """(dual potential (K,), epsilon) of the plan that the weights in `p` make, constants for the gradient. Where `p` holds those of the
    training step before, one round goes on from them; otherwise they are found from nothing."""
    cost = ops.stop_gradient(transport_cost(ops, p))
    if "encoder.dual" in p:
        return settled(ops, cfg, cost, p["encoder.dual"], p["encoder.epsilon"], 1)
    begun = ops.zeros((cfg.arch.codes,), cost), transport_epsilon(ops, cfg, cost)
    dual, epsilon = settled(ops, cfg, cost, begun[0], begun[1], cfg.arch.sinkhorn_rounds)
    return ops.stop_gradient(dual), ops.stop_gradient(epsilon)


def transport_plan(ops, p, cfg):
    """Logarithms (V, K) of the plan's rows, each of mass 1. A training step finds the plan's state in `p`, made once for all of it."""
    if "encoder.dual" in p:
        dual, epsilon = p["encoder.dual"], p["encoder.epsilon"]
    else:
        dual, epsilon = transport_state(ops, p, cfg)
    return ops.log_softmax(transport_cost(ops, p) * (-1.0 / epsilon) + dual)


def sparse_rows(ops, p, cfg, rows):
    """Logarithms of a plan's rows (V, K) -> weights (V, K) of mass 1 on fewer codes."""
    weights = ops.exp(rows)
    if cfg.arch.sparsity == "soft":
        sharpness = ops.cast(p["encoder.sharpness"], "float32") + math.log(SHARPNESS_START)
        temperature = ops.clip(ops.exp(sharpness), SHARPNESS_RANGE[0], SHARPNESS_RANGE[1])
        return ops.softmax(rows + weights / temperature)
    if cfg.arch.sparsity == "hard":
        left = ops.stop_gradient(weights)
        for _ in range(cfg.arch.code_support):
            edge = ops.max(left, -1, True)
            left = ops.where(left >= edge, ops.zeros((), left), left)
        weights = weights * ops.cast(ops.stop_gradient(weights) >= edge, "float32")
        return weights / ops.sum(weights, -1, True)
    return weights


def encoded(ops, p, cfg, tokens):
    """Token ids (B, T) -> channels (B, T, 2 D), real parts first."""
    if cfg.arch.encoder == "embedding":
        real = ops.rms_norm(ops.take(p["embed"], tokens))
        x = ops.concat([real, project(ops, p, cfg, "encoder.imaginary", real)], -1)
    else:
        table = ops.cast(sparse_rows(ops, p, cfg, transport_plan(ops, p, cfg)), cfg.train.compute_dtype)
        x = project(ops, p, cfg, "encoder.lift", ops.take(table, tokens))
    if cfg.arch.position_phase:
        positions = ops.arange(tokens.shape[1], tokens)
        if cfg.model.isolate_documents:
            positions = positions - document_starts(ops, tokens)
        rates = ops.exp(ops.arange(cfg.model.model_dim, tokens) * (-math.log(10000.0) / cfg.model.model_dim))
        x = turned(ops, cfg, x, positions[..., None] * rates)
    return x
