"""Help and lists of runs import nothing that only a run needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = ("torchvision", "open_clip", "timm", "accelerate", "torch._dynamo")  # half of what a run takes to start, and more
SHOW = """
import runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
print("imported:", *[name for name in {slow} if name in sys.modules])
"""
GRID = "methods: [pfedmma]\nseeds: [0]\ndatasets:\n  drawn: {data.name: shapes}\n"


def imported(tmp_path: Path, *command: str) -> list[str]:
    """Which of the slow libraries a command has imported when it ends."""
    program = [sys.executable, "-c", SHOW.replace("{slow}", repr(SLOW)), *command]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].removeprefix("imported:").split()


@pytest.mark.parametrize("name", ["train", "compare", "evaluate", "export", "predict", "describe", "report"])
def test_help_imports_no_slow_library(name: str, tmp_path: Path) -> None:
    assert imported(tmp_path, f"pfedmma.{name}", "--help") == []


def test_a_list_of_runs_imports_no_slow_library(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID, encoding="utf-8")
    assert imported(tmp_path, "pfedmma.compare", "grid.yaml", "--dry-run") == []
