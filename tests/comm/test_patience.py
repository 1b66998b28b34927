"""Calls that do not come back, and a store whose process is frozen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from pfedmma.comm.missing_ranks import RollCall
from pfedmma.comm.patience import Silence, within

KEEP = """
import sys, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


def test_what_a_call_returns_or_raises() -> None:
    assert within(5.0, lambda: 7) == 7
    assert within(0.0, lambda: None) is None
    with pytest.raises(KeyError, match="gone"):
        within(5.0, lambda: {}["gone"])


def test_a_call_that_does_not_come_back() -> None:
    begin = time.monotonic()
    with pytest.raises(Silence, match=r"within 0\.2 s"):
        within(0.2, lambda: time.sleep(30))
    assert time.monotonic() - begin < 20


@pytest.fixture
def keeper() -> Iterator[subprocess.Popen[str]]:
    """A process that keeps a store; its port is the first line it says."""
    process = subprocess.Popen([sys.executable, "-c", KEEP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def test_a_frozen_store_is_not_waited_for(keeper: subprocess.Popen[str]) -> None:
    assert keeper.stdout is not None
    roll = RollCall(dist.TCPStore("127.0.0.1", int(keeper.stdout.readline()), is_master=False), 0, 2)
    assert roll.missing(1, 1.0) == [1]
    os.kill(keeper.pid, signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(Silence):
        roll.missing(2, 1.0)
    with pytest.raises(RuntimeError):  # another call while the first one hangs
        roll.missing(3, 1.0)
    assert time.monotonic() - begin < 30
