"""A temporary folder that is one user's alone, and does not outlive the process that made it by more than the next one's start."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from pfedmma.system.errors import RankFailure
from pfedmma.system.files import temporary_folder

_NAME = re.compile("[.]?pfedmma-[0-9a-f]{32}")
_LOCK = "in use"  # the file in it that its maker holds a lock on; the system drops the lock when the process dies
_YOUNG = 60.0  # seconds in which a draft may still be without its lock


@contextlib.contextmanager
def new_private_folder(folder: Path, what: str) -> Iterator[None]:
    """Make ``folder``, readable by its owner alone; at the end it is gone with all that is in it. Those of dead processes go first.

    ``what`` is kept in it, in words.

    Raises:
        RankFailure: there is something of that name, or no room.
    """
    _remove_stale(folder.parent)
    draft = folder.with_name(f".{folder.name}")
    with kept_in_full(what):
        os.mkdir(draft, 0o700)
        lock = os.open(draft / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks: then nobody takes the folder for a dead process's
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(draft, folder)  # under this name it is never without its lock
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def kept_in_full(what: str) -> Iterator[None]:
    """What is written inside to temporary files is kept, or a `RankFailure` says why not; ``what`` it is, in words."""
    try:
        yield
    except OSError as error:
        raise RankFailure(
            f"cannot keep {what} in {temporary_folder()} ({error.strerror}); set TMPDIR to a folder with more room"
        ) from error


def _remove_stale(where: Path) -> None:
    """Remove the private folders whose makers are dead, as far as can be told."""
    with contextlib.suppress(OSError):
        for entry in sorted(os.scandir(where), key=lambda entry: entry.name):
            if _NAME.fullmatch(entry.name) and _is_stale(Path(entry.path)):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_stale(folder: Path) -> bool:
    """Whether a folder is this user's, and nobody holds its lock."""
    try:
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        if folder.name.startswith(".") and time.time() - status.st_mtime < _YOUNG:
            return False
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody holds it, or the file system has no locks
        return False
    finally:
        os.close(lock)
    return True
