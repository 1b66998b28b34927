"""From the host to a device: all tensors of a value in one copy, for which the host does not wait.

They are packed end to end into one buffer of pinned memory, which crosses over on a stream of its own while the device computes; there,
they are views of it. On a CPU nothing is copied.

Two things must not be used again too early. Torch sees to the pinned buffer: it knows by events of its own which copies read the memory,
and hands it out again only when they have ended, so a buffer may be let go once its copy has begun. The buffer on the device belongs to
the copy's stream, and `Sent.take` tells torch of the stream that computes with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
ALIGNED = 64  # bytes; a tensor begins at a multiple, whatever its dtype and however wide a kernel reads


class Packed(NamedTuple, Generic[T]):
    """A ``value`` whose tensors are views of the ``buffer`` of bytes; the value as it was, and None, where nothing has to be copied."""

    value: T
    buffer: Tensor | None


class Sent(NamedTuple, Generic[T]):
    """A ``value`` on the device, as soon as ``arrived`` (None: at once)."""

    value: T
    buffer: Tensor | None = None
    arrived: torch.cuda.Event | None = None

    def take(self) -> T:
        """The value, for what is queued on the current stream from now on."""
        if self.arrived is not None and self.buffer is not None:
            stream = torch.cuda.current_stream(self.buffer.device)
            stream.wait_event(self.arrived)
            self.buffer.record_stream(stream)
        return self.value


class Staging:
    """The way to ``device``. A value is a tensor, or a tuple, list or dataclass of values; anything else in it stays as it is, and so do
    tensors that are on the device already.

    `pack` may run in another thread than the rest.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def pack(self, value: T) -> Packed[T]:
        """The host's part: a copy within the host."""
        tensors: list[Tensor] = []
        if self.device.type != "cpu":
            _each(value, tensors.append)
        if not tensors:
            return Packed(value, None)
        sizes = [-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors]
        buffer = host_bytes(sum(sizes), self.device)
        parts = iter(zip(buffer.split(sizes), tensors, strict=True))
        return Packed(_each(value, lambda tensor: _read(next(parts)[0], tensor).copy_(tensor)), buffer)

    def send(self, packed: Packed[T]) -> Sent[T]:
        """Begin the copy. Raises a `torch.OutOfMemoryError` where the device has no room for it."""
        value, buffer = packed
        if buffer is None:
            return Sent(value)
        arrived = None
        with torch.cuda.stream(self._stream):  # nothing where there is none
            there = buffer.to(self.device, non_blocking=True)
            if self._stream is not None:
                arrived = self._stream.record_event()
        return Sent(_each(value, lambda tensor: _read(there[tensor.storage_offset() * tensor.itemsize :], tensor)), there, arrived)

    def put(self, value: T) -> T:
        """The same on the device, for what is queued from now on."""
        return self.send(self.pack(value)).take()


def host_bytes(size: int, device: torch.device) -> Tensor:
    """Memory of the host [size], uint8, from which a copy to ``device`` does not make the host wait."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")


def _read(buffer: Tensor, like: Tensor) -> Tensor:
    """The first bytes of a buffer as a tensor of the same dtype and shape."""
    return buffer[: like.nbytes].view(like.dtype).view(like.shape)


def _each(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The value with ``change`` made to each of its tensors that lies on the host, in order."""
    if isinstance(value, Tensor):
        return change(value) if value.device.type == "cpu" else value
    if isinstance(value, (tuple, list)):
        parts = [_each(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: _each(getattr(value, name), change) for name in fields})
    return value
