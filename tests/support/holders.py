"""Another process that holds something until it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.support.small import PATIENCE


def holder(program: str, path: Path) -> subprocess.Popen[str]:
    """A process that has run ``program``, whose ``sys.argv[1]`` is ``path`` and which ends inside a ``with`` block, and stays in it."""
    stay = f"    print('ready', flush=True)\n    __import__('time').sleep({PATIENCE})\n"
    process = subprocess.Popen([sys.executable, "-c", program + stay, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    assert process.stdout is not None
    process.stdout.close()
