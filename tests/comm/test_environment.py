"""What launchers say in environment variables."""

from __future__ import annotations

import os

import pytest
import torch.distributed as dist

from pfedmma.comm import environment
from pfedmma.comm.environment import Launch
from pfedmma.comm.world import DistributedConfig, open_world
from pfedmma.system.errors import UserError
from tests.support.programs import python


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*environment.NAMES, "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher() -> None:
    assert Launch.from_environment() is None


@pytest.mark.parametrize("empty", ["", "  "])
@pytest.mark.parametrize("name", environment.NAMES)
def test_an_empty_variable_is_an_unset_one(name: str, empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, empty)
    assert Launch.from_environment() is None
    environment.forget_empty()
    assert name not in os.environ


def test_what_a_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert Launch.from_environment() == Launch(3, 4, 1, 2)


@pytest.mark.parametrize("garbage", ["two", "1.5", "-1", "0x2", "٢"])
@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_garbage_is_named(name: str, garbage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv(name, garbage)
    with pytest.raises(UserError, match=f"^{name}: .* no whole number"):
        Launch.from_environment()


def test_a_rank_beyond_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"RANK: .*rank 2 of WORLD_SIZE=2"):
        Launch.from_environment()


def test_an_address_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="MASTER_ADDR"):
        environment.store_address()
    monkeypatch.setenv("MASTER_ADDR", "node7")
    assert environment.store_address() == ("node7", environment.DEFAULT_PORT)
    monkeypatch.setenv("MASTER_PORT", "http")
    with pytest.raises(UserError, match="MASTER_PORT"):
        environment.store_address()


@pytest.mark.parametrize("name", environment.NAMES)
def test_a_world_of_one_with_an_empty_variable(name: str) -> None:
    """As accelerate reads them, too."""
    code = "from pfedmma.comm.world import *; print(open_world(DistributedConfig(device='cpu')).size)"
    done = python(["-c", code], env={**os.environ, name: ""})
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr


@pytest.mark.parametrize(("asked", "said"), [("bf16", True), ("fp16", True), ("fp8", True), ("no", False), ("", False)])
def test_a_mixed_precision_asked_of_accelerate(
    asked: str, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    open_world(DistributedConfig(device="cpu"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == said
    assert all(f"mixed_precision '{asked}'" in line and "backbone.precision" in line for line in lines)


def test_a_rank_alone_needs_no_address() -> None:
    """A launcher's single rank, or one left over in a shell."""
    code = "from pfedmma.comm.world import *; print(open_world(DistributedConfig(device='cpu')).size)"
    done = python(["-c", code], env={**os.environ, "LOCAL_RANK": "0"})
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr


def test_a_rank_alone_may_be_launched_twice_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes what it has opened."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        world = open_world(DistributedConfig(device="cpu"))
        assert (world.rank, world.size) == (0, 1) and dist.is_initialized()
        world.close()
        assert not dist.is_initialized()
