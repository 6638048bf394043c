"""Transport encoder: a token becomes its row of an entropic optimal transport plan between the vocabulary and a codebook.

The plan's rows are token ids, never positions of a text: a plan over positions would let every token see all that come after it (sem.md 4).
It is a function of parameters alone. Its dual potential and epsilon are constants for the gradient. Shapes: V vocabulary, E embedding
width, P width of the cost, K codes, M codes that a token shall use, B batch, T time, D complex channels.
"""

import math
from dataclasses import dataclass

from trit.layers.document import document_starts
from trit.layers.functions import softmax_last
from trit.layers.linear import project
from trit.layers.pairs import turned
from trit.params import ParamSpec, matrix_spec, on_grid, scalar_spec, table_spec
from trit.setting import check_values, setting

# Makes the mean effective support exp(entropy of a row) M, whatever the scale of the costs (sem.md 1.1).
SUPPORT_FACTOR = 0.82
WARM_STEPS = 3
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
    sinkhorn_steps: int = setting(12, "iterations of a plan from nothing")
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
        ("sinkhorn_steps", cfg.arch.sinkhorn_steps, 0 < cfg.arch.sinkhorn_steps < 30, "must be 1 to 29"),
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
    """Price of entropy, a scalar, for costs (V, K). What a balanced plan cannot see, means of rows and columns, does not count."""
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


def transport_plan(ops, p, cfg):
    """Logarithms (V, K) of the plan's rows, each of mass 1. Under "encoder.dual" `p` may hold a potential (K,) that is used as it is: a
    training step makes it once, from that of the step before (`warm_dual`); otherwise it is found from nothing."""
    cost = transport_cost(ops, p)
    still = ops.stop_gradient(cost)
    epsilon = transport_epsilon(ops, cfg, still)
    scaled = still * (-1.0 / epsilon)
    if "encoder.dual" in p:
        dual = p["encoder.dual"]
    else:
        dual = sinkhorn(ops, scaled, ops.zeros((cfg.arch.codes,), scaled), cfg.arch.sinkhorn_steps)
    return ops.log_softmax(cost * (-1.0 / epsilon) + ops.stop_gradient(dual))


def warm_dual(ops, p, cfg):
    """Dual potential (K,) for the next training step: WARM_STEPS iterations from the one in `p`, or a cold plan's if there is none."""
    cost = ops.stop_gradient(transport_cost(ops, p))
    scaled = cost * (-1.0 / transport_epsilon(ops, cfg, cost))
    if "encoder.dual" in p:
        return sinkhorn(ops, scaled, p["encoder.dual"], WARM_STEPS)
    return sinkhorn(ops, scaled, ops.zeros((cfg.arch.codes,), scaled), cfg.arch.sinkhorn_steps)


def sparse_rows(ops, p, cfg, rows):
    """Logarithms of a plan's rows (V, K) -> weights (V, K) of mass 1 on fewer codes."""
    weights = ops.exp(rows)
    if cfg.arch.sparsity == "soft":
        sharpness = ops.cast(p["encoder.sharpness"], "float32") + math.log(SHARPNESS_START)
        temperature = ops.clip(ops.exp(sharpness), SHARPNESS_RANGE[0], SHARPNESS_RANGE[1])
        return softmax_last(ops, rows + weights / temperature)
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
