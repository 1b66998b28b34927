"""The store where ranks meet is open to whoever reaches its port: nothing private may be in it.

Everything that a run writes there is read.
"""

from __future__ import annotations

import os
import re
import struct
import time
from pathlib import Path

import pytest

from pfedmma import train as command
from pfedmma.comm.world import SAY_SO_AFTER, DistributedConfig, World
from tests.support import small
from tests.support.ranks import run_ranks, train, values_of

NAME = "[0-9a-f]{16}"  # of a meeting, drawn at random
OURS = {
    r"pfedmma/meeting/(ask|heard|answer)-\d+": rf"({NAME}){{0,2}}",
    r"pfedmma/rank-\d+": r"\d+",  # how many collectives a rank has come to
}
LARGEST = 1024  # bytes of one value; an address of gloo's has some hundred


def entries(kept: bytes) -> list[tuple[str, bytes]]:
    """All that was ever written to a file of torch's FileStore, in order: length (4 bytes), key, length, value, again and again."""
    found, at = [], 0

    def read() -> bytes:
        nonlocal at
        (length,) = struct.unpack_from("=I", kept, at)
        at += 4 + length
        return kept[at - length : at]

    while at < len(kept):
        key = read().decode()
        found.append((key, read()))
    return found


def train_and_keep_the_store(meeting: list[str], settings: list[str], kept: Path) -> None:
    """A whole run in which one rank waits for the other, so that the roll is called; the store's file gets a second name."""
    real = command.open_world

    def open_world(config: DistributedConfig) -> World:
        world = real(config)
        if world.is_main:
            os.link(config.init_method.removeprefix("file://"), kept)
        else:
            time.sleep(3 * SAY_SO_AFTER)
        return world

    command.open_world = open_world
    train(meeting, settings)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    folder = tmp_path_factory.mktemp("store")
    settings = small.settings(folder / "run", "checkpoint.every=1")
    values_of(run_ranks(folder / "meet", 2, train_and_keep_the_store, settings, folder / "kept"))
    return entries((folder / "kept").read_bytes())


def test_our_own_entries_are_names_and_counters(written: list[tuple[str, bytes]]) -> None:
    ours = [(key[key.index("pfedmma/") :], value.decode()) for key, value in written if "pfedmma/" in key]
    for key, value in ours:
        assert [True for name, what in OURS.items() if re.fullmatch(name, key) and re.fullmatch(what, value)], (key, value)
    seen = {next(name for name in OURS if re.fullmatch(name, key)) for key, _ in ours}
    assert seen == set(OURS), "the run has used all of them"


def test_the_rest_are_addresses(written: list[tuple[str, bytes]]) -> None:
    """What torch and gloo write: small, a few for each rank, and no word of this run."""
    rest = [(key, value) for key, value in written if "pfedmma/" not in key]
    assert 0 < len(rest) < 60
    private = [b"run", b"shapes", b"photo", b"caltech", b"cat", b"adapter", os.fsencode(Path.home()), os.getcwd().encode()]
    for key, value in rest:
        assert len(value) <= LARGEST, key
        assert not [word for word in private if len(word) > 3 and word in key.encode() + value], (key, value)
