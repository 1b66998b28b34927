"""The meta device as a GPU: where tensors lie, what is copied to it, and what would wait for it, without a GPU.

A tensor on the meta device has no numbers. So whatever needs some on the host shows: it would be a wait for a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pfedmma.methods import forward
from pfedmma.system import staging

DEVICE = torch.device("meta")
COPY, WAIT, FETCH = "copy", "wait", "fetch"
_aten = torch.ops.aten
_MADE = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
_INDEXED = (Tensor.__getitem__, Tensor.__setitem__)


class Misplaced(AssertionError):
    """What a GPU would refuse, or make the host wait for."""


class Watch(TorchDispatchMode):
    """What this thread asks of the device, in order in ``seen``: `COPY`, `WAIT` (for one number), `FETCH` (of a tensor to the host).

    Raises `Misplaced` where tensors of both sides meet in an operation, or one is copied to the device from where a copy makes the host
    wait. ``waits``, ``fetches``: how many are answered, as if all were well; a further one is raised.
    """

    def __init__(self, pinned: set[int], waits: int = 0, fetches: int = 0) -> None:
        super().__init__()
        self.pinned, self.left, self.seen = pinned, {WAIT: waits, FETCH: fetches}, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        places = {tensor.device.type for tensor in tensors if tensor.dim() > 0}  # numbers of the host may come along
        if func is _aten._to_copy.default and tensors[0].device.type != torch.device(kwargs.get("device") or tensors[0].device).type:
            if tensors[0].is_meta:
                return self._answer(FETCH, func, torch.zeros(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype))
            self._sent(tensors[0], bool(kwargs.get("non_blocking")))
        elif func is _aten.copy_.default and tensors[0].is_meta and not tensors[1].is_meta:
            self._sent(tensors[1], len(args) > 2 and args[2])
        elif func is _aten._local_scalar_dense.default and tensors[0].is_meta:
            return self._answer(WAIT, func, True)
        elif func is _aten.unique_dim.default and tensors[0].is_meta:
            index = torch.empty(len(tensors[0]), dtype=torch.long, device=DEVICE)
            return self._answer(WAIT, func, (tensors[0], index, index))
        elif places == {"cpu", DEVICE.type}:
            raise Misplaced(f"{func}: {[(tensor.device.type, tuple(tensor.shape)) for tensor in tensors]}")
        return func(*args, **kwargs)

    def _sent(self, host: Tensor, non_blocking: bool) -> None:
        if not non_blocking or host.untyped_storage().data_ptr() not in self.pinned:
            raise Misplaced(f"{tuple(host.shape)} {host.dtype} is sent, and the host waits")
        self.seen.append(COPY)

    def _answer(self, what: str, func: Any, answer: Any) -> Any:
        if self.left[what] == 0:
            raise Misplaced(f"{func}: the host waits for the device, after {self.seen}")
        self.left[what] -= 1
        self.seen.append(what)
        return answer


class _Lists(TorchFunctionMode):
    """Refuses tensors on the device made of lists: that is a copy for which the host waits, and no dispatch mode sees it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        indices = args[1] if func in _INDEXED and isinstance(args[1], tuple) else args[1:2] if func in _INDEXED else ()
        if (func in _MADE and made.is_meta) or (args and any(isinstance(index, list) for index in indices) and args[0].is_meta):
            raise Misplaced(f"a list becomes a tensor on the device: {args}")
        return made


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Where the memory lies that would be pinned on a machine with a GPU.

    Mixed precision is switched off, as meta knows none, and so is the one question to the prompts' numbers.
    """
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr(forward, "require_told_apart", lambda names, tokens: None)
    kept: list[Tensor] = []  # so that no address comes twice
    found: set[int] = set()

    def remembered(size: int, device: torch.device) -> Tensor:
        assert device == DEVICE
        kept.append(torch.empty(size, dtype=torch.uint8))
        found.add(kept[-1].untyped_storage().data_ptr())
        return kept[-1]

    monkeypatch.setattr(staging, "host_bytes", remembered)
    return found


@contextlib.contextmanager
def watched(pinned: set[int], waits: int = 0, fetches: int = 0) -> Iterator[Watch]:
    """Everything that this thread does inside, seen by a `Watch`."""
    with Watch(pinned, waits, fetches) as watch, _Lists():
        yield watch
