"""`skc`: the backbone with SKC mixers (a local state beside a block-lagged spectral path) in place of some of its attention layers."""

from dataclasses import dataclass

from trit.layers.attention import AttentionConfig
from trit.layers.backbone import BackboneConfig, carry_shapes, forward, param_specs, readout
from trit.layers.skc import SkcConfig
from trit.setting import setting

__all__ = ["ArchConfig", "carry_shapes", "forward", "param_specs", "readout"]


@dataclass(frozen=True)
class ArchConfig(SkcConfig, AttentionConfig, BackboneConfig):
    """Settings of the backbone, of both mixers and of their order."""

    layer_map: str = setting("as", "mixer of every layer, a attention and s SKC; two letters stand for even and odd layers")
