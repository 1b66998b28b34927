"""The main job on the embedded default, two ranks: pFedMMA beside zero-shot CLIP, local adapters and averaging of all adapters.

``python launch/demo.py [key=value ...]``: settings go to every run. Runs lie in ``runs/demo/``; an earlier demo is replaced.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs/demo")
METHODS = ("pfedmma", "local", "fedavg_mma")  # the zero-shot reference is part of each run


def train(method: str, settings: list[str]) -> Path:
    """One run under torchrun; its folder."""
    run_dir = RUNS / method
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "pfedmma.train"]
    command += ["--config", str(ROOT / "configs" / "demo.yaml"), f"method.name={method}", f"run_dir={run_dir}", *settings]
    subprocess.run(command, check=True)
    return run_dir


def main() -> None:
    start = time.perf_counter()
    shutil.rmtree(RUNS, ignore_errors=True)
    folders = [train(method, sys.argv[1:]) for method in METHODS]
    subprocess.run([sys.executable, "-m", "pfedmma.report", *map(str, folders)], check=True)
    print(f"{time.perf_counter() - start:.0f} s; each run's numbers are in {RUNS}/*/summary.json")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
