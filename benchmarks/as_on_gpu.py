"""Tensors of the meta device, computed with the operators that torch would call for them on a GPU.

The meta device has shapes and no numbers, so a model of any size runs on it within seconds. Two things depend on the device above the
operators, and neither is known to it: what autocast rounds, and which kernel attention is. Both are taken here as on a GPU: autocast by
torch's list for CUDA, as far as methods here call what is on it; attention by its flash kernel in half precision, and by its
memory-efficient one in fp32 or under a mask. cuDNN's kernel, which some versions of torch prefer, is not taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

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
ALIGNED = 16  # columns of a mask that the memory-efficient kernel wants side by side


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Meta tensors are computed as on a GPU inside."""
    rules, plain = _Rules(), torch.autocast

    def autocast(device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, **more: Any) -> Any:
        return rules.autocast(dtype if enabled else None) if device_type == "meta" else plain(device_type, dtype, enabled, **more)

    with rules, mock.patch.object(torch, "autocast", autocast):
        yield


class _Rules(TorchFunctionMode):
    """Rounds as autocast does, and chooses the kernel of attention. ``rounding``: autocast's type, None outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.rounding: torch.dtype | None = None
        self.depth = 0
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}  # low-precision copies of trained tensors, until autocast is left

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
        if self.rounding is not None and name in ROUNDED | IN_FP32:
            wanted = self.rounding if name in ROUNDED else torch.float32
            args, kwargs = tree_map(lambda x: self._cast(x, wanted), (args, kwargs))
        if name == "scaled_dot_product_attention" and args[0].is_meta:
            return attention(*args, **kwargs)
        if name == "unique" and args[0].is_meta:  # which rows are alike nobody can say: as if none were
            return args[0], torch.arange(len(args[0]), device="meta")
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
