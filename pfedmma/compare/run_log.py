"""The log of a run of a comparison: what its processes say, attempt after attempt. Nothing in it is ever overwritten."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pfedmma.system.console import time_stamp

BEGINS = "=== pfedmma.compare "  # a line that begins so stands before each attempt


def begin(log: Path, command: Sequence[str]) -> IO[bytes]:
    """Open it for another attempt, which ``command`` starts."""
    file = open(log, "ab")  # noqa: SIM115, closed when the run ends
    file.write(f"{BEGINS}{time_stamp()} {shlex.join(command)}\n".encode())
    file.flush()
    return file


def last_attempt(log: Path) -> list[str]:
    """What the last attempt has said, without empty lines. Raises an `OSError` if there is no log."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    begun = max((number + 1 for number, line in enumerate(lines) if line.startswith(BEGINS)), default=0)
    return lines[begun:]


def errors(log: Path) -> list[str]:
    """The lines in which the processes of the last attempt say what is wrong; none where there is no log."""
    try:
        return [line for line in last_attempt(log) if line.startswith("error: ")]
    except OSError:
        return []
