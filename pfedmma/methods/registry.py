"""The compared methods by name, and the settings of the section ``method``.

A file in this folder that ends in ``ENTRIES`` is found by itself; `register` adds a method of a program outside.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pfedmma.methods
from pfedmma.clip.backbone import Backbone
from pfedmma.methods.adapters.multimodal import ACTIVATIONS, TOWERS
from pfedmma.methods.base import Entry, Method
from pfedmma.stack.start import ALIKE, CHOICES
from pfedmma.stack.widths import shares_of
from pfedmma.system import checks
from pfedmma.system.errors import UserError
from pfedmma.system.options import Open, setting, shown

_MODULES = [info.name for info in pkgutil.iter_modules(pfedmma.methods.__path__) if info.name != "registry"]
BUILT_IN: Mapping[str, Entry] = {
    entry.name: entry for name in _MODULES for entry in getattr(importlib.import_module(f"pfedmma.methods.{name}"), "ENTRIES", ())
}
NAMES = tuple(BUILT_IN)
REGISTERED: dict[str, Entry] = {}  # methods of programs outside this package


def entry_of(name: str) -> Entry:
    """The entry of a method. Raises a `UserError` that names all there are."""
    known = {**BUILT_IN, **REGISTERED}
    checks.one_of("name", name, known)
    return known[name]


@dataclass(frozen=True)
class MethodConfig(Open):
    """The method and its adapters; a method without adapters has a section of its own.

    ``own``: the settings of that section, None where there is none.
    """

    name: str = setting("pfedmma", "the method: pfedmma, local, fedavg_mma, zeroshot, one with a section below, or a registered one")
    dim: int = setting(32, "width r of an adapter")
    dims: tuple[str, ...] = setting(
        (),
        "widths of adapters where clients differ, each with its share of them, as {8: 0.5, 32: 0.5} or 8:0.5,32:0.5; empty: all have dim",
    )
    scale: float = setting(0.001, "factor alpha of an adapter's output")
    activation: str = setting("relu", "activation of an adapter: relu or gelu")
    rescale: bool = setting(True, "gradients of an adapter's weights as if alpha were 1, as in the released code; false: as in the paper")
    blocks: int = setting(0, "adapted blocks of each tower, from the top; 0: 8, or half of the shallower tower where it has less than 12")
    towers: str = setting("both", "towers that have adapters: both, visual or text")
    exchange: tuple[str, ...] = setting(
        (), "parts of the adapters that travel: none, all, or a list of parts such as shared, visual.down; empty: as the method says"
    )
    freeze: tuple[str, ...] = setting(
        (), "parts of the adapters that stay as they begin, neither trained nor sent, the same for all: a list as in exchange"
    )
    shared_scale: float = setting(1.0, "factor of the weights with which the shared projection S of the adapters begins")
    shared_lr: float = setting(0.0, "learning rate of the shared projection S of the adapters; 0: optimizer.lr")
    private_init: str = setting(
        ALIKE,
        "how private tensors begin: shared (alike in all clients) or own (drawn for each by the seed); without effect if there are none",
    )
    own: Any = None

    def __post_init__(self) -> None:
        entry = entry_of(self.name)
        checks.between("dim", self.dim, 1, 4096)
        shares = shares_of(self.dims)
        if shares and self.dim not in (MethodConfig.dim, max(shares)):
            raise UserError(f"dims: the widest is {max(shares)}, and dim is {self.dim}; leave dim out")
        checks.at_least("scale", self.scale, 0)
        checks.one_of("activation", self.activation, ACTIVATIONS)
        checks.at_least("blocks", self.blocks, 0)
        checks.one_of("towers", self.towers, ("both", *TOWERS))
        if self.exchange and not entry.adapters:
            raise UserError(f"exchange: chooses what of the adapters travels; {self.name} says itself what does")
        checks.positive("shared_scale", self.shared_scale)
        checks.at_least("shared_lr", self.shared_lr, 0)
        checks.one_of("private_init", self.private_init, CHOICES)
        if not entry.adapters:
            self._refuse("dims", "freeze", "shared_scale", "shared_lr")
        if self.own is None and entry.settings is not None:
            object.__setattr__(self, "own", entry.settings())
        assert type(self.own) is (entry.settings or type(None)), f"own: settings of {self.name} are wanted"

    def _refuse(self, *names: str) -> None:
        """Raise a `UserError` if one of these settings of the adapters says something, in a method that has none."""
        for name in names:
            if getattr(self, name) != getattr(MethodConfig, name):
                raise UserError(f"{name}: is about the adapters, which {self.name} does not have; leave it out, or choose another method")

    @property
    def shares(self) -> dict[int, float]:
        """The share of clients of each width, where they are not all as wide; else nothing."""
        return shares_of(self.dims)

    @property
    def widest(self) -> int:
        """Width of the widest client's adapters."""
        return max(self.shares, default=self.dim)

    @classmethod
    def sections(cls) -> dict[str, type]:
        return {name: entry.settings for name, entry in {**BUILT_IN, **REGISTERED}.items() if entry.settings is not None}

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> MethodConfig:
        """The sections of other methods are checked by then, and say nothing about this run."""
        own = values.get(values.get("name", cls.name))
        return cls(**{name: value for name, value in values.items() if name not in cls.sections()}, own=own)

    def section_in_use(self) -> str:
        return self.name


def build(config: MethodConfig, backbone: Backbone) -> Method:
    """The method that ``config`` names, on this backbone."""
    return entry_of(config.name).build(config if config.own is None else config.own, backbone)


def register(
    name: str,
    build: Callable[..., Method],
    optimizer: Mapping[str, Any] | None = None,
    settings: type | None = None,
    adapters: bool = False,
    trains: bool = True,
) -> None:
    """Make a method of your own known as ``method.name=<name>``: in a file that the setting ``plugins`` names, or before ``train.main``.

    Args:
        build: the method on a frozen backbone, or of its settings and a backbone where it has ``settings`` or ``adapters``; a subclass of
            `Method` without fields of its own is one.
        optimizer: its defaults for the settings ``optimizer.*``.
        settings: a dataclass of its settings, all with defaults, which become ``method.<name>.*``; see `pfedmma.system.options.setting`.
        adapters: what it trains are multi-modal adapters with the settings of the section ``method``, and exported as an adapter file.
        trains: False for a method that trains nothing.

    Raises:
        UserError: the name is one of the methods here, of another plugin, or of the settings of `MethodConfig`, or cannot be written in a
            setting; ``settings`` are no dataclass with a default for each field.
    """
    if name in BUILT_IN:
        raise UserError(f"'{name}' is a method of pfedmma; register your own under another name")
    if name in {item.name for item in dataclasses.fields(MethodConfig)}:
        raise UserError(f"'{name}' has a meaning of its own in the section method; register your method under another name")
    if not re.fullmatch(r"[\w-]+", name):
        raise UserError(f"'{shown(name)}' is no name for a method; use letters, digits, _ and - alone")
    if settings is not None and not _has_defaults(settings):
        raise UserError(f"the settings of '{name}' must be a dataclass in which each field has a default")
    if name in REGISTERED and REGISTERED[name].origin != _origin(build):
        raise UserError(
            f"'{name}' is registered twice, by {REGISTERED[name].origin} and by {_origin(build)}; give one of them another name"
        )
    whole = build if settings is not None or adapters else lambda _, backbone: build(backbone)
    REGISTERED[name] = Entry(name, whole, settings, dict(optimizer or {}), adapters, trains, _origin(build))


def _has_defaults(settings: type) -> bool:
    none = dataclasses.MISSING
    fields = dataclasses.fields(settings) if dataclasses.is_dataclass(settings) else None
    return fields is not None and all((item.default, item.default_factory) != (none, none) for item in fields)


def _origin(build: Callable[..., Method]) -> str:
    """The file that a method comes from; the same method registered again from there, as in a notebook, takes the place of the first."""
    file = getattr(sys.modules.get(getattr(build, "__module__", "")), "__file__", None)
    return os.path.realpath(file) if file else "the program itself"
