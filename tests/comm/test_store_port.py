"""The port of the store that rank 0 keeps is open on the one interface that the launcher has named, where that is an address."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch

from pfedmma.comm.rendezvous import bound_socket
from pfedmma.comm.world import DistributedConfig, open_world
from tests.support.ranks import run_ranks


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_of_this_machine(host: str) -> None:
    bound = bound_socket(host, 0)
    assert bound is not None
    with bound:
        assert bound.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["node7", "node7.example.org", "192.0.2.7"])
def test_a_name_and_an_address_of_another_machine_are_left_to_torch(host: str) -> None:
    assert bound_socket(host, 0) is None


def test_a_port_that_is_taken_is_left_to_torch() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert bound_socket("127.0.0.1", taken.getsockname()[1]) is None


def meet_at(meeting: list[str], host: str, port: int) -> tuple[float, bool]:
    """The sum over the ranks, and whether the store's port is open on another address of this machine."""
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
    world = open_world(DistributedConfig(device="cpu", timeout=30.0))
    total = float(world.sum(torch.ones(1), "metrics"))
    with socket.socket() as other:
        opened = other.connect_ex(("127.0.0.2", port)) == 0
    world.wait("end")
    world.close()
    return total, opened


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_ranks_of_one_machine_open_no_port_to_others(host: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.2", 0))
        except OSError:
            pytest.skip("this system has one loopback address")
    ended = run_ranks(tmp_path / "meet", 2, meet_at, host, free_port())
    assert [(rank.status, rank.value) for rank in ended] == [(0, (2.0, False))] * 2, ended[0].stderr


def test_ranks_that_meet_at_a_name(tmp_path: Path) -> None:
    """As torch does, on all interfaces: other machines may know the name by another address."""
    name = socket.gethostname()
    try:
        socket.create_server((name, 0)).close()
    except OSError:
        pytest.skip("this machine does not know its own name")
    ended = run_ranks(tmp_path / "meet", 2, meet_at, name, free_port())
    assert [(rank.status, rank.value[0]) for rank in ended] == [(0, 2.0)] * 2, ended[0].stderr


def test_an_address_that_is_not_told(tmp_path: Path) -> None:
    ended = run_ranks(tmp_path / "meet", 2, meet_without_address)
    assert all(rank.status == 2 and "MASTER_ADDR" in rank.stderr and "Traceback" not in rank.stderr for rank in ended), ended[0].stderr


def meet_without_address(meeting: list[str]) -> None:
    open_world(DistributedConfig(device="cpu", timeout=5.0))
