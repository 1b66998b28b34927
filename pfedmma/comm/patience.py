"""Calls that may block for ever, waited for as long as there is time.

A call to a store whose process hangs does not come back, whatever timeout it was given, and nothing can take it back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_LEAST = 0.05  # seconds; a call that needs no waiting is given them


class Silence(RuntimeError):
    """What was called has not answered in time."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """What ``call()`` returns or raises, in a thread of its own.

    Raises:
        Silence: it has not come back after ``seconds``; its thread is left behind, and no process waits for it to end.
    """
    returned: list[T] = []
    raised: list[BaseException] = []

    def answer() -> None:
        try:
            returned.append(call())
        except BaseException as error:  # for who has called, whatever it is
            raised.append(error)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    thread.join(max(seconds, _LEAST))
    if raised:
        raise raised[0]
    if not returned:
        raise Silence(f"no answer within {seconds:.1f} s")
    return returned[0]
