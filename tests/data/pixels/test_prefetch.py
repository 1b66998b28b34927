"""Items prepared in a thread: in order, with errors where they happen, and with the waiting counted."""

from __future__ import annotations

import pytest

from pfedmma.data.pixels.prefetch import Prefetched, Stopwatch
from pfedmma.data.sources.base import Unreadable


def test_prefetched_keeps_order_and_raises_where_it_happened():
    def items():
        yield from range(5)
        raise Unreadable("cannot read the image 5.jpg")

    seen = []
    with pytest.raises(Unreadable, match=r"5\.jpg"):
        for item in Prefetched(items(), Stopwatch()):
            seen.append(item)
    assert seen == list(range(5))


def test_prefetched_ends_its_thread_when_left_early():
    prefetched = Prefetched(iter(range(1000)), Stopwatch())
    for item in prefetched:
        if item == 3:
            break
    prefetched._thread.join(timeout=600)
    assert not prefetched._thread.is_alive()


def test_waiting_is_counted_and_taken():
    stopwatch = Stopwatch()
    list(Prefetched(iter(range(3)), stopwatch))
    assert stopwatch.seconds > 0
    assert stopwatch.take() > 0 and stopwatch.seconds == 0
