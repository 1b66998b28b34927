"""Prepare the next items in a thread while the current one is in use."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
A = TypeVar("A", bound="Ahead[Any]")
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

    The thread begins with `start`, or with the iteration. An exception in it is raised at the item where it happened. Leaving the
    iteration early, or `close`, ends it.

    ``send``, where it is given, is done to each item in the consumer's thread: to the next one as well, if it is ready, before the current
    one is handed out. So what it begins (a copy to a device) goes on while the current item is used, and at most one item lies ahead on
    the device. It is not done in the thread that prepares: there, items would take the device's memory long before they are wanted, as
    while clients are tested between two rounds, and an allocation that fails would do so where nobody can try a smaller one.
    """

    def __init__(self, items: Iterable[Any], waiting: Stopwatch, depth: int = 2, send: Callable[[Any], T] | None = None) -> None:
        self._items, self._waiting, self._send = items, waiting, send
        self._ready: queue.Queue[Any] = queue.Queue(depth if send is None else max(1, depth - 1))  # one is held by the consumer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="pfedmma-prefetch", daemon=True)

    def start(self) -> None:
        """Begin to prepare; nothing where that is done already."""
        if self._thread.ident is None:
            torch.get_num_threads()  # settles this thread's own number before the other thread sets its
            self._thread.start()

    def close(self) -> None:
        """End the thread, once the item that it is at is done."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def __iter__(self) -> Iterator[T]:
        self.start()
        try:
            item = self._take(self._wait())
            while item is not _END:
                ahead = self._ahead()
                yield item
                item = self._take(self._wait()) if ahead is None else ahead()
        finally:
            self.close()

    def _wait(self) -> Any:
        start = time.perf_counter()
        item = self._ready.get()
        self._waiting.seconds += time.perf_counter() - start
        return item

    def _ahead(self) -> Callable[[], Any] | None:
        """The next item, sent, if it is ready; it is called for when its turn comes."""
        if self._send is None:
            return None
        try:
            item = self._ready.get_nowait()
        except queue.Empty:
            return None
        if isinstance(item, _Failure):
            return lambda: self._take(item)  # it is raised in its turn
        sent = self._take(item)
        return lambda: sent

    def _take(self, item: Any) -> Any:
        if isinstance(item, _Failure):
            raise item.error
        return item if item is _END or self._send is None else self._send(item)

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


class Ahead(Generic[T]):
    """What is prepared long before it is wanted, one such thing at a time; left as a context, it ends its thread.

    ``waiting``: how long all that was taken from here had to be waited for.
    """

    def __init__(self) -> None:
        self.waiting = Stopwatch()
        self._coming: tuple[Hashable, Prefetched[T]] | None = None

    def begin(self, key: Hashable, items: Prefetched[T]) -> None:
        """Prepare ``items`` from now on, to be known by ``key``."""
        self.close()
        self._coming = key, items
        items.start()

    def take(self, key: Hashable) -> Prefetched[T] | None:
        """What was begun under this key, if anything was; whatever was begun under another one is not wanted any more, and ends."""
        if self._coming is None or self._coming[0] != key:
            self.close()
            return None
        (_, items), self._coming = self._coming, None
        return items

    def close(self) -> None:
        """End what was begun and not taken."""
        if self._coming is not None:
            self._coming[1].close()
            self._coming = None

    def __enter__(self: A) -> A:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
