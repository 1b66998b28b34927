"""Benchmarks run as a user runs them, on sizes at which all that counts is whether the report adds up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.programs import python

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PATIENCE = 1500  # seconds that a program may take on a crowded machine; alone each takes some ten
LIMIT = 1800  # of pytest for such a test
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def environment(**more: str) -> dict[str, str]:
    """One thread, the CPU wherever the test runs, and no trace of a launcher around it."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return env | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


def run(program: str, *options: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A program of ``benchmarks/``, to its end; only a launcher is an interpreter of its own."""
    arguments = [*launcher, f"benchmarks/{program}", *options]
    if not launcher:
        return python(arguments, ROOT, environment(), draw={})
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PATIENCE)


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON on the last line, the only one that any rank has printed; it says when and on what."""
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.strip().splitlines()
    assert sum(line.startswith("{") for line in lines) == 1
    report = json.loads(lines[-1])
    assert report["cpu"] and report["device"] == "cpu" and report["versions"]["torch"]
    return report


def one_sentence(done: subprocess.CompletedProcess[str], words: str) -> None:
    """It ended with status 2 and one line that holds the words."""
    assert done.returncode == 2 and done.stderr.startswith("error: ") and words in done.stderr, done
    assert len(done.stderr.strip().splitlines()) == 1 and not done.stdout
