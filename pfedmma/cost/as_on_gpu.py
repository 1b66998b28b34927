"""Tensors of the meta device, computed with the operators that torch would call for them on a GPU.

The meta device has shapes and no numbers, so a model of any size runs on it within seconds. Three things depend on the device above the
operators, and none is known to it: what autocast rounds, which kernel attention is, and where `pfedmma.clip.kernels` stand in. They are
taken here as on a GPU: autocast by torch's list for CUDA, as far as methods here call what is on it; attention by its flash kernel in half
precision, and by its memory-efficient one in fp32 or under a mask; and each of our kernels as one operator of its name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from pfedmma.clip import pointwise

HALF = (torch.bfloat16, torch.float16)
# Of https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to float16" and "... to float32".
ROUNDED = {"__matmul__", "addmm", "baddbmm", "bmm", "conv2d", "einsum", "linear", "matmul", "mm", "scaled_dot_product_attention"}
IN_FP32 = {
    "cdist",
    "cosine_similarity",
    "cross_entropy",
    "cumsum",
    "exp",
    "layer_norm",
    "log",
    "log_softmax",
    "logsumexp",
    "norm",
    "pow",
    "softmax",
    "sum",
}
IS_CUDA = torch.Tensor.is_cuda.__get__  # type: ignore[attr-defined]  # what `Tensor.is_cuda` comes as
ALIGNED = 16  # columns of a mask that the memory-efficient kernel wants side by side


_KERNELS = torch.library.Library("pfedmma_on_gpu", "DEF")
for _signature, _like in (
    ("quick_gelu(Tensor x) -> Tensor", lambda x: torch.empty_like(x)),
    ("quick_gelu_backward(Tensor grad, Tensor x) -> Tensor", lambda grad, x: torch.empty_like(x)),
    (
        "layer_norm(Tensor x, Tensor weight, Tensor bias, ScalarType dtype) -> Tensor",
        lambda x, w, b, dtype: torch.empty_like(x, dtype=dtype),
    ),
    (
        "add_layer_norm(Tensor x, Tensor[] terms, Tensor weight, Tensor bias, ScalarType dtype) -> (Tensor, Tensor)",
        lambda x, terms, w, b, dtype: (torch.empty_like(x), torch.empty_like(x, dtype=dtype)),
    ),
    (
        "add_layer_norm_backward(Tensor? on, Tensor grad, Tensor total, Tensor weight, ScalarType? low) -> Tensor[]",
        lambda on, grad, total, w, low: [torch.empty_like(total, dtype=dtype) for dtype in (total.dtype, low) if dtype is not None],
    ),
):
    _KERNELS.define(_signature)
    _KERNELS.impl(_signature.partition("(")[0], _like, "Meta")


class OneOperatorEach:
    """In place of `pfedmma.clip.kernels`, for meta tensors."""

    @staticmethod
    def quick_gelu(x: Tensor) -> Tensor:
        return torch.ops.pfedmma_on_gpu.quick_gelu(x.contiguous())

    @staticmethod
    def quick_gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
        return torch.ops.pfedmma_on_gpu.quick_gelu_backward(grad.contiguous(), x.contiguous())

    @staticmethod
    def add_norm(x: Tensor, terms: Sequence[Tensor], weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if not terms:
            return x, torch.ops.pfedmma_on_gpu.layer_norm(x.contiguous(), weight, bias, dtype)
        return torch.ops.pfedmma_on_gpu.add_layer_norm(x.contiguous(), [term.contiguous() for term in terms], weight, bias, dtype)

    @staticmethod
    def add_norm_backward(
        on: Tensor | None, grad: Tensor, total: Tensor, weight: Tensor, eps: float, low: torch.dtype | None
    ) -> tuple[Tensor, Tensor | None]:
        on = None if on is None else on.contiguous()
        found = torch.ops.pfedmma_on_gpu.add_layer_norm_backward(on, grad.contiguous(), total, weight, low)
        return found[0], found[1] if low is not None else None


@contextlib.contextmanager
def as_on_gpu(fused: bool = True) -> Iterator[None]:
    """Meta tensors are computed as on a GPU inside; not ``fused``: without our own kernels, by torch's operators.

    A backbone belongs to the block in which it was made.
    """
    rules, plain = _Rules(fused), torch.autocast
    with contextlib.ExitStack() as patches:
        if fused:
            patches.enter_context(mock.patch.object(pointwise, "fused", lambda device: device.type == "meta"))
            patches.enter_context(mock.patch.object(pointwise, "kernels", OneOperatorEach))
        else:
            patches.enter_context(mock.patch.object(pointwise, "activation", lambda module: module))
        patches.enter_context(mock.patch.object(torch, "autocast", rules.autocast_of(plain)))
        patches.enter_context(rules)
        yield


class _Rules(TorchFunctionMode):
    """Rounds as autocast does, and chooses kernels. ``rounding``: autocast's type, None outside of it."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.rounding: torch.dtype | None = None
        self.depth = 0
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}  # low-precision copies of trained tensors, until autocast is left

    def autocast_of(self, plain: Any) -> Any:
        """In place of `torch.autocast`, which is ``plain`` and knows no meta device."""

        def autocast(device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, **more: Any) -> Any:
            return self.autocast(dtype if enabled else None) if device_type == "meta" else plain(device_type, dtype, enabled, **more)

        return autocast

    @contextlib.contextmanager
    def autocast(self, dtype: torch.dtype | None) -> Iterator[None]:
        outer, self.rounding = self.rounding, dtype
        self.depth += 1
        try:
            yield
        finally:
            self.rounding = outer
            self.depth -= 1
            if self.depth == 0:
                self.kept.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if func == IS_CUDA:
            return (self.fused and args[0].is_meta) or func(*args)
        if self.rounding is not None and name in ROUNDED | IN_FP32:
            wanted = self.rounding if name in ROUNDED else torch.float32
            args, kwargs = tree_map(lambda x: self._cast(x, wanted), (args, kwargs))
        if name == "scaled_dot_product_attention" and args[0].is_meta:
            return attention(*args, **kwargs)
        if name == "unique" and args[0].is_meta:  # which rows are alike nobody can say: as if none were
            return args[0], torch.arange(len(args[0]), device="meta")
        if name == "cpu" and args[0].is_meta:  # what is read back
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        return func(*args, **kwargs)

    def _cast(self, x: Any, dtype: torch.dtype) -> Any:
        if not isinstance(x, Tensor) or not x.is_meta or x.dtype == dtype or x.dtype not in (*HALF, torch.float32):
            return x
        if not (x.is_leaf and x.requires_grad and dtype in HALF):
            return x.to(dtype)
        if id(x) not in self.kept:
            self.kept[id(x)] = x, x.to(dtype)
        return self.kept[id(x)][1]


def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False) -> Tensor:
    """`F.scaled_dot_product_attention` of meta tensors [N,H,T,width] by the kernel that a GPU would take; ``attn_mask`` True where seen."""
    assert dropout_p == 0.0
    if attn_mask is None and q.dtype in HALF:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[0]
    bias = None
    if attn_mask is not None:
        bias = torch.where(attn_mask, torch.zeros((), dtype=q.dtype, device=q.device), -torch.inf)
        tokens = k.shape[-2]
        bias = F.pad(bias, (0, -tokens % ALIGNED))[..., :tokens].expand(*q.shape[:-1], tokens)
    grads = any(t.requires_grad for t in (q, k, v))
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, grads, 0.0, is_causal)[0]
