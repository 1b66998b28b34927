"""The operators that torch executes: launches, floating-point operations and bytes of each, from shapes alone.

So the meta device serves as well as a real one. Counted below autograd and autocast, as the kernels are called:

- floating-point operations are those of matrix products and attention, two a multiply-add, as they are executed: the backward pass of fused
  attention computes the scores once more. Attention under a mask is counted over all pairs of tokens.
- bytes are what an operator reads and writes if nothing is found in a cache: each input once (of a gather, the rows that it takes; of an
  expanded tensor, what lies in memory), each output once.
- launches are the kernels of torch's CUDA build; views and fresh memory have none.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pfedmma.clip.backbone import PRECISIONS
from pfedmma.cost.counting import flops
from pfedmma.stack.optim import LossScale

PRODUCTS, ATTENTION, NORMS, ACTIVATIONS, CASTS, ELEMENTWISE, COPIES, OPTIMIZER = GROUPS = (
    "products",
    "attention",
    "norms",
    "activations",
    "casts",
    "element-wise",
    "copies",
    "optimizer",
)
# Whatever runs inside of these belongs to that group, and so does the backward pass of it.
REGIONS = ((LossScale, "guarded_step", OPTIMIZER), (nn.GELU, "forward", ACTIVATIONS), (QuickGELU, "forward", ACTIVATIONS))

FREE = {"_unsafe_view", "_reshape_alias", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
FACTORIES = {
    "arange",
    "full",
    "full_like",
    "new_full",
    "new_ones",
    "new_zeros",
    "ones",
    "ones_like",
    "scalar_tensor",
    "zeros",
    "zeros_like",
}
FILLS = {"fill_", "zero_"}
GATHERS = {"embedding", "gather", "index", "index_select"}
SCATTERS = {"slice_backward", "select_backward"}  # zeros, and the gradient copied to its place
_COPIES = {"_foreach_copy_", "cat", "clone", "constant_pad_nd", "copy_", "index_put", "index_put_", "repeat", "stack"}
_NAMED = {
    PRODUCTS: {"addmm", "baddbmm", "bmm", "convolution", "linear", "mm"},
    ACTIVATIONS: {
        "quick_gelu",
        "quick_gelu_backward",
        "gelu",
        "gelu_backward",
        "relu",
        "sigmoid",
        "sigmoid_backward",
        "tanh",
        "tanh_backward",
        "threshold_backward",
    },
    CASTS: {"_to_copy"},
    COPIES: FACTORIES | FILLS | GATHERS | SCATTERS | _COPIES,
}
_GROUP = {name: group for group, names in _NAMED.items() for name in names}
# Kernels of an operator that are not one, as torch 2.14's CUDA build launches them.
_LAUNCHES = {
    "_scaled_dot_product_efficient_attention": 3,
    "_scaled_dot_product_flash_attention_backward": 3,
    "baddbmm": 2,  # the bias is copied to the output first
    "constant_pad_nd": 2,
    "index_put": 20,  # sorts the indices, since it adds up
    "nll_loss_backward": 2,
    "nll_loss_forward": 2,
    "select_backward": 2,
    "slice_backward": 2,
}


@dataclass(frozen=True)
class Operator:
    """One call. ``precision``: of what it computes with. ``seconds``: how long it took on a CPU, where a clock was wanted."""

    name: str
    group: str
    precision: str
    launches: int
    flops: int
    bytes: int
    seconds: float = 0.0


class Recorder(TorchDispatchMode):
    """Keeps all ``operators`` that run while it is entered. ``clock``: times each [s], which means something on a CPU alone."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self._clock = clock or (lambda: 0.0)
        self._region, self._of_last_node = "", ""
        self._region_of: dict[int, str] = {}  # by autograd's sequence number, which a node of the backward pass has from its forward one

    @contextlib.contextmanager
    def region(self, name: str) -> Iterator[None]:
        """What runs inside, and the backward pass of it, belongs to the group ``name``."""
        outer, self._region, first = self._region, name, torch._C._autograd._get_sequence_nr()
        try:
            yield
        finally:
            self._region = outer
            self._region_of |= dict.fromkeys(range(first, torch._C._autograd._get_sequence_nr()), name)

    @contextlib.contextmanager
    def regions(self) -> Iterator[None]:
        """All of `REGIONS` are told apart inside."""
        with contextlib.ExitStack() as stack:
            for owner, method, name in REGIONS:
                stack.enter_context(mock.patch.object(owner, method, self._within(getattr(owner, method), name)))
            yield

    def _within(self, plain: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(plain)
        def marked(*args: Any, **options: Any) -> Any:
            with self.region(name):
                return plain(*args, **options)

        return marked

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begin = self._clock()
        result = func(*args, **kwargs or {})
        seconds = self._clock() - begin
        region = self._current_region(func.overloadpacket.__name__)
        if (found := operator(func, (*args, *(kwargs or {}).values()), result, region, seconds)) is not None:
            self.operators.append(found)
        return result

    def _current_region(self, name: str) -> str:
        node = torch._C._current_autograd_node()
        if node is not None:
            self._of_last_node = self._region_of.get(node._sequence_nr(), "")
        # Two gradients of one tensor are added up between nodes, right after the one that gave the second.
        between = node is None and not self._region and name in ("add", "add_")
        return self._of_last_node if node is not None or between else self._region


def record(work: Callable[[], object], clock: Callable[[], float] | None = None) -> list[Operator]:
    """The operators that ``work`` executes."""
    with Recorder(clock) as recorder, recorder.regions():
        work()
    return recorder.operators


def operator(func: Any, args: Sequence[Any], result: Any, region: str = "", seconds: float = 0.0) -> Operator | None:
    """What a call of the aten operator ``func`` with all its ``args`` costs; None where nothing is launched."""
    name = func.overloadpacket.__name__
    if name in FREE or any(out.alias_info is not None and not out.alias_info.is_write for out in func._schema.returns):
        return None
    floating = [t.dtype for t in tree_leaves(args) if isinstance(t, Tensor) and t.is_floating_point()]
    moved = name == "_to_copy" and args[0].device != result.device
    precision = next((key for key, dtype in PRECISIONS.items() if floating and dtype == floating[0]), "fp32")
    costs = launches(name, args), flops(name, args, result), nbytes(name, args, result)
    return Operator(name, region or (COPIES if moved else group(name)), precision, *costs, seconds)


def group(name: str) -> str:
    """The group of an operator by its name alone."""
    if "scaled_dot_product" in name:
        return ATTENTION
    return NORMS if "layer_norm" in name else _GROUP.get(name, ELEMENTWISE)


def launches(name: str, args: Sequence[Any]) -> int:
    """Kernels of one call. A list of tensors of different strides is gone through one by one."""
    if name.startswith("_foreach"):
        lists = [part for part in args if isinstance(part, (list, tuple))]
        alike = all(len({t.stride() for t in together}) == 1 and together[0].is_contiguous() for together in zip(*lists, strict=True))
        return 1 if alike else len(lists[0])
    if name == "_scaled_dot_product_efficient_attention_backward":
        return 4 if args[0].dtype == torch.float32 else 1  # in fp32 three to five, by the number of tokens
    return _LAUNCHES.get(name, 1)


def nbytes(name: str, args: Sequence[Any], result: Any) -> int:
    """Bytes read and written."""
    read = {id(t): in_memory(t) for t in tree_leaves(args) if isinstance(t, Tensor)}
    written = sum(in_memory(t) for t in tree_leaves(result) if isinstance(t, Tensor))
    if name in FACTORIES | FILLS:
        return written
    if name in GATHERS | {"copy_"}:  # what is gathered from, or copied to, is not read as a whole
        own = read.pop(id(args[0]))
        return sum(read.values()) + written + (0 if name == "copy_" else min(own, written))
    if name in SCATTERS:
        return written + 2 * sum(read.values())
    if name == "baddbmm":
        return sum(read.values()) + 3 * written  # the bias is written there, read again and added to
    return sum(read.values()) + written


def in_memory(tensor: Tensor) -> int:
    """The bytes of a tensor, an expanded dimension once."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= length if stride != 0 or length == 0 else 1
    return size
