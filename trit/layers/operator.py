"""The Koopman operator of capsules: a learned linear map that advances a bank of states by one block and always contracts.

The bank between encoder and decoder (trit/layers/capsules.py) and SKC's spectral path both foretell with it. Shapes: N capsules,
C channels.
"""

from dataclasses import dataclass

from trit.layers.functions import hyperbolic_tangent
from trit.setting import setting

# The diagonal stays within the one of 0, the low rank within the other: the spectral radius of their sum is below 1.
DIAGONAL_RADIUS = 0.95
COUPLING_RADIUS = 0.04


@dataclass(frozen=True)
class OperatorConfig:
    """What one can set of the operator."""

    capsule_rank: int = setting(4, "rank of the coupling in the prediction of capsules, the bank's and SKC's; 0 is off")


def advanced(ops, p, cfg, name, z, hadamard):
    """Capsules (..., N, C) one block on: H (D + U V) H with the diagonal D of each capsule and a coupling of channels that all share.
    Whatever is learned, D stays within DIAGONAL_RADIUS and U V within COUPLING_RADIUS, by its Frobenius norm."""
    z = ops.linear(z, hadamard)
    diagonal = DIAGONAL_RADIUS * hyperbolic_tangent(ops, ops.cast(p[name + ".diagonal"], "float32"))
    moved = diagonal * z
    if cfg.arch.capsule_rank:
        first, second = ops.cast(p[name + ".couple_in"], "float32"), ops.cast(p[name + ".couple_out"], "float32")
        norm = ops.sqrt(ops.sum(first * first) * ops.sum(second * second) + 1e-12)
        moved = moved + ops.linear(ops.linear(z, first), second) * (COUPLING_RADIUS / ops.maximum(norm, COUPLING_RADIUS))
    return ops.linear(moved, hadamard)
