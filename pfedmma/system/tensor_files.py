"""Safetensors files that someone else may have written: their tensors, and whether these are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pfedmma.system.errors import UserError

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def open_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata. Raises OSError or SafetensorError."""
    try:
        with safe_open(Path(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118, it is no dict
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:  # of a dtype or shape that torch has not
        raise SafetensorError(str(error)) from None


def require_numbers(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise a `UserError` unless every tensor is of finite floating-point numbers."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise UserError(f"{path}: tensor '{name[:60]}' is of {tensor.dtype}; weights are float32, float64, float16 or bfloat16")
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{path}: tensor '{name[:60]}' holds values that are not finite; a trained client has none")
