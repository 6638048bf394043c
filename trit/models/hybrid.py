"""`hybrid`: the backbone with attention, a Koopman state or an SKC mixer in every block, as the layer map says."""

from dataclasses import dataclass

from trit.layers.attention import AttentionConfig
from trit.layers.backbone import BackboneConfig, carry_shapes, forward, param_specs, readout
from trit.layers.koopman import KoopmanConfig
from trit.layers.skc import SkcConfig
from trit.setting import setting

__all__ = ["ArchConfig", "carry_shapes", "forward", "param_specs", "readout"]


@dataclass(frozen=True)
class ArchConfig(SkcConfig, KoopmanConfig, AttentionConfig, BackboneConfig):
    """Settings of the backbone, of its mixers and of their order."""

    layer_map: str = setting("ak", "mixer of every layer, a attention, k Koopman, s SKC; two letters stand for even and odd layers")
