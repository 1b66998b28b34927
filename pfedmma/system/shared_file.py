"""A file of fixed size that processes of one machine map, so that what one of them writes is there for all."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from pfedmma.system.private_folder import kept_in_full


class SharedFile:
    """``content`` and ``marks`` [bytes], uint8, as all processes see them now; ``what`` they are, in words.

    Content is written to the file and only read through the map: there, a full disk would end the process by a signal. Marks have their
    room from the beginning, and are written in place.
    """

    def __init__(self, path: Path, content: int, marks: int, what: str) -> None:
        self._what = what
        with kept_in_full(what):
            self._file = open(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+b")  # noqa: SIM115, lives as long as what is in it
        whole = torch.from_file(str(path), shared=True, size=content + marks, dtype=torch.uint8)
        self.content, self.marks = whole[:content], whole[content:]

    def write(self, start: int, numbers: Tensor) -> None:
        """Write a tensor in host memory to the content from byte ``start`` on. Raises a `RankFailure` if there is no room."""
        with kept_in_full(self._what):
            self._file.seek(start)
            self._file.write(numbers.numpy().tobytes())
            self._file.flush()


def create_shared_file(path: Path, content: int, marks: int, what: str) -> None:
    """A new file, its owner's alone, for a `SharedFile` of so many bytes, all of them 0.

    It is sparse but for the marks at its end, so it takes room only as content is written.

    Raises:
        RankFailure: no room for it, or something is there already.
    """
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with kept_in_full(what), open(os.open(path, new, 0o600), "wb") as file:
        file.truncate(content)
        file.seek(0, os.SEEK_END)
        file.write(bytes(marks))
