"""Programs in network namespaces, as far as a machine without root can try it."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from pfedmma.system.errors import UserError
from tests.benchmarks.programs import LIMIT, ROOT

pytestmark = pytest.mark.timeout(LIMIT)


@pytest.fixture
def namespaces(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("namespaces")


def test_without_root_it_says_so(namespaces: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/sbin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="need root"):
        namespaces.require_namespaces()


def python(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code])


def test_the_rank_that_fails_first_is_found(namespaces: ModuleType) -> None:
    processes = [python("import time; time.sleep(1000)"), python("raise SystemExit(3)")]
    assert namespaces.await_all(processes, time.monotonic() + LIMIT) == 1
    assert namespaces.await_all(processes[:1], time.monotonic()) == 0, "it is not done"
    processes[0].kill()
    processes[0].wait()
    assert namespaces.await_all([python("pass"), python("pass")], time.monotonic() + LIMIT) is None


@pytest.mark.parametrize(
    ("output", "said"),
    [("", "it said nothing"), ("a warning\nerror: no disk\nlauncher: bye\n", "no disk"), ("Traceback\nValueError: 3\n", "ValueError: 3")],
)
def test_why_a_program_failed(namespaces: ModuleType, tmp_path: Path, output: str, said: str) -> None:
    file = tmp_path / "output.txt"
    file.write_text(output, encoding="utf-8")
    assert namespaces.why(file) == said
