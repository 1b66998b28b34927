"""A polite request to end: the first SIGTERM, SIGINT or SIGUSR1 lets a run finish its round and keep it."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

# What batch systems are asked to send before the time is up: it may come at any moment.
EARLY = (signal.SIGUSR1,)
# Before there are rounds to keep, these end a process as they always do.
IN_ROUNDS = (signal.SIGTERM, signal.SIGINT)
# A launcher passes on what the terminal or the batch system has sent to all processes already: the same request twice.
AGAIN_AFTER = 5.0  # seconds


class Interruption:
    """Notes the request while it is entered (a context manager); a second one, some seconds later, ends the process as if unhandled.

    `EARLY` signals are noted at once, those `IN_ROUNDS` from `rounds_begin` on. A rank whose launcher is gone is asked to end, too: nobody
    could stop it, and whoever starts the run again would share its folder with it.
    """

    def __init__(self) -> None:
        self.by = ""  # name of the signal
        self._at = 0.0
        self._earlier: dict[int, Any] = {}
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    @property
    def asked(self) -> bool:
        if not self.by and self._launcher is not None and os.getppid() != self._launcher:
            self.by = "the end of its launcher"
        return bool(self.by)

    def __enter__(self) -> Interruption:
        self._handle(EARLY)
        return self

    def rounds_begin(self) -> None:
        self._handle(IN_ROUNDS)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _handle(self, numbers: tuple[signal.Signals, ...]) -> None:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self._earlier |= {number: signal.signal(number, self._note) for number in numbers}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.by:
            self.by, self._at = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._at > AGAIN_AFTER:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
