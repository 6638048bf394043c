"""`hybrid`: the backbone with attention in some blocks and a Koopman state in the others, as the layer map says."""

from dataclasses import dataclass

from trit.layers.attention import AttentionConfig
from trit.layers.backbone import BackboneConfig, check_settings, forward, param_specs, readout
from trit.layers.koopman import KoopmanConfig
from trit.setting import setting

__all__ = ["ArchConfig", "check_settings", "forward", "param_specs", "readout"]


@dataclass(frozen=True)
class ArchConfig(KoopmanConfig, AttentionConfig, BackboneConfig):
    """Settings of the backbone, of both mixers and of their order."""

    layer_map: str = setting("ak", "mixer of every layer, a attention and k Koopman; two letters stand for even and odd layers")
