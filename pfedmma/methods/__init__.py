"""The compared methods, one file each; `pfedmma.methods.registry` knows them by name."""

from __future__ import annotations

from typing import Any

__all__ = ["register"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: a part of a method does not need all methods.
    if name == "register":
        from pfedmma.methods.registry import register

        return register
    raise AttributeError(f"module 'pfedmma.methods' has no attribute '{name}'")
