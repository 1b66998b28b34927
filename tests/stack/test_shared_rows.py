"""Rows that the ranks of a node share: to each of them one dictionary, whoever wrote what; and the state of clients in whole runs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from torch import Tensor

from pfedmma.stack.offload import Tier
from pfedmma.stack.shared_rows import SharedRows, create_rows
from pfedmma.system.errors import RankFailure

CPU = torch.device("cpu")
WIDTH = 3
ROW = 4 * WIDTH  # bytes
CLIENTS = [1, 4, 6, 9]


def two_ranks(folder: Path, width: int = WIDTH, near: float | None = None) -> list[SharedRows]:
    """What each of two ranks has of one file; ``near``: of how many rows each keeps copies, as on a GPU (they lie in host memory here)."""
    path = folder / f"rows-{len(list(folder.iterdir()))}"
    create_rows(path, len(CLIENTS), width)
    both = [SharedRows(path, CLIENTS, width, CPU, 0.0) for _ in range(2)]
    if near is not None:
        for rows in both:
            rows.device = torch.device("meta")  # for all but the copies themselves
            rows._near = Tier(CPU, ROW * near)
    return both


def row_of(value: float) -> Tensor:
    return torch.arange(WIDTH) + float(value)


@pytest.mark.parametrize("near", [None, 0, 1, 2.5, 9])
@trials(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["set", "get", "iterate"]), st.sampled_from(CLIENTS)), max_size=30))
def test_it_is_one_dictionary_for_both(
    tmp_path_factory: pytest.TempPathFactory, near: float | None, actions: list[tuple[int, str, int]]
) -> None:
    ranks, plain = two_ranks(tmp_path_factory.mktemp("rows"), near=near), dict[int, Tensor]()
    for time, (rank, action, client) in enumerate(actions):
        rows = ranks[rank]
        if action == "set":
            plain[client] = row_of(100 * time)
            rows[client] = plain[client]
        elif action == "get":
            found = rows.get(client)
            assert (found is None) == (client not in plain) == (client not in rows)
            assert found is None or torch.equal(found, plain[client])
        else:
            assert list(rows) == sorted(plain) and len(rows) == len(plain)
        assert rows._near.held == ROW * len(rows._near.rows) <= rows._near.limit
    for rows in ranks:
        assert rows.keys() == plain.keys() and all(torch.equal(rows[client], row) for client, row in plain.items())


def test_a_client_of_another_node_has_no_row(tmp_path: Path) -> None:
    rows, _ = two_ranks(tmp_path)
    assert 2 not in rows and rows.get(2) is None
    for client in (1, 2):
        with pytest.raises(KeyError):
            rows[client]
    with pytest.raises(KeyError):
        rows[2] = row_of(0)


def test_a_rank_reads_its_own_copy_until_another_one_writes(tmp_path: Path) -> None:
    one, other = two_ranks(tmp_path, near=2)
    one[4], one[6] = row_of(0), row_of(1)
    assert one.at_hand([4, 6, 9]) and not other.at_hand([4]) and other.at_hand([9])  # client 9 has no row to bring
    assert one[4].data_ptr() == one._near.rows[4].data_ptr()
    other[4] = row_of(5)
    assert not one.at_hand([4]) and one.at_hand([6]) and other.at_hand([4])
    assert torch.equal(one[4], row_of(5)) and torch.equal(other[6], row_of(1))
    one[4] = row_of(7)
    assert one.at_hand([4]) and torch.equal(other[4], row_of(7))
    one[9] = row_of(2)  # a third one: that used longest ago is no longer near
    assert not one.at_hand([6]) and torch.equal(one[6], row_of(1))
    assert one.bytes_by_place() == {"meta": 2 * ROW, "shared": 3 * ROW}
    assert other.bytes_by_place()["shared"] == 3 * ROW


def test_on_a_cpu_there_is_one_copy(tmp_path: Path) -> None:
    one, other = two_ranks(tmp_path)
    one[4] = row_of(0)
    assert one.at_hand([4]) and other.at_hand([4]) and not one._near.rows
    assert one.bytes_by_place() == other.bytes_by_place() == {"shared": ROW}


@pytest.mark.parametrize("near", [None, 2])
def test_rows_are_copied(tmp_path: Path, near: float | None) -> None:
    one, other = two_ranks(tmp_path, near=near)
    stack = torch.stack([row_of(0), row_of(1)]).requires_grad_()
    one[4] = stack[1]
    with torch.no_grad():
        stack.fill_(-1.0)
    for rows in (one, other):
        assert torch.equal(rows[4], row_of(1)) and not rows[4].requires_grad


def test_rows_without_numbers(tmp_path: Path) -> None:
    """Of a method without private tensors: they say who has trained."""
    one, other = two_ranks(tmp_path, width=0)
    one[6] = torch.empty(0)
    assert list(other) == [6] and other[6].shape == (0,) and other[6].dtype == torch.float32
    assert other.bytes_by_place() == {"shared": 0}


def test_the_file_is_its_owners_alone_and_takes_room_as_it_is_used(tmp_path: Path) -> None:
    """100,000 registered clients of pFedMMA are 266 GB, if all of them ever train."""
    create_rows(tmp_path / "rows", 100_000, 666_112)
    status = (tmp_path / "rows").stat()
    assert status.st_mode & 0o777 == 0o600 and status.st_size > 266e9 and 512 * status.st_blocks < 2e6


def test_a_full_disk_is_one_sentence_and_leaves_the_row_unwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = two_ranks(tmp_path)

    class Full:
        def seek(self, place: int) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(one._file, "_file", Full())
    with pytest.raises(RankFailure, match=r"^cannot keep the state of clients in .* \(No space left on device\); set TMPDIR to a folder"):
        one[4] = row_of(0)
    assert 4 not in one and 4 not in other
