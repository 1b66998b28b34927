"""What a frozen block does to each number between its matrix products: the activation, and sums with the layer norm behind them.

On a GPU such steps cost the memory that they move. Quick GELU written with torch's functions is three kernels forward and five backward;
here it keeps its input alone, and Triton (`pfedmma.clip.kernels`) makes one kernel of each direction. The results are those of torch's
functions up to rounding. On a CPU, and where torch.compile traces and fuses by itself, they are torch's functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
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


def add_norm(x: Tensor, terms: Sequence[Tensor], weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``x`` [...,W] plus ``terms`` one after another, and the layer norm of that over its last axis in fp32, rounded to ``dtype``.

    No gradient for ``weight`` and ``bias`` [W].
    """
    if fusible(x, terms, dtype):
        return AddedNorm.apply(weight, bias, eps, dtype, x, *terms)
    for term in terms:
        x = x + term
    return x, F.layer_norm(x, weight.shape, weight, bias, eps).to(dtype)


def fusible(x: Tensor, terms: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether `AddedNorm` does it: on a GPU, where there is something to round and nobody traces."""
    rounds = dtype != torch.float32 and x.dtype == torch.float32
    alike = len(terms) <= 2 and all(term.shape == x.shape for term in terms)
    return rounds and alike and x.is_cuda and not torch.compiler.is_compiling() and fused(x.device)


class AddedNorm(torch.autograd.Function):
    """`add_norm` in one kernel of each direction; keeps nothing but the sum. By Triton alone."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype, x: Tensor, *terms: Tensor) -> tuple[Tensor, Tensor]:
        total, normed = kernels.add_norm(x, terms, weight, bias, eps, dtype)
        ctx.save_for_backward(total, weight)
        ctx.eps, ctx.types = eps, [term.dtype for term in terms]
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    def backward(ctx, on: Tensor | None, grad: Tensor | None):
        total, weight = ctx.saved_tensors
        low = next((dtype for dtype in ctx.types if dtype != torch.float32), None)
        if grad is None:
            whole, rounded = on, None if on is None or low is None else on.to(low)
        else:
            whole, rounded = kernels.add_norm_backward(on, grad, total, weight, ctx.eps, low)
        return None, None, None, None, whole, *(whole if dtype == torch.float32 else rounded for dtype in ctx.types)


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
    pairs = [
        (kernels.quick_gelu(x), x * s),
        (kernels.quick_gelu_backward(one, x), s + SLOPE * x * s * (1.0 - s)),
        *_norms(x, weight, bias, eps),
    ]
    return all(torch.allclose(got, wanted, rtol=1e-4, atol=1e-4) for got, wanted in pairs)


def _norms(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Iterator[tuple[Tensor, Tensor]]:
    """What the kernels make of norms of ``x`` [M,W], its half added or nothing, and of the way back; and what torch does."""
    for terms in ([], [0.5 * x]):
        total, shape = sum(terms, x), list(weight.shape)
        wanted, mean, rstd = torch.native_layer_norm(total, shape, weight, bias, eps)
        got = kernels.add_norm(x, terms, weight, bias, eps, torch.float32)
        yield from zip(got, (total, wanted), strict=True)
        back = torch.ops.aten.native_layer_norm_backward(x, total, shape, mean, rstd, weight, bias, [True, False, False])[0]
        whole, low = kernels.add_norm_backward(x, x, total, weight, eps, torch.float32)
        yield from ((whole, back + x), (low, back + x))
