"""What takes long to import is imported by who uses it: help, a report, a list of runs, or ``import pfedmma`` needs none of it."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class Library:
    """The module ``name``, imported when something of it is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


class Called(ModuleType):
    """A module that is also a function of `pfedmma.api`, of its own name: ``pfedmma.run(...)``, although ``pfedmma.run`` is a room."""

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return getattr(importlib.import_module("pfedmma.api"), self.__name__.rpartition(".")[2])(*args, **keywords)


def make_callable(name: str) -> None:
    """Make the imported module ``name`` a `Called` one."""
    sys.modules[name].__class__ = Called
