"""Files: paths as users write them, text in any encoding that says its name, and files that are either whole or absent."""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from pfedmma.system.errors import RankFailure, UserError

# The longer mark first: it begins as the shorter one.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path as a user writes it in a setting: ``~``, ``~name`` and ``$VAR`` stand for what they stand for in a shell.

    What stands for nothing is left as it is, and so is a path with a ``$`` that is there under that very name.
    """
    text = os.fspath(path)
    return Path(text if "$" in text and os.path.lexists(text) else os.path.expanduser(os.path.expandvars(text)))


def read_text(path: Path) -> str:
    """A text file in the encoding that its byte-order mark names, else in UTF-8. Raises OSError, or ValueError if it is no text."""
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    return content.decode(encoding).lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")  # some tools write the mark twice


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
