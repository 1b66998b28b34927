"""``make help`` shows every target, and what the targets run is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_help_shows_every_target() -> None:
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    lines = [line.split(maxsplit=2) for line in shown.splitlines()]
    assert [target for _, target, _ in lines] == phony.split()
    assert all(line[0] == "make" and len(line) == 3 for line in lines)


def test_what_it_runs_is_there() -> None:
    files = re.findall(r"(?:launch|benchmarks|tests)/[\w/]+\.py", MAKEFILE)
    assert files and all((ROOT / file).is_file() for file in files)
    modules = re.findall(r"-m (tests[\w.]+)", MAKEFILE)
    assert modules and all((ROOT / f"{module.replace('.', '/')}.py").is_file() for module in modules)


def test_continuous_integration_runs_targets_that_are_there() -> None:
    targets = re.findall(r"^make ([a-z-]+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert "test" in targets and "demo" in targets
    assert all(re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) for target in targets)
