"""`unet`: ternary U-Net transformer, the backbone with attention in every block."""

from dataclasses import dataclass

from trit.layers.attention import AttentionConfig
from trit.layers.backbone import BackboneConfig, carry_shapes, forward, param_specs, readout

__all__ = ["ArchConfig", "carry_shapes", "forward", "param_specs", "readout"]


@dataclass(frozen=True)
class ArchConfig(AttentionConfig, BackboneConfig):
    """Settings of the backbone and of attention's branch."""

    layer_map = "a"  # no annotation: a constant, not a setting
