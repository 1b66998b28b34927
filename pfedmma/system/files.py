"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from pfedmma.system.errors import RankFailure, UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Write, flush to disk, and only then take the place of an earlier file.

    Raises:
        UserError: the disk is full or the folder cannot be written; an earlier file is left as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def temporary_folder() -> str:
    """Where files go that end with the process: TMPDIR if that can be written, or a folder of the system's.

    Raises:
        RankFailure: there is none on this machine.
    """
    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise RankFailure(f"no folder for temporary files can be written ({error.strerror}); set TMPDIR to one with room") from None


def sync_folder(path: Path) -> None:
    """Make a rename in ``path`` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
