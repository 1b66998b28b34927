"""Help and lists of runs import nothing that only a run needs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SLOW = ("torchvision", "open_clip", "timm", "accelerate", "torch._dynamo")  # half of what a run takes to start, and more
COMMANDS = ["train", "compare", "evaluate", "export", "predict", "describe", "cost", "report"]
LIST = "pfedmma.compare grid.yaml --dry-run"
SHOW = """
import runpy, sys
for line in sys.argv[1:]:
    module, *sys.argv[1:] = line.split()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, end.code
    print("imported:", *[name for name in {slow} if name in sys.modules])
"""
GRID = "methods: [pfedmma]\nseeds: [0]\ndatasets:\n  drawn: {data.name: shapes}\n"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Which of the slow libraries one process has imported after each of its commands: the first to have any is to blame."""
    folder = tmp_path_factory.mktemp("imports")
    (folder / "grid.yaml").write_text(GRID, encoding="utf-8")
    lines = [*[f"pfedmma.{name} --help" for name in COMMANDS], LIST]
    program = [sys.executable, "-c", SHOW.replace("{slow}", repr(SLOW)), *lines]
    done = subprocess.run(program, capture_output=True, text=True, cwd=folder, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    shown = [line.removeprefix("imported:").split() for line in done.stdout.splitlines() if line.startswith("imported:")]
    return dict(zip(lines, shown, strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_no_slow_library(name: str, imported: dict[str, list[str]]) -> None:
    assert imported[f"pfedmma.{name} --help"] == []


def test_a_list_of_runs_imports_no_slow_library(imported: dict[str, list[str]]) -> None:
    assert imported[LIST] == []
