"""What is counted while work runs: operations of matrix products and attention, and the bytes that are kept for gradients.

From shapes alone, so the meta device serves as well as a real one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counted(NamedTuple):
    """``flop``: two a multiply-add. ``kept_bytes``: what was made and then kept for gradients; frozen weights and inputs are not made."""

    flop: int
    kept_bytes: int


def count(work: Callable[[], object]) -> Counted:
    """What ``work`` executes and keeps."""
    with _Counter() as counter, torch.autograd.graph.saved_tensors_hooks(counter.keep, lambda tensor: tensor):
        work()
    return Counted(counter.flop, sum(counter.kept.values()))


class _Counter(TorchDispatchMode):
    """``made`` keeps every result alive, so that no two of them lie at one address."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0
        self.made: dict[int, Tensor] = {}
        self.kept: dict[int, int] = {}  # storage -> its bytes

    def keep(self, tensor: Tensor) -> Tensor:
        """A tensor that autograd keeps."""
        storage = tensor.untyped_storage()
        if storage._cdata in self.made:
            self.kept[storage._cdata] = storage.nbytes()
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        self.flop += flops(func.overloadpacket.__name__, (*args, *(kwargs or {}).values()), result)
        if not any(out.alias_info is not None for out in func._schema.returns):  # no view, and nothing written in place
            self.made |= {out.untyped_storage()._cdata: out for out in tree_leaves(result) if isinstance(out, Tensor)}
        return result


def flops(name: str, args: Sequence[Any], result: Any) -> int:
    """Operations of a matrix product or of attention, by the name of the aten operator and all it was given; 0 for all others."""
    if name in ("mm", "bmm", "linear"):
        return 2 * result.numel() * args[0].shape[-1]
    if name in ("addmm", "baddbmm"):
        return 2 * result.numel() * args[1].shape[-1]
    if name == "convolution":
        return 2 * result.numel() * args[1][0].numel()
    if "scaled_dot_product" not in name:
        return 0
    back = "backward" in name
    q, k = args[back : back + 2]
    return (10 if back else 4) * q.numel() * k.shape[-2]  # five products of that size, or two
