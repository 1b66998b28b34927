"""Which ranks are on one node is found out by what they see, and known to all of them."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from pfedmma.comm import node
from pfedmma.comm.node import Nodes
from pfedmma.comm.world import World, open_world
from pfedmma.config import schema
from tests.support.ranks import run_ranks, values_of


def meet(meeting: list[str], temporary: str, hosts: list[str]) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...], str, str | None]:
    """The nodes, this rank's own, its folder's name, and what the first rank of its node has written there."""
    tempfile.tempdir = temporary
    world = open_world(schema.load(None, meeting).distributed)
    socket.gethostname = lambda: hosts[world.rank]
    nodes = Nodes.from_world(world)
    for time in ("first", "second"):  # of the same name, one after another
        with nodes.shared_folder("notes", lambda folder, time=time: (folder / "note").write_text(f"{time} by {world.rank}")) as folder:
            read = folder and (folder / "note").read_text()
    world.wait("end")
    world.close()
    return nodes.ranks, nodes.own, nodes.name, read


@pytest.mark.parametrize(
    ("hosts", "ranks", "read"),
    [
        (["one", "two", "one"], ((0, 2), (1,)), ["second by 0", None, "second by 0"]),
        (["one", "two", "three"], ((0,), (1,), (2,)), [None] * 3),
        (["one"] * 3, ((0, 1, 2),), ["second by 0"] * 3),
    ],
)
def test_all_ranks_know_all_nodes(tmp_path: Path, hosts: list[str], ranks: tuple[tuple[int, ...], ...], read: list[str | None]) -> None:
    (tmp_path / "temporary").mkdir()
    met = values_of(run_ranks(tmp_path / "meet", 3, meet, str(tmp_path / "temporary"), hosts))
    assert [one[0] for one in met] == [ranks] * 3
    assert [one[1] for one in met] == [next(node for node in ranks if rank in node) for rank in range(3)]
    assert len({one[2] for one in met}) == len(ranks), "each node has a name of its own"
    assert [one[3] for one in met] == read
    assert not list((tmp_path / "temporary").iterdir())


def test_a_rank_alone_shares_nothing_and_sends_nothing() -> None:
    world = World(0, 1, node.torch.device("cpu"))
    nodes = Nodes.from_world(world)
    with nodes.shared_folder("notes", lambda folder: pytest.fail("nobody reads it")) as folder:
        assert folder is None and nodes.own == (0,) and nodes.ranks == ((0,),)
    assert world.ledger.total == {}


@pytest.mark.parametrize("what", ["gethostname", "geteuid", "readlink", "stat"])
def test_what_tells_surroundings_apart(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = node._surroundings()
    assert before == node._surroundings()
    if what == "stat":
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # another mount, another folder
    else:
        monkeypatch.setattr(socket if what == "gethostname" else os, what, lambda *args: "other")
    assert node._surroundings() != before
