"""The scaling benchmark: what it counts, and that its line is fitted to its rows. How long anything took is not looked at."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.programs import LIMIT, ROOT, one_sentence, report_of, run
from tests.support.programs import python

pytestmark = pytest.mark.timeout(LIMIT)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What a measure of the program finds, here, with forked processes of its own."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    scaling = importlib.import_module("scaling")

    def forked(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[0] == sys.executable
        return python(command[1:], env=env, draw={"train": 16})

    def found(measure: str, *options: str) -> dict[str, Any]:
        monkeypatch.setattr(scaling.subprocess, "run", forked)
        monkeypatch.setattr(sys, "argv", ["scaling.py", measure, *options, "--device", "cpu", "--json", str(tmp_path / "report.json")])
        scaling.main()
        report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
        assert report["date"] and report["measured"]
        return report[measure]

    return found


def test_overhead(measured: Callable[..., dict[str, Any]]) -> None:
    (row,) = measured("overhead", "--ranks", "1", "--rounds", "2")["rows"]
    assert row["ranks"] == 1 and row["exchange_ms_p50"] > 0
    assert 0 < row["round_ms_least"] <= row["round_ms_p50"] <= row["round_ms_p95"], "quantiles of the same rounds"
    assert 10 <= row["clients_with_state"] <= 40, "4 rounds of 10, of which some come again"


def test_linear(measured: Callable[..., dict[str, Any]]) -> None:
    found = measured("linear", "--rounds", "1", "--participants", "8")
    rows = found["rows"]
    assert [(row["participants"], row["images"]) for row in rows] == [(4, 16), (8, 16), (8, 32), (8, 64)]
    seconds = [row["round_s"] for row in rows]
    slope, begin = np.polyfit([row["participants"] * row["images"] for row in rows], seconds, 1)
    assert found["s_an_image"] == pytest.approx(slope) and found["fixed_s"] == pytest.approx(begin)
    assert found["fixed_share_of_largest"] == pytest.approx(begin / max(seconds))


def test_registered(measured: Callable[..., dict[str, Any]]) -> None:
    few, many = measured("registered", "--rounds", "1", "--clients", "100")["rows"]
    assert (few["registered"], many["registered"]) == (10, 100)
    assert sum(few["state_bytes"].values()) < sum(many["state_bytes"].values()), "of clients that have trained"
    assert min(few["round_s"], few["round_without_training_ms"]) > 0 and few["resident_bytes"] > 10**8


def test_ranks(measured: Callable[..., dict[str, Any]]) -> None:
    (row,) = measured("ranks", "--ranks", "1", "--rounds", "1", "--participants", "2")["rows"]
    assert row["ranks"] == 1 and row["round_s"] > 0 and 0 <= row["exchange_share"] <= 1


@pytest.mark.slow
def test_long_on_two_ranks() -> None:
    """The program as a user starts it, and its launcher."""
    report = report_of(run("scaling.py", "long", "--ranks", "2", "--rounds", "4", "--clients", "1000", "--participants", "4"))
    assert report["date"] and report["measured"]
    found = report["long"]
    assert (found["ranks"], found["registered"], found["participants"]) == (2, 1000, 4)
    assert [len(memory) for memory in found["resident_bytes"]] == [4, 4] and len(found["round_s"]) == 4
    assert len(found["kb_a_round_second_half"]) == 2 and min(found["round_s"]) > 0


@pytest.mark.parametrize(("options", "words"), [(("width",), "there is no measure 'width'"), (("ranks", "--ranks", "0"), "--ranks: '0'")])
def test_bad_options_end_it_with_one_line(options: tuple[str, ...], words: str) -> None:
    one_sentence(run("scaling.py", *options), words)
