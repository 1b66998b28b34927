"""Triton kernels for what a frozen block does to each number: quick GELU, and what is added before a layer norm with the norm.

torch's own take several passes over memory. Importing this needs triton, which comes with torch's CUDA build; `pfedmma.clip.pointwise` does
so where it is there, and holds the same in plain torch.

Shape legend: M rows (sequences x tokens), W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

SLOPE = 1.702  # of quick GELU: x sigmoid(1.702 x)
BLOCK = 1024  # numbers a program of the element-wise kernels


@triton.jit
def _quick_gelu(x_ptr, y_ptr, count, slope: tl.constexpr, block: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    there = at < count
    x = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    y = x / (1.0 + tl.exp(-slope * x))
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _quick_gelu_backward(grad_ptr, x_ptr, out_ptr, count, slope: tl.constexpr, block: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    there = at < count
    x = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + at, mask=there, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-slope * x))
    tl.store(out_ptr + at, (grad * s * (1.0 + slope * x * (1.0 - s))).to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _add_norm(x_ptr, a_ptr, b_ptr, sum_ptr, weight_ptr, bias_ptr, y_ptr, width, eps, terms: tl.constexpr, block: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64) * width, tl.arange(0, block)
    there = column < width
    x = tl.load(x_ptr + row + column, mask=there, other=0.0)
    if terms > 0:
        x += tl.load(a_ptr + row + column, mask=there, other=0.0).to(tl.float32)
        if terms > 1:
            x += tl.load(b_ptr + row + column, mask=there, other=0.0).to(tl.float32)
        tl.store(sum_ptr + row + column, x, mask=there)
    apart = tl.where(there, x - tl.sum(x, axis=0) / width, 0.0)
    scaled = apart / tl.sqrt(tl.sum(apart * apart, axis=0) / width + eps)
    weight = tl.load(weight_ptr + column, mask=there, other=0.0)
    bias = tl.load(bias_ptr + column, mask=there, other=0.0)
    tl.store(y_ptr + row + column, (scaled * weight + bias).to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _add_norm_backward(
    on_ptr, grad_ptr, sum_ptr, weight_ptr, out_ptr, low_ptr, width, eps, on: tl.constexpr, low: tl.constexpr, block: tl.constexpr
):
    row, column = tl.program_id(0).to(tl.int64) * width, tl.arange(0, block)
    there = column < width
    x = tl.load(sum_ptr + row + column, mask=there, other=0.0)
    apart = tl.where(there, x - tl.sum(x, axis=0) / width, 0.0)
    spread = tl.sqrt(tl.sum(apart * apart, axis=0) / width + eps)
    scaled = apart / spread
    grad = tl.load(grad_ptr + row + column, mask=there, other=0.0).to(tl.float32)
    grad *= tl.load(weight_ptr + column, mask=there, other=0.0)
    along, mean = tl.sum(grad * scaled, axis=0) / width, tl.sum(grad, axis=0) / width
    out = (grad - scaled * along - mean) / spread
    if on:
        out += tl.load(on_ptr + row + column, mask=there, other=0.0)
    tl.store(out_ptr + row + column, out, mask=there)
    if low:
        tl.store(low_ptr + row + column, out.to(low_ptr.dtype.element_ty), mask=there)


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), computed in fp32, in the type of ``x``."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _quick_gelu[(triton.cdiv(x.numel(), BLOCK),)](x, out, x.numel(), SLOPE, BLOCK)
    return out


def quick_gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of what went into `quick_gelu`, from that of what came out."""
    grad, x = grad.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    _quick_gelu_backward[(triton.cdiv(x.numel(), BLOCK),)](grad, x, out, x.numel(), SLOPE, BLOCK)
    return out


def add_norm(x: Tensor, terms: Sequence[Tensor], weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``x`` [...,W] in fp32 plus at most two ``terms`` of its shape, and the layer norm of that, rounded to ``dtype``."""
    x, width = x.contiguous(), x.shape[-1]
    a, b, *_ = [*(term.contiguous() for term in terms), x, x]
    total = torch.empty_like(x) if terms else x
    out = torch.empty_like(x, dtype=dtype)
    _add_norm[(x.numel() // width,)](x, a, b, total, weight, bias, out, width, eps, len(terms), triton.next_power_of_2(width))
    return total, out


def add_norm_backward(
    on: Tensor | None, grad: Tensor, total: Tensor, weight: Tensor, eps: float, low: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """The gradient of what was summed in `add_norm`, in fp32, and rounded to ``low`` where that is asked for.

    Args:
        on: the gradient of the sum [...,W] in fp32; None for none.
        grad: that of the norm [...,W].
        total: the sum; its mean and spread are computed anew, as each row is read anyway.
    """
    grad, width = grad.contiguous(), total.shape[-1]
    out = torch.empty_like(total)
    rounded = None if low is None else torch.empty_like(total, dtype=low)
    pointers = grad if on is None else on.contiguous(), grad, total, weight, out, out if rounded is None else rounded
    flags = on is not None, rounded is not None
    _add_norm_backward[(total.numel() // width,)](*pointers, width, eps, *flags, triton.next_power_of_2(width))
    return out, rounded
