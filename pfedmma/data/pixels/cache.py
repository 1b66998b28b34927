"""Decoded images, each kept from the first time it is read.

`DecodedImages` holds training images of any size in memory up to a budget, and the rest in a temporary file. `FittedImages` holds
images of one size as one tensor, which the ranks of a node can share.

Shape legend: n images, H x W pixels as decoded, S pixels a side at the backbone's size.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from pfedmma.system.errors import RankFailure
from pfedmma.system.files import temporary_folder
from pfedmma.system.shared_file import SharedFile, create_shared_file

FEWEST_AT_ONCE = 8  # images
WHAT = "decoded test images"


class DecodedImages:
    """uint8 [3,H,W] images by position; ``read`` decodes one that is asked for the first time. Safe for two threads.

    Images beyond ``budget`` bytes lie in the file. ``ranks``, on this machine, share its cores for decoding.
    """

    def __init__(self, read: Callable[[int], Tensor], budget: float, ranks: int = 1) -> None:
        self._read, self._budget, self._ranks = read, budget, ranks
        self._held: dict[int, Tensor] = {}
        self._spilled: dict[int, tuple[int, tuple[int, ...]]] = {}  # position -> (offset in the file, shape)
        self._file: IO[bytes] | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self.bytes_held = self.bytes_spilled = self.decoded = 0

    def __getitem__(self, index: int) -> Tensor:
        return self.many([index])[0]

    def many(self, indices: Sequence[int]) -> list[Tensor]:
        """The images at ``indices``; those asked for the first time are decoded side by side, a few at a time.

        Raises:
            Unreadable: by ``read``, for one that cannot be decoded.
            RankFailure: no room for the file.
        """
        with self._lock:
            missing = [i for i in dict.fromkeys(indices) if i not in self._held and i not in self._spilled]
            for start in range(0, len(missing), self.at_once):
                few = missing[start : start + self.at_once]
                decoded = self._pool().map(self._read, few) if len(few) > 1 else map(self._read, few)
                for index, image in zip(few, list(decoded), strict=True):
                    self._keep(index, image)
            return [self._held[i] if i in self._held else self._load(*self._spilled[i]) for i in indices]

    def forget(self, index: int) -> None:
        """Take no memory for an image any more; asked for again, it is decoded again. What lies in the file stays there."""
        with self._lock:
            if (image := self._held.pop(index, None)) is not None:
                self.bytes_held -= image.numel()

    @property
    def at_once(self) -> int:
        """How many images are decoded before the first of them is kept: enough for every thread, few enough for memory."""
        return max(FEWEST_AT_ONCE, 2 * self._threads_wanted)

    @property
    def _threads_wanted(self) -> int:
        return max(1, (os.cpu_count() or 1) // self._ranks)

    def _pool(self) -> ThreadPoolExecutor:
        """Decoding threads: this rank's share of the cores. PIL lets other threads run while it decodes."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._threads_wanted, thread_name_prefix="pfedmma-decode")
        return self._threads

    def _keep(self, index: int, image: Tensor) -> None:
        self.decoded += 1
        if self.bytes_held + image.numel() <= self._budget:
            self._held[index] = image
            self.bytes_held += image.numel()
        else:
            self._spill(index, image)

    def _spill(self, index: int, image: Tensor) -> None:
        folder = temporary_folder()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="pfedmma-", dir=folder)  # noqa: SIM115, it lives as long as the cache
            self._file.seek(self.bytes_spilled)
            self._file.write(image.numpy().tobytes())
            self._file.flush()
        except OSError as error:
            raise RankFailure(
                f"data.cache_gb: decoded images beyond it cannot be kept in {folder} ({error.strerror}); "
                f"raise data.cache_gb, or set TMPDIR to a larger disk"
            ) from error
        self._spilled[index] = (self.bytes_spilled, tuple(image.shape))
        self.bytes_spilled += image.numel()

    def _load(self, offset: int, shape: tuple[int, ...]) -> Tensor:
        assert self._file is not None
        content = bytearray(os.pread(self._file.fileno(), math.prod(shape), offset))
        return torch.frombuffer(content, dtype=torch.uint8).view(shape)


class FittedImages:
    """``count`` images of ``size`` pixels a side, uint8 [n,3,S,S], by position; ``make`` makes one that is asked for the first time.

    Only rows that are used take memory. With ``share``, a path that all ranks of a node name, the rows lie in one file that they map:
    a row made by one rank is there for all.
    """

    def __init__(self, count: int, size: int, make: Callable[[int], Tensor], share: Path | None = None) -> None:
        self._make = make
        self._file: SharedFile | None = None
        shape = (count, 3, size, size)
        if share is None or count == 0:
            self._pixels = torch.empty(shape, dtype=torch.uint8)
            self._made = torch.zeros(count, dtype=torch.uint8)
        else:
            self._file = SharedFile(share, math.prod(shape), count, WHAT)
            self._pixels, self._made = self._file.content.view(shape), self._file.marks
        self._lock = threading.Lock()

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The images at these positions, [n] -> uint8 [n,3,S,S]."""
        if not bool(self._made[indices].all()):
            self.fill(indices)
        return self._pixels[indices]

    @property
    def bytes_held(self) -> int:
        """Of the images that are made, by whichever rank."""
        return int(self._made.sum()) * self._pixels[:1].numel()

    def fill(self, indices: Tensor) -> None:
        """Make those of the images at ``indices`` [n] that are not there yet; raises what ``make`` raises."""
        with self._lock:
            for index in indices[self._made[indices] == 0].tolist():
                if not self._made[index]:
                    self._keep(index, self._make(index))
                    self._made[index] = 1

    def _keep(self, index: int, image: Tensor) -> None:
        if self._file is None:
            self._pixels[index] = image
            return
        self._file.write(index * image.numel(), image)


def create_images(path: Path, count: int, size: int) -> None:
    """A new file, its owner's alone, for ``count`` `FittedImages` of ``size`` pixels a side, none of them made.

    Raises:
        RankFailure: no room for it, or something is there already.
    """
    create_shared_file(path, count * 3 * size * size, count, WHAT)
