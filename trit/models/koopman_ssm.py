"""`koopman_ssm`: the backbone with a Koopman state in every block; no attention, so time and memory grow with the text, not its square."""

from dataclasses import dataclass

from trit.layers.backbone import BackboneConfig, carry_shapes, forward, param_specs, readout
from trit.layers.koopman import KoopmanConfig

__all__ = ["ArchConfig", "carry_shapes", "forward", "param_specs", "readout"]


@dataclass(frozen=True)
class ArchConfig(KoopmanConfig, BackboneConfig):
    """Settings of the backbone and of the Koopman mixer."""

    layer_map = "k"  # no annotation: a constant, not a setting
