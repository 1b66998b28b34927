"""The long run watched from outside, short; and what its watch finds wrong."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from pfedmma.system.errors import UserError
from tests.benchmarks.programs import LIMIT, ROOT, report_of, run

pytestmark = pytest.mark.timeout(LIMIT)


@pytest.fixture
def long_run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("long_run")


@pytest.mark.slow
def test_a_short_one(tmp_path: Path) -> None:
    settings = ("evaluation.every=0", "data.shots=1")
    report = report_of(run("long_run.py", "--rounds", "6", "--ranks", "2", *settings, "--json", str(tmp_path / "report.json")))
    assert report == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["benchmark"] == "long_run" and report["date"] and report["settings"][-1] == "data.shots=1"
    assert report["rounds"] == 6 and report["looks"] >= 1 and report["metrics_bytes"] > 0
    assert len(report["ranks"]) <= 2, "those that were seen between the first round and the last"


def test_what_a_reader_would_have_met(long_run: ModuleType, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    watch = long_run.Watch(tmp_path, rounds=9)
    assert watch.read_metrics() == 0
    for rounds, text in ((2, '{"round": 1}\n{"round": 2}\n'), (3, '{"round": 3}\n')):
        with metrics.open("a") as file:
            file.write(text)
        assert watch.read_metrics() == rounds
    with metrics.open("a") as file:
        file.write('{"round": 5}\n')
    with pytest.raises(UserError, match="not in order after round 3"):
        watch.read_metrics()
    metrics.write_text('{"round": 1}\n{"rou')
    with pytest.raises(UserError, match="half-written"):
        long_run.Watch(tmp_path, rounds=9).read_metrics()
