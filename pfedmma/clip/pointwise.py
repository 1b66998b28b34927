"""What a frozen block does to each number between its matrix products: the activation, and layer norm with the rounding behind it.

On a GPU such steps cost the memory that they move. Quick GELU written with torch's functions is three kernels forward and five backward;
here it keeps its input alone, and Triton (`pfedmma.clip.kernels`) makes one kernel of each direction. The results are those of torch's
functions up to rounding. On a CPU, and where torch.compile traces and fuses by itself, they are torch's functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip.activation import QUICK_GELU, of_module
from pfedmma.system.console import warn
from pfedmma.system.lazy import Library

kernels = Library("pfedmma.clip.kernels")
SLOPE = 1.702  # of quick GELU


def activation(module: Any) -> Callable[[Tensor], Tensor]:
    """The activation of a block, from the module that open_clip has for it."""
    return quick_gelu if of_module(module) == QUICK_GELU else module


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x)."""
    return QuickGelu.apply(x) if x.is_cuda and not torch.compiler.is_compiling() else x * torch.sigmoid(SLOPE * x)


class QuickGelu(torch.autograd.Function):
    """`quick_gelu` that keeps nothing but its input for the way back."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return kernels.quick_gelu(x) if fused(x.device) else x * torch.sigmoid(SLOPE * x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if fused(x.device):
            return kernels.quick_gelu_backward(grad, x)
        s = torch.sigmoid(SLOPE * x)  # as autograd does it
        return grad * s + torch.ops.aten.sigmoid_backward(grad * x, s) * SLOPE


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Layer norm of [...,W] over its last axis in fp32, rounded to ``dtype``; no gradient for ``weight`` and ``bias`` [W]."""
    rounds = dtype != torch.float32 and x.dtype == torch.float32
    if rounds and x.is_cuda and not torch.compiler.is_compiling() and fused(x.device):
        return RoundedNorm.apply(x, weight, bias, eps, dtype)
    return F.layer_norm(x, weight.shape, weight, bias, eps).to(dtype)


class RoundedNorm(torch.autograd.Function):
    """Layer norm in fp32 whose result is written in low precision at once; keeps nothing but its input. By Triton alone."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return kernels.layer_norm(x, weight, bias, eps, dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        return kernels.layer_norm_backward(grad, x, weight, ctx.eps), None, None, None, None


@functools.cache
def fused(device: torch.device) -> bool:
    """Whether Triton's kernels compute on ``device`` what torch does, tried once on a few numbers; False with a warning where not."""
    if device.type != "cuda":
        return False
    try:
        return _as_torch(device)
    except Exception as error:  # no triton, no compiler for it, a GPU that it does not know: each has errors of its own
        reason = str(error).partition("\n")[0][:200]
        warn(f"fused kernels cannot be had on {device} ({type(error).__name__}: {reason}); torch's own are slower")
        return False


@torch.no_grad()
def _as_torch(device: torch.device) -> bool:
    """Whether `pfedmma.clip.kernels` gives what torch does."""
    x = torch.linspace(-4.0, 4.0, 96, device=device).view(2, 48)
    one, s = torch.ones_like(x), torch.sigmoid(SLOPE * x)
    weight, bias, eps = one[0] + 0.5, one[0], 1e-5
    _, mean, rstd = torch.native_layer_norm(x, [48], weight, bias, eps)
    gradient = torch.ops.aten.native_layer_norm_backward(x, x, [48], mean, rstd, weight, bias, [True, False, False])[0]
    pairs = [
        (kernels.quick_gelu(x), x * s),
        (kernels.quick_gelu_backward(one, x), s + SLOPE * x * s * (1.0 - s)),
        (kernels.layer_norm(x, weight, bias, eps, torch.float32), F.layer_norm(x, (48,), weight, bias, eps)),
        (kernels.layer_norm_backward(x, x, weight, eps), gradient),
    ]
    return all(torch.allclose(got, wanted, rtol=1e-4, atol=1e-4) for got, wanted in pairs)
