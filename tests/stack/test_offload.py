"""Rows in memory up to a budget and in a file beyond it: to the outside a dictionary, whatever the budgets."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from torch import Tensor

from pfedmma.stack.offload import Budget, OffloadedRows, RowFile, Tier
from pfedmma.system.errors import UserError

CPU = torch.device("cpu")
WIDTH = 3
ROW = 4 * WIDTH  # bytes
INFINITE = float("inf")
# What each tier may hold, in rows; of two tiers the first stands for a GPU. A part of a row is no room for one.
LIMITS = [(0,), (0.9,), (1,), (2.5,), (4,), (INFINITE,), (0, 0), (1, 1), (0, 2), (2, 0), (1, 2.5), (2, INFINITE)]


def new_rows(*limits: float, width: int = WIDTH) -> OffloadedRows:
    """Rows whose tiers may hold so many rows of `WIDTH`; all of them lie in host memory here."""
    rows = OffloadedRows(width, CPU, Budget(host=ROW * limits[-1]))
    assert len(rows._tiers) == 1
    rows._tiers = [*(Tier(CPU, ROW * limit) for limit in limits[:-1]), *rows._tiers]
    return rows


def row_of(value: float) -> Tensor:
    return torch.arange(WIDTH) + float(value)


def places(rows: OffloadedRows) -> list[list[int]]:
    """The clients at each level, the last one the file."""
    return [*(list(tier.rows) for tier in rows._tiers), list(rows._file.slots)]


def file_size(rows: OffloadedRows) -> int:
    assert rows._file._file is not None
    return os.fstat(rows._file._file.fileno()).st_size


# A dictionary ----------------------------------------------------------------------------------------------------------------------------


def assert_bounded(rows: OffloadedRows) -> None:
    """Every tier counts what it holds, which is within its limit; every client is in one place alone."""
    for tier in rows._tiers:
        assert tier.held == ROW * len(tier.rows) <= tier.limit
    everywhere = [client for level in places(rows) for client in level]
    assert len(everywhere) == len(set(everywhere))
    slots = rows._file.slots.values()
    assert len(set(slots)) == len(slots)


ACTIONS = st.tuples(st.sampled_from(["set", "set", "get", "delete", "contains", "iterate"]), st.integers(0, 5))


@trials(max_examples=300, deadline=None)
@given(st.sampled_from(LIMITS), st.lists(ACTIONS, max_size=40))
def test_it_is_a_dictionary(limits: tuple[float, ...], actions: list[tuple[str, int]]) -> None:
    """And what leaves the fastest memory is what has gone unused longest."""
    rows, plain = new_rows(*limits), dict[int, Tensor]()
    used: dict[int, int] = {}
    for time, (action, client) in enumerate(actions):
        before = set(rows._tiers[0].rows)
        if action == "set":
            plain[client] = row_of(100 * time)
            rows[client] = plain[client]
            used[client] = time
        elif action == "get":
            found = rows.get(client)
            assert (found is None) == (client not in plain)
            assert found is None or torch.equal(found, plain[client])
            used[client] = time
        elif action == "delete" and client not in plain:
            with pytest.raises(KeyError):
                del rows[client]
        elif action == "delete":
            del rows[client], plain[client]
        elif action == "contains":
            assert (client in rows) == (client in plain)
        else:
            assert sorted(rows) == sorted(plain)
        assert len(rows) == len(plain)
        assert_bounded(rows)
        stayed = set(rows._tiers[0].rows)
        gone = {one for one in before - stayed if one in plain}
        assert all(used[one] < used[other] for one in gone for other in stayed)
    assert rows.keys() == plain.keys()
    assert all(torch.equal(rows[client], row) for client, row in plain.items())


def test_a_client_without_a_row_is_a_key_error() -> None:
    rows = new_rows(1)
    rows[0], rows[1] = row_of(0), row_of(1)
    for client in (2, -1):
        with pytest.raises(KeyError):
            rows[client]


# Where rows rest -------------------------------------------------------------------------------------------------------------------------


def test_rows_unused_longest_go_down_one_level_after_another() -> None:
    rows = new_rows(2, 2)
    for client in range(4):
        rows[client] = row_of(client)
    assert places(rows) == [[2, 3], [0, 1], []]
    rows[2]  # reading is use, too, at every level
    rows[0]
    rows[4] = row_of(4)
    assert places(rows) == [[2, 4], [0, 3], [1]]
    rows[1] = row_of(1)  # what is written comes up
    assert places(rows) == [[4, 1], [3, 2], [0]]
    assert [rows[client].tolist() for client in range(5)] == [row_of(client).tolist() for client in range(5)]


def test_reading_moves_nothing() -> None:
    rows = new_rows(1)
    rows[0], rows[1] = row_of(0), row_of(1)
    for _ in range(2):
        assert torch.equal(rows[0], row_of(0))
        assert places(rows) == [[1], [0]]


def test_bytes_by_place_and_what_is_at_hand() -> None:
    rows = new_rows(1)
    rows[0], rows[1], rows[2] = row_of(0), row_of(1), row_of(2)
    assert rows.bytes_by_place() == {"cpu": ROW, "disk": 2 * ROW}
    assert rows.at_hand([2]) and rows.at_hand([2, 7]) and rows.at_hand([])  # client 7 has no row to bring
    assert not rows.at_hand([2, 0])
    beside = new_rows(1, INFINITE)
    beside[0], beside[1] = row_of(0), row_of(1)
    assert beside.at_hand([1]) and not beside.at_hand([0])  # host memory is not the fastest there


def test_a_budget_is_shared_out() -> None:
    assert Budget(8.0, 16.0).share(0.25) == Budget(2.0, 4.0)


@pytest.mark.parametrize("limits", [(0,), (2,), (1, 1)])
def test_the_file_does_not_grow_with_rewriting(limits: tuple[float, ...]) -> None:
    rows = new_rows(*limits)
    for time in range(100):
        for client in range(5):
            rows[client] = row_of(10 * time + client)
    assert file_size(rows) <= 5 * ROW
    assert [rows[client][0].item() for client in range(5)] == [990, 991, 992, 993, 994]


def test_the_place_of_a_forgotten_row_is_the_next_one_s() -> None:
    rows = new_rows(0)
    for client in range(3):
        rows[client] = row_of(client)
    del rows[1]
    rows[7] = row_of(7)
    assert file_size(rows) == 3 * ROW
    assert [rows[client][0].item() for client in (0, 7, 2)] == [0, 7, 2]


@pytest.mark.parametrize("limits", [(0,), (1,), (INFINITE,), (1, 1), (INFINITE, INFINITE)])
def test_rows_are_copied(limits: tuple[float, ...]) -> None:
    """What happens to their source later is nothing to them, and none of it stays in memory for them."""
    rows = new_rows(*limits)
    stack = torch.stack([row_of(client) for client in range(3)]).requires_grad_()
    for client in range(3):
        rows[client] = stack[client]
    with torch.no_grad():
        stack.fill_(-1.0)
    for client in range(3):
        assert torch.equal(rows[client], row_of(client))
        assert not rows[client].requires_grad
        assert rows[client].untyped_storage().nbytes() == ROW


@pytest.mark.parametrize("limits", [(0,), (INFINITE,), (0, 0)])
def test_rows_without_numbers(limits: tuple[float, ...]) -> None:
    """Of a method without private tensors: they say who has trained and take no room."""
    rows = new_rows(*limits, width=0)
    for client in (3, 1):
        rows[client] = torch.empty(4, 0)[client]
    assert sorted(rows) == [1, 3] and len(rows) == 2 and 2 not in rows
    assert rows[3].shape == (0,) and rows[3].dtype == torch.float32
    assert set(rows.bytes_by_place().values()) == {0}
    del rows[3]
    assert list(rows) == [1]


def test_without_rows_beyond_memory_there_is_no_file() -> None:
    rows = new_rows(2)
    rows[0] = row_of(0)
    assert rows._file._file is None


# A full disk -----------------------------------------------------------------------------------------------------------------------------


class FullFile:
    """A file on a disk without room."""

    def seek(self, place: int) -> int:
        return place

    def write(self, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("first_try", ["opening", "writing"])
def test_a_full_disk_is_one_sentence_that_says_what_to_raise(monkeypatch: pytest.MonkeyPatch, first_try: str) -> None:
    def temporary_file(**_: Any) -> FullFile:
        if first_try == "opening":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return FullFile()

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary_file)
    rows = new_rows(1)
    rows[0] = row_of(0)  # fits into memory
    with pytest.raises(UserError) as error:
        rows[1] = row_of(1)
    message = str(error.value)
    assert message.startswith("federation.host_gb: ") and "raise federation.host_gb" in message
    assert os.strerror(errno.ENOSPC) in message and tempfile.gettempdir() in message
    assert "\n" not in message


def test_a_file_reads_what_it_was_given() -> None:
    file = RowFile(WIDTH)
    for client in (5, 2, 9):
        file.write(client, row_of(client))
    file.forget(2)
    file.forget(2)
    assert [file.read(client).tolist() for client in (9, 5)] == [row_of(9).tolist(), row_of(5).tolist()]
    with pytest.raises(KeyError):
        file.read(2)


# Two threads -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [(0,), (2,), (1, 1)])
def test_two_threads_read_and_write_at_once(limits: tuple[float, ...]) -> None:
    """While one thread rewrites all rows, the other finds each of them there, and of the right client."""
    rows = new_rows(*limits)
    clients, turns, faults = 4, 300, list[str]()

    def write(turn: int) -> None:
        for client in range(clients):
            rows[client] = torch.full((WIDTH,), float(turn * clients + client))

    def read() -> None:
        while not done.is_set():
            for client in range(clients):
                if client not in rows or len(rows) != clients:
                    faults.append(f"{client} is missing")
                elif any(number % clients != client for number in rows[client].tolist()):
                    faults.append(f"{client} reads the row of another")

    done, pause = threading.Event(), sys.getswitchinterval()
    write(0)
    reader = threading.Thread(target=read)
    sys.setswitchinterval(1e-6)
    try:
        reader.start()
        for turn in range(turns):
            write(turn)
    finally:
        done.set()
        reader.join()
        sys.setswitchinterval(pause)
    assert not faults, faults[:3]
    assert [rows[client][0].item() for client in range(clients)] == [clients * (turns - 1) + client for client in range(clients)]
