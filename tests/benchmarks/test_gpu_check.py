"""The check for machines with GPUs, as far as a machine without one can try it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks.programs import LIMIT, PATIENCE, ROOT, one_sentence, run

pytestmark = pytest.mark.timeout(LIMIT)


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_check")


def test_without_a_gpu_it_says_so() -> None:
    one_sentence(run("gpu_check.py"), "needs a machine with a CUDA GPU")


def test_a_failing_part_does_not_stop_the_others(gpu_check: ModuleType, tmp_path: Path) -> None:
    say = 'print("words"); print(\'{"rate": 3}\'); print("and a launcher\'s warning")'
    commands = {
        "good": say,
        "silent": "pass",
        "broken": "raise SystemExit(3)",
        "slow": "import time; time.sleep(10**6)",
        "tests": "print('2 passed')",
    }
    parts = [
        gpu_check.Part(name, (sys.executable, "-c", code), 1.0 if name == "slow" else PATIENCE, name != "tests")
        for name, code in commands.items()
    ]
    ended = {end.name: end for end in gpu_check.run_all([*parts, parts[0]], tmp_path, 10 * PATIENCE, {"date": "today"})}
    assert {name: end.problem for name, end in ended.items()} == {
        "good": "",
        "silent": "no report on its last line",
        "broken": "exit status 3",
        "slow": "not done within 1 s",
        "tests": "",
    }
    assert ended["tests"].said == "2 passed"
    assert json.loads((tmp_path / "good.json").read_text(encoding="utf-8")) == {"date": "today", "rate": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.json", "output.txt"]
    assert [end.problem for end in gpu_check.run_all(parts[:1], tmp_path, 0.5, {})] == ["no time was left"]


def test_the_parts_fit_its_time_and_are_there(gpu_check: ModuleType) -> None:
    parts = gpu_check.all_parts(1)
    assert sum(part.limit for part in parts) <= gpu_check.BUDGET
    files = [word for part in parts for word in part.command if word.endswith(".py")]
    assert all((ROOT / file).is_file() for file in files) and "tests/gpu/test_gpu_paths.py" in files
    assert "tests/test_rng.py" in files
