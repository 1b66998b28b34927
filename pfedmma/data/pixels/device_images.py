"""Decoded images that rest on a GPU, end to end, so that a step reads them where they lie.

Those that came first stay: every epoch reads all of them once, so that one which made room for another would only be brought again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pfedmma.data.pixels import ragged
from pfedmma.data.pixels.ragged import STAGED, Crop, Crops
from pfedmma.system.console import warn

SMALLEST = 1 << 26  # bytes of a buffer; each is as large as all before it together
MOST_BUFFERS = 64

Kernel = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # as `ragged_kernel.crop_resize`


@dataclass(frozen=True)
class Place:
    """Where an image uint8 [3,height,width] lies: from byte ``start`` of a buffer on, the channels one after another."""

    buffer: int
    start: int
    height: int
    width: int

    def crop(self, box: tuple[int, int, int, int], flip: int) -> Crop:
        """The crop of it in a box (top, left, height, width)."""
        top, left, height, width = box
        return Crop(self.buffer, self.start + top * self.width + left, self.height * self.width, self.width, height, width, flip)


class DeviceImages:
    """uint8 [3,H,W] images by key, up to ``budget`` bytes of ``device``. Safe for two threads.

    They are written on a stream of their own, by a call that returns when they are there: work that is started later may read them.
    """

    def __init__(self, device: torch.device, budget: float) -> None:
        self.device, self.budget = device, int(budget)
        self.buffers: list[Tensor] = []
        self.taken = self.bytes_held = 0  # by buffers; by the images in them
        self._addresses = torch.zeros(MOST_BUFFERS, dtype=torch.long, device=device)
        self._places: dict[Hashable, Place] = {}
        self._free = 0  # where the last buffer goes on
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._lock = threading.Lock()

    def find(self, key: Hashable) -> Place | None:
        return self._places.get(key)

    def image(self, place: Place) -> Tensor:
        """The image itself, [3,H,W]; it may not be changed."""
        shape = (3, place.height, place.width)
        return self.buffers[place.buffer][place.start : place.start + 3 * place.height * place.width].view(shape)

    def keep(self, key: Hashable, image: Tensor, part: float = 1.0) -> bool:
        """Whether an image [3,H,W] is here now: there is room, and not more than ``part`` of the budget is in use with it."""
        with self._lock:
            if key in self._places:
                return True
            if self.bytes_held + image.numel() > part * self.budget or not self._room(image.numel()):
                return False
            place = Place(len(self.buffers) - 1, self._free, image.shape[1], image.shape[2])
            with self._own_stream():
                self.image(place).copy_(image)
            self._free += image.numel()
            self.bytes_held += image.numel()
            self._places[key] = place
            return True

    def crop_resize(self, staged: Tensor, crops: Crops, size: int) -> Tensor:
        """Crops of images that are here, and of those ``staged``, brought to S x S: uint8 [n,3,S,S]; see `ragged.crop_resize`."""
        if self._kernel is not None:
            return self._kernel(self._addresses, staged, crops.table, size)
        return ragged.crop_resize([*self.buffers, staged], crops, size)

    @cached_property
    def _kernel(self) -> Kernel | None:
        return tried_kernel(self.device)

    def _room(self, wanted: int) -> bool:
        """Whether ``wanted`` bytes are free in the last buffer, which may be a new one."""
        if self.buffers and self._free + wanted <= len(self.buffers[-1]):
            return True
        size = min(max(SMALLEST, self.taken, wanted), self.budget - self.taken)
        if wanted > size or len(self.buffers) == MOST_BUFFERS:
            return False
        try:
            with self._own_stream():  # memory that work on another stream may still read is not given to this one
                buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
                self._addresses[len(self.buffers)] = buffer.data_ptr()
        except torch.OutOfMemoryError:
            self.budget = self.taken
            return False
        self.buffers.append(buffer)
        self.taken += size
        self._free = 0
        return True

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Work inside runs on a stream beside that of training, and is done in the end; nothing of it where there are no streams."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()


def tried_kernel(device: torch.device) -> Kernel | None:
    """The kernel, where a crop that it makes comes out as it should; else None, and on a GPU a warning that says why."""
    if device.type != "cuda":
        return None
    try:
        from pfedmma.data.pixels.ragged_kernel import crop_resize

        image = torch.arange(3 * 40 * 50, device=device).to(torch.uint8)
        crops = Crops.from_list([Crop(STAGED, 3, 2000, 50, 40, 45, 1)])
        crops = Crops(crops.table.to(device), crops.rows, crops.longest)
        made = crop_resize(torch.zeros(1, dtype=torch.long, device=device), image, crops.table, 32)
        apart = (made.int() - ragged.crop_resize([image], crops, 32).int()).abs().max().item()
        if apart <= 1:
            return crop_resize
        reason = f"its result is {apart} grey levels off"
    except Exception as error:  # whatever a compiler that is missing or broken raises
        reason = " ".join(str(error).split())[:160] or type(error).__name__
    warn(f"images are cropped without the kernel made for it ({reason}); the result is the same, and slower")
    return None
