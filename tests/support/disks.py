"""Small disks for tests: file systems in memory that can be full, or read-only. Only root can mount them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = 4096


@contextlib.contextmanager
def small_disk(place: Path, pages: int) -> Iterator[Path]:
    """A file system of that many pages."""
    place.mkdir()
    if os.geteuid() != 0 or _mount("-t", "tmpfs", "-o", f"size={pages * PAGE}", "none", str(place)):
        pytest.skip("only root can mount a small file system")
    try:
        yield place
    finally:
        while os.path.ismount(place):
            subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Fill a disk up to ``leave`` pages; the file returned is what to remove."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, (free.f_bavail - leave) * free.f_bsize)
    return filler


def make_read_only(disk: Path) -> None:
    """Whoever has a file open may still write to it, as after an error of a real disk: the disk is covered by a read-only view of it."""
    assert _mount("--bind", str(disk), str(disk)) == 0 and _mount("-o", "remount,bind,ro", str(disk)) == 0


def make_writable(disk: Path) -> None:
    """The inverse of `make_read_only`."""
    subprocess.run(["umount", str(disk)], check=True)


def _mount(*options: str) -> int:
    return subprocess.run(["mount", *options], capture_output=True).returncode
