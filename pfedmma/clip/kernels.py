"""Triton kernels for what a frozen block does to each number: quick GELU, and layer norm with the rounding behind it.

torch's own take several passes over memory. Importing this needs triton, which comes with torch's CUDA build; `pfedmma.clip.pointwise` does
so where it is there, and holds the same in plain torch.

Shape legend: M rows (sequences x tokens), W width.
"""

from __future__ import annotations

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
def _layer_norm(x_ptr, weight_ptr, bias_ptr, y_ptr, width, eps, block: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64) * width, tl.arange(0, block)
    there = column < width
    x = tl.load(x_ptr + row + column, mask=there, other=0.0)
    apart = tl.where(there, x - tl.sum(x, axis=0) / width, 0.0)
    scaled = apart / tl.sqrt(tl.sum(apart * apart, axis=0) / width + eps)
    weight = tl.load(weight_ptr + column, mask=there, other=0.0)
    bias = tl.load(bias_ptr + column, mask=there, other=0.0)
    tl.store(y_ptr + row + column, (scaled * weight + bias).to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _layer_norm_backward(grad_ptr, x_ptr, weight_ptr, out_ptr, width, eps, block: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64) * width, tl.arange(0, block)
    there = column < width
    x = tl.load(x_ptr + row + column, mask=there, other=0.0)
    apart = tl.where(there, x - tl.sum(x, axis=0) / width, 0.0)
    spread = tl.sqrt(tl.sum(apart * apart, axis=0) / width + eps)
    scaled = apart / spread
    grad = tl.load(grad_ptr + row + column, mask=there, other=0.0).to(tl.float32)
    grad *= tl.load(weight_ptr + column, mask=there, other=0.0)
    along, mean = tl.sum(grad * scaled, axis=0) / width, tl.sum(grad, axis=0) / width
    tl.store(out_ptr + row + column, (grad - scaled * along - mean) / spread, mask=there)


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


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Layer norm of [...,W] over its last axis, all in fp32, rounded to ``dtype``."""
    x, width = x.contiguous(), x.shape[-1]
    out = torch.empty_like(x, dtype=dtype)
    _layer_norm[(x.numel() // width,)](x, weight, bias, out, width, eps, triton.next_power_of_2(width))
    return out


def layer_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The gradient of ``x`` [...,W] of `layer_norm`, in fp32; mean and spread are computed anew, as each row is read anyway."""
    grad, x, width = grad.contiguous(), x.contiguous(), x.shape[-1]
    out = torch.empty_like(x)
    _layer_norm_backward[(x.numel() // width,)](grad, x, weight, out, width, eps, triton.next_power_of_2(width))
    return out
