"""One owner of a run folder: an advisory lock that the system drops when the process that holds it ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pfedmma.system import untrusted
from pfedmma.system.console import warn
from pfedmma.system.errors import UserError

NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the run folder; no other process on any machine that sees it can. Nothing is left behind where nothing was written in it.

    On a file system without locks a warning says that nobody keeps a second run out.

    Raises:
        UserError: another process holds it; says which. The folder cannot be made.
    """
    made = _missing(folder)
    file, locked = _taken(folder)
    with file:
        try:
            if locked:
                file.truncate(0)
                file.write(json.dumps({"process": os.getpid(), "machine": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}))
                file.flush()
            yield
        finally:
            if locked:  # while it is held: whoever comes now makes a file of its own
                with contextlib.suppress(OSError):
                    os.unlink(folder / NAME)
            for path in made:
                with contextlib.suppress(OSError):  # something was written in it
                    path.rmdir()


def in_use(folder: Path) -> bool:
    """Whether a run goes on in the folder, as far as its lock says: that of a killed process stays behind. Takes no lock."""
    try:
        said = untrusted.read_json(folder / NAME)
        process = int(said["process"])
        if str(said["machine"]) == platform.node():
            os.kill(process, 0)
    except PermissionError:  # it lives, and belongs to somebody else
        return True
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return False
    return True


def _taken(folder: Path) -> tuple[TextIO, bool]:
    """The lock's file, and whether it is locked: an owner that ends takes its file away, also between opening and locking it here."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = open(folder / NAME, "a+", encoding="utf-8")  # noqa: SIM115, it is closed by whoever owns the folder
        except OSError as error:
            raise UserError(f"run_dir: cannot create {folder}: {error.strerror}") from None
        try:
            locked = _lock(file.fileno(), folder)
        except UserError:
            file.close()
            raise
        if not locked or _still_there(file.fileno(), folder / NAME):
            return file, locked
        file.close()


def _missing(folder: Path) -> list[Path]:
    """The folders that are not there yet, the innermost first."""
    return [path for path in (folder, *folder.absolute().parents) if not os.path.lexists(path)]


def _lock(handle: int, folder: Path) -> bool:
    """Whether the lock is held now; False where the file system has none. Raises a `UserError` if somebody else holds it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            warn(f"{folder} lies on a file system without locks ({error.strerror}); make sure that no other run writes there")
            return False
        raise UserError(f"run_dir: {folder} is in use by {_owner(folder / NAME)}; wait for it, end it, or choose another run_dir") from None
    return True


def _still_there(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _owner(path: Path) -> str:
    """Who holds the lock, as far as the file says."""
    try:
        said = untrusted.read_json(path)
        return f"process {int(said['process'])} on {str(said['machine'])[:60]} since {str(said['since'])[:20]}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
