"""A named linear layer in a client's state: ``<name>.weight`` [out,in] and ``<name>.bias`` [out]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pfedmma.methods.base import State
from pfedmma.stack.linear import linear


def linear_shapes(name: str, width: int, out: int) -> dict[str, tuple[int, ...]]:
    """The shapes of its two tensors."""
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def initial_linear(name: str, width: int, out: int, generator: torch.Generator) -> dict[str, Tensor]:
    """As ``torch.nn.Linear`` starts: weight and bias uniform within 1 / sqrt(width)."""
    bound = 1.0 / math.sqrt(width)
    return {key: (2.0 * torch.rand(shape, generator=generator) - 1.0) * bound for key, shape in linear_shapes(name, width, out).items()}


def apply_linear(state: State, name: str, x: Tensor) -> Tensor:
    """Each client's own layer: [C,N,in] -> [C,N,out]."""
    return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
