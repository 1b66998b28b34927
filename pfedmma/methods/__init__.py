"""The compared methods. A method is a small value; see `pfedmma.methods.base.Method` for its face."""

from __future__ import annotations

from dataclasses import dataclass

from pfedmma import checks
from pfedmma.adapters.multimodal import ACTIVATIONS
from pfedmma.clip.backbone import Backbone
from pfedmma.methods.adapters import PRESETS, MultiModalAdapters
from pfedmma.methods.base import Method
from pfedmma.methods.zeroshot import ZeroShot

NAMES = ("zeroshot", *PRESETS)


@dataclass(frozen=True)
class MethodConfig:
    """``dim``, ``scale`` (alpha), ``activation``, ``rescale``: of the adapters; ``blocks``: how many top blocks of each tower carry one.

    ``blocks`` 0 takes 8, or half of the shallower tower where that is less than 12 blocks deep.
    """

    name: str = "pfedmma"
    dim: int = 32
    scale: float = 0.001
    activation: str = "relu"
    rescale: bool = True
    blocks: int = 0

    def __post_init__(self) -> None:
        checks.one_of("name", self.name, NAMES)
        checks.at_least("dim", self.dim, 1)
        checks.at_least("scale", self.scale, 0)
        checks.one_of("activation", self.activation, ACTIVATIONS)
        checks.at_least("blocks", self.blocks, 0)


def build(config: MethodConfig, backbone: Backbone) -> Method:
    """The method that ``config`` names, on this backbone."""
    if config.name == "zeroshot":
        return ZeroShot(backbone)
    return MultiModalAdapters.preset(config, backbone)
