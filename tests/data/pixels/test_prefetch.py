"""Items prepared in a thread: in order, with errors where they happen, and with the waiting counted."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pfedmma.data.pixels.prefetch import Ahead, Prefetched, Stopwatch
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


def test_each_item_is_sent_once_by_the_consumer_and_at_most_one_ahead() -> None:
    ready, sent = threading.Event(), list[int]()

    def items() -> Iterator[int]:
        yield from range(3)
        ready.set()  # the fourth is asked for, so that the queue has the third, if the first two are taken
        yield 3

    def send(item: int) -> int:
        assert threading.current_thread() is threading.main_thread()
        sent.append(item)
        return 10 * item

    found = []
    for number, item in enumerate(Prefetched(items(), Stopwatch(), send=send)):
        found.append(item)
        assert sent[: number + 1] == list(range(number + 1)) and len(sent) <= number + 2
        if number == 1:
            assert ready.wait(600)
    assert found == [0, 10, 20, 30] and sent == [0, 1, 2, 3]


def test_an_error_comes_in_its_turn_where_items_are_sent_ahead() -> None:
    failed = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        failed.set()
        raise Unreadable("cannot read the image 2.jpg")

    prefetched, found = Prefetched(items(), Stopwatch(), send=lambda item: item), []
    prefetched.start()
    assert failed.wait(600)
    with pytest.raises(Unreadable, match=r"2\.jpg"):
        for item in prefetched:
            found.append(item)
    assert found == [1] and not prefetched._thread.is_alive()


def test_what_is_begun_is_taken_by_its_key_or_ends() -> None:
    ahead, begun = Ahead[int](), [Prefetched(iter(range(1000)), Stopwatch()) for _ in range(4)]
    assert ahead.take("anything") is None
    ahead.begin("first", begun[0])
    taken = ahead.take("first")
    assert taken is begun[0] and list(taken) == list(range(1000)) and ahead.take("first") is None
    ahead.begin("second", begun[1])
    assert begun[1]._thread.is_alive()
    assert ahead.take("third") is None  # so nobody wants the second any more
    assert not begun[1]._thread.is_alive()
    with pytest.raises(Unreadable), ahead:
        ahead.begin("fourth", begun[2])
        ahead.begin("fifth", begun[3])
        assert not begun[2]._thread.is_alive() and begun[3]._thread.is_alive()
        raise Unreadable("")
    assert not begun[3]._thread.is_alive()


def test_one_that_was_never_started_is_closed() -> None:
    Prefetched(iter(()), Stopwatch()).close()
