"""The compared methods. A method is a small value; see `pfedmma.methods.base.Method` for its face."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pfedmma.clip.backbone import Backbone
from pfedmma.methods.adapters.multimodal import ACTIVATIONS, TOWERS
from pfedmma.methods.base import Method
from pfedmma.methods.fedclip import FedCLIP, FedCLIPConfig
from pfedmma.methods.fedlora import FedLoRA, FedLoRAConfig
from pfedmma.methods.fedmaple import FedMaPLe, FedMaPLeConfig
from pfedmma.methods.fedotp import FedOTP, FedOTPConfig
from pfedmma.methods.fedpgp import FedPGP, FedPGPConfig
from pfedmma.methods.pfedmma import PRESETS, MultiModalAdapters
from pfedmma.methods.pfedmoap import PFedMoAP, PFedMoAPConfig
from pfedmma.methods.promptfl import PromptFL, PromptFLConfig
from pfedmma.methods.zeroshot import ZeroShot
from pfedmma.system import checks
from pfedmma.system.errors import UserError

OTHERS: dict[str, Callable[[Any, Backbone], Method]] = {  # name -> from its own settings and the backbone
    "promptfl": PromptFL.of,
    "fedpgp": FedPGP.of,
    "fedotp": FedOTP.of,
    "fedclip": FedCLIP.of,
    "pfedmoap": PFedMoAP.of,
    "fedmaple": FedMaPLe.of,
    "fedlora": FedLoRA.of,
}
NAMES = ("zeroshot", *PRESETS, *OTHERS)
REGISTERED: dict[str, Callable[[Backbone], Method]] = {}  # methods of programs outside this package

# Published optimizers that differ from the common one (SGD, see `pfedmma.stack.optim.OptimizerConfig`): the defaults of these methods.
DEFAULTS: dict[str, dict[str, Any]] = {
    "fedclip": {"optimizer": {"name": "adam", "lr": 5e-5, "beta1": 0.9, "beta2": 0.98, "weight_decay": 0.2}},
    "pfedmoap": {"optimizer": {"lr": 2e-3}},
    "fedlora": {"optimizer": {"name": "adamw", "lr": 2e-4, "weight_decay": 1e-2}},
}


@dataclass(frozen=True)
class MethodConfig:
    """``dim``, ``scale`` (alpha), ``activation``, ``rescale``: of the adapters; ``blocks``: how many top blocks of each tower carry one.

    ``blocks`` 0 takes 8, or half of the shallower tower where that is less than 12 blocks deep. ``towers`` with adapters: ``both``,
    ``visual`` or ``text``. ``exchange``: what of the adapters travels: ``none``, ``all``, or parts joined by "+" out of ``shared``,
    ``visual.down``, ``visual.up``, ``text.down``, ``text.up``; empty for what ``name`` says. Other methods have sections of their own.
    """

    name: str = "pfedmma"
    dim: int = 32
    scale: float = 0.001
    activation: str = "relu"
    rescale: bool = True
    blocks: int = 0
    towers: str = "both"
    exchange: str = ""
    promptfl: PromptFLConfig = field(default_factory=PromptFLConfig)
    fedpgp: FedPGPConfig = field(default_factory=FedPGPConfig)
    fedotp: FedOTPConfig = field(default_factory=FedOTPConfig)
    fedclip: FedCLIPConfig = field(default_factory=FedCLIPConfig)
    pfedmoap: PFedMoAPConfig = field(default_factory=PFedMoAPConfig)
    fedmaple: FedMaPLeConfig = field(default_factory=FedMaPLeConfig)
    fedlora: FedLoRAConfig = field(default_factory=FedLoRAConfig)

    def __post_init__(self) -> None:
        checks.one_of("name", self.name, (*NAMES, *REGISTERED))
        checks.between("dim", self.dim, 1, 4096)
        checks.at_least("scale", self.scale, 0)
        checks.one_of("activation", self.activation, ACTIVATIONS)
        checks.at_least("blocks", self.blocks, 0)
        checks.one_of("towers", self.towers, ("both", *TOWERS))
        if self.name not in PRESETS and self.exchange:
            raise UserError(f"exchange: chooses what of the adapters travels; {self.name} says itself what does")


def build(config: MethodConfig, backbone: Backbone) -> Method:
    """The method that ``config`` names, on this backbone."""
    if config.name == "zeroshot":
        return ZeroShot(backbone)
    if config.name in PRESETS:
        return MultiModalAdapters.preset(config, backbone)
    if config.name in REGISTERED:
        return REGISTERED[config.name](backbone)
    return OTHERS[config.name](getattr(config, config.name), backbone)


def register(name: str, build: Callable[[Backbone], Method], optimizer: Mapping[str, Any] | None = None) -> None:
    """Make a method of your own known as ``method.name=<name>`` in this process, before its ``main`` reads the settings.

    Args:
        build: the method on a frozen backbone; a subclass of `Method` without fields of its own is one.
        optimizer: its defaults for the settings ``optimizer.*``.

    Raises:
        UserError: the name is one of the methods here.
    """
    if name in NAMES:
        raise UserError(f"'{name}' is a method of pfedmma; register your own under another name")
    REGISTERED[name] = build
    DEFAULTS[name] = {"optimizer": dict(optimizer or {})}
