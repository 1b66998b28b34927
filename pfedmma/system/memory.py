"""Memory: how a process on a CPU keeps it, and what to say when there is no more."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator

import torch

from pfedmma.system.errors import RankFailure

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
# What torch and the C library say, besides the errors that have a type of their own.
_SHORTAGE = ("can't allocate memory", "unable to mmap", "Cannot allocate memory", "can't start new thread")


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, for its next allocations; nothing where the C library is not glibc.

    By default glibc maps each large tensor anew and gives it back when it is freed, so every operation on a CPU begins with page faults on
    fresh memory, which the kernel has to clear. A step allocates the same sizes as the step before: kept, they cost this once.
    The process stays as large as it once was, and a few large tensors larger where holes between them do not fit.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_TRIM_THRESHOLD, -1)  # never give the top of the heap back
    libc.mallopt(_MMAP_MAX, 0)  # take large blocks from the heap, too


@contextlib.contextmanager
def shortage_named() -> Iterator[None]:
    """Turn running out of memory, on a GPU or in main memory, into one sentence that says what to lower.

    Raises:
        RankFailure: an allocation failed.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not any(words in str(error) for words in _SHORTAGE):
            raise
        reason = " ".join(str(error).split())[:160] or "an allocation failed"
        raise RankFailure(
            f"out of memory ({reason}); lower federation.batch_size, evaluation.batch_size, federation.clients_per_pass, "
            f"federation.stems_gb, data.cache_gb or data.device_cache_gb, or start more ranks"
        ) from error
