"""Tensors on their way to a device: packed into one buffer, and read there as they were; the meta device stands for a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pfedmma.system import staging
from pfedmma.system.staging import ALIGNED, Packed, Sent, Staging

CPU, META = torch.device("cpu"), torch.device("meta")


@dataclass(frozen=True)
class Named:
    images: Tensor
    boxes: Tensor | None = None
    count: int = 3


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


def mixed() -> tuple[object, ...]:
    """Several dtypes, odd sizes, no dimension, no number, a view with gaps; nested, and with what is no tensor."""
    flips = torch.tensor([True, False, True])
    inner = Named(torch.arange(21, dtype=torch.uint8).view(1, 3, 7))
    return (flips, [torch.tensor(7), torch.empty(0, 4)], inner, Pair(torch.arange(12).view(3, 4).T, torch.rand(5)), "rows", None)


def parts(value: object) -> list[Tensor]:
    found: list[Tensor] = []
    staging._each(value, found.append)
    return found


def test_on_a_cpu_nothing_is_copied() -> None:
    way, value = Staging(CPU), mixed()
    packed = way.pack(value)
    assert packed.value is value and packed.buffer is None
    assert way.send(packed).take() is value and way.put(value) is value


def test_all_tensors_lie_in_one_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "host_bytes", lambda size, device: torch.empty(size, dtype=torch.uint8))  # without a GPU: not pinned
    value = mixed()
    packed = Staging(META).pack(value)
    assert packed.buffer is not None
    for tensor, original in zip(parts(packed.value), parts(value), strict=True):
        assert torch.equal(tensor, original) and tensor.dtype == original.dtype
        assert tensor.untyped_storage().data_ptr() == packed.buffer.untyped_storage().data_ptr()
        assert tensor.storage_offset() * tensor.itemsize % ALIGNED == 0
    # 3, 8, 0, 21, 96 and 20 bytes.
    assert len(packed.buffer) == ALIGNED * (1 + 1 + 0 + 1 + 2 + 1)
    assert isinstance(packed.value[2], Named) and packed.value[2].count == 3 and packed.value[2].boxes is None
    assert isinstance(packed.value[3], Pair) and isinstance(packed.value[1], list) and packed.value[4:] == ("rows", None)


def test_the_device_reads_what_was_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent to the same memory: what would be views of the copy are views of the buffer, and hold the numbers."""
    monkeypatch.setattr(staging, "host_bytes", lambda size, device: torch.empty(size, dtype=torch.uint8))
    packed = Staging(META).pack(mixed())
    here = Staging(CPU).send(packed).take()
    for tensor, original in zip(parts(here), parts(mixed())[:-1], strict=False):
        assert torch.equal(tensor, original)
    there = Staging(META).send(packed).take()
    shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in parts(packed.value)]
    found: list[tuple[tuple[int, ...], torch.dtype]] = []

    def note(value: object) -> None:
        for part in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(part, Named):
                part = part.images
            if isinstance(part, Tensor):
                assert part.is_meta
                found.append((tuple(part.shape), part.dtype))
            elif isinstance(part, (tuple, list)):
                note(part)

    note(there)
    assert found == shapes


def test_what_is_on_the_device_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "host_bytes", lambda size, device: torch.empty(size, dtype=torch.uint8))
    there, here = torch.empty(3, device=META), torch.arange(2)
    packed = Staging(META).pack((there, here))
    assert packed.value[0] is there and packed.buffer is not None and len(packed.buffer) == ALIGNED
    assert Staging(META).send(packed).take()[0] is there
    assert Staging(META).pack((there, None)) == Packed((there, None), None)


class Stream:
    """Notes what a stream of a GPU is asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def wait_event(self, event: object) -> None:
        self.asked.append(event)


def test_the_stream_that_computes_waits_for_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """And torch is told that it uses the memory, which belongs to the copy's stream."""
    current, event, recorded = Stream(), object(), list[object]()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: recorded.append((tensor, stream)))
    buffer = torch.empty(4)
    assert Sent("value", buffer, event).take() == "value"  # type: ignore[arg-type]
    assert current.asked == [event] and recorded[0][0] is buffer and recorded[0][1] is current
    assert Sent("value").take() == "value" and len(recorded) == 1
