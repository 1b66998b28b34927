"""Libraries that take long to import, imported by what uses them: help, a report or a list of runs needs none of them."""

from __future__ import annotations

import importlib
from typing import Any


class Library:
    """The module ``name``, imported when something of it is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
