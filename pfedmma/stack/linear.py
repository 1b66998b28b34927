"""Linear layers on the client axis. A named one is ``<name>.weight`` [out,in] and ``<name>.bias`` [out] in a client's state.

Shape legend: C clients, M or N rows of one client, W numbers of a row, H heads of an attention.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pfedmma.stack.rules import State


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each client's own linear layer: [C,M,in], [C,out,in], [C,out] -> [C,M,out]."""
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


def kaiming_normal_fan_out(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A linear weight [out, in] with variance 2 / out (He et al. 2015, fan_out, relu gain)."""
    return torch.randn(shape, generator=generator) * math.sqrt(2.0 / shape[0])


def linear_shapes(name: str, width: int, out: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a named layer's two tensors."""
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def uniform_within(bound: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers between -``bound`` and ``bound``."""
    return (2.0 * torch.rand(shape, generator=generator) - 1.0) * bound


def initial_weight(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A weight [out,in] as ``torch.nn.Linear`` starts: uniform within 1 / sqrt(in)."""
    return uniform_within(1.0 / math.sqrt(shape[-1]), shape, generator)


def initial_linear(name: str, width: int, out: int, generator: torch.Generator) -> dict[str, Tensor]:
    """As ``torch.nn.Linear`` starts: weight and bias uniform within 1 / sqrt(width)."""
    bound = 1.0 / math.sqrt(width)
    return {key: uniform_within(bound, shape, generator) for key, shape in linear_shapes(name, width, out).items()}


def apply_linear(state: State, name: str, x: Tensor) -> Tensor:
    """Each client's own layer: [C,N,in] -> [C,N,out]."""
    return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def by_head(x: Tensor, heads: int) -> Tensor:
    """[C,N,W] -> [C,H,N,W/H]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
