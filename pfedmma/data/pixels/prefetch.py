"""Prepare the next items in a thread while the current one is in use."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
_END = object()


class Stopwatch:
    """Seconds spent waiting, summed until taken."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def take(self) -> float:
        """The seconds so far; the sum begins again."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Prefetched(Generic[T]):
    """Iterate over ``items``, prepared up to ``depth`` ahead; ``waiting`` counts how long the consumer had to wait.

    An exception in the thread is raised at the item where it happened. Leaving the iteration early ends the thread.
    """

    def __init__(self, items: Iterable[T], waiting: Stopwatch, depth: int = 2) -> None:
        self._items, self._waiting = items, waiting
        self._ready: queue.Queue[Any] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="pfedmma-prefetch", daemon=True)

    def __iter__(self) -> Iterator[T]:
        torch.get_num_threads()  # settles this thread's own number before the other thread sets its
        self._thread.start()
        try:
            while True:
                start = time.perf_counter()
                item = self._ready.get()
                self._waiting.seconds += time.perf_counter() - start
                if item is _END:
                    return
                if isinstance(item, _Failure):
                    raise item.error
                yield item
        finally:
            self._stop.set()
            self._thread.join()

    def _produce(self) -> None:
        # One thread for small operations: two pools of threads on the same cores would wait for each other. Holds in this thread only.
        torch.set_num_threads(1)
        try:
            for item in self._items:
                if not self._put(item):
                    return
            self._put(_END)
        except BaseException as error:  # raised again in the consumer's thread
            self._put(_Failure(error))

    def _put(self, item: Any) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
