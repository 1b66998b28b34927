"""A rank that sums with the others, again and again, and writes its process ids beside FOLDER's other ranks' when it has begun.

RANK=0 WORLD_SIZE=2 ... python -m tests.failures.summing FOLDER TIMEOUT INIT_METHOD
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from pfedmma.comm.world import DistributedConfig, open_world
from pfedmma.system.errors import run_main

LONG = 600.0  # seconds; nobody waits for it


def main() -> None:
    folder, timeout, init_method = sys.argv[1:]
    world = open_world(DistributedConfig(device="cpu", timeout=float(timeout), init_method=init_method))
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        total = float(world.sum(torch.ones(1), "metrics"))
        assert total == world.size, f"a collective that failed was taken for finished: {total}"
        mark = Path(folder) / f"rank-{world.rank}"
        if not mark.exists():
            mark.with_suffix(".new").write_text(f"{os.getpid()} {os.getppid()}")
            mark.with_suffix(".new").rename(mark)
        time.sleep(0.05)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_main(main)
