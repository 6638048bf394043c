"""Spinor gate: every block of channels has a unitary basis and phases, and every token turns the block's phases by as much as it says.

x <- Q e^(i g phi) Q^H x with Q = (I + K/2)^-1 (I - K/2) of a skew-Hermitian K, so the norm stays whatever is learned and whatever the gate
says (sem.md 1.2). Shapes: B batch, T time, D complex channels, N blocks of b channels.
"""

from trit.layers.pairs import turned
from trit.params import scalar_spec, table_spec

PROBIT_SCALE = 1.7015  # makes the logistic function the normal distribution's, within 0.01


def spinor_specs(cfg, name):
    """Generators (N, b, b), whose antisymmetric part is the real and whose symmetric part the imaginary part of K; phases (D,); the gate
    (N, 2 D) and its bias."""
    width, block = cfg.model.model_dim, cfg.arch.spinor_block
    return [
        table_spec(cfg, name + ".generator", (width // block, block, block), block**-0.5),
        # Off zero and apart: where all phases of a block are equal, its basis does nothing and learns nothing.
        table_spec(cfg, name + ".phase", (width,), 1.0),
        table_spec(cfg, name + ".gate", (width // block, 2 * width), width**-0.5),
        scalar_spec(cfg, name + ".gate_bias", (width // block,), 0.0),
    ]


def identity(ops, size, like):
    """Identity matrix (size, size) float32."""
    places = ops.arange(size, like)
    return ops.cast(places[:, None] == places, "float32")


def spinor_basis(ops, p, name):
    """Bases of all blocks as orthogonal matrices (N, 2 b, 2 b) of the numbers' real and imaginary parts."""
    generator = ops.cast(p[name + ".generator"], "float32")
    other = ops.swap_last(generator)
    odd, even = 0.5 * (generator - other), 0.5 * (generator + other)
    half = ops.concat([ops.concat([odd, -even], -1), ops.concat([even, odd], -1)], -2)
    one = identity(ops, half.shape[-1], half)
    return 2.0 * ops.inverse(one + half) - one


def spinor_gate(ops, p, cfg, name, x, gates):
    """x (B, T, 2 D) with the blocks turned by gates (B, T, N) in 0 .. 1, norms kept."""
    batch, length, width = x.shape[0], x.shape[1], cfg.model.model_dim
    block, rows = cfg.arch.spinor_block, x.shape[0] * x.shape[1]
    blocks = width // block
    basis = ops.cast(spinor_basis(ops, p, name), cfg.train.compute_dtype)
    parts = ops.permute(ops.reshape(x, (rows, 2, blocks, block)), (2, 0, 1, 3))
    phases = ops.reshape(ops.cast(p[name + ".phase"], "float32"), (blocks, 1, block))
    angles = ops.permute(ops.reshape(gates, (rows, blocks)), (1, 0))[:, :, None] * phases
    parts = turned(ops, cfg, ops.reshape(parts, (blocks, rows, 2 * block)) @ basis, angles) @ ops.swap_last(basis)
    parts = ops.permute(ops.reshape(parts, (blocks, rows, 2, block)), (1, 2, 0, 3))
    return ops.reshape(parts, (batch, length, 2 * width))


def spinor_gates(ops, p, name, features):
    """Gates (B, T, N) float32 of features (B, T, 2 D): for features of unit variance about evenly spread over 0 .. 1 at the start."""
    logits = ops.linear(features, p[name + ".gate"]) + p[name + ".gate_bias"]
    return ops.sigmoid(PROBIT_SCALE * ops.cast(logits, "float32"))
