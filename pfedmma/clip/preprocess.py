"""How a backbone wants its pixels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocess:
    """How pixels are made for this backbone: side in pixels, then (x / 255 - mean) / std per channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"  # or "squash"
