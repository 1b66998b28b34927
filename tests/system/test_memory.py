"""Memory that is freed is kept: an operation of the size of the one before costs no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pfedmma.system.errors import RankFailure
from pfedmma.system.memory import shortage_named
from tests.support import small
from tests.support.programs import python

PAGES = 40 * 2**20 // 4096  # of a large tensor
COUNT = f"""
import resource, sys
import torch
from pfedmma.system.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for number in range(40):
    if number == 20:  # by then the heap has the holes that it needs
        begin = faults()
    torch.ones({PAGES} * 1024)
print(faults() - begin)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_page_faults() -> None:
    counts = {}
    for mode in ("default", "keep"):
        ended = subprocess.run([sys.executable, "-c", COUNT, mode], capture_output=True, text=True, timeout=small.PATIENCE, check=True)
        counts[mode] = int(ended.stdout)
    assert counts["default"] > 19 * PAGES, "by default each tensor is mapped anew"
    assert counts["keep"] < PAGES / 10


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        ),
        MemoryError(),
    ],
)
def test_a_shortage_says_what_to_lower(error: Exception) -> None:
    with pytest.raises(RankFailure, match=r"out of memory \(.+\); lower federation.batch_size"), shortage_named():
        raise error


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes do not fit"), shortage_named():
        raise RuntimeError("shapes do not fit")


def test_a_real_shortage(tmp_path: Path) -> None:
    """A run in a process that may not have more memory ends with one line."""
    script = (
        "import resource, sys\n"
        "from pfedmma.system.errors import run_main\n"
        "from pfedmma import train\n"
        "from pfedmma.engine import cohort\n"
        "def too_much(*args):\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))\n"
        "    return cohort.torch.ones(2**33)\n"
        "cohort._train_group = too_much\n"
        "run_main(lambda: train.main(sys.argv[1:]))\n"
    )
    ended = python(["-c", script, *small.settings(tmp_path / "run")])
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: out of memory (") and len(ended.stderr.splitlines()) == 1
