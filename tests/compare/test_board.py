"""What is shown of runs that are going on: lines and estimates, from folders with made-up rounds."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pfedmma.compare import board
from pfedmma.compare.board import Board, Durations, until_all_done
from pfedmma.compare.grid import Plan
from pfedmma.config import schema as configuration
from pfedmma.records.folder import RunFolder
from tests.support.reported import accuracy, round_


@dataclass
class Run:
    """A run that began at ``begun``, of 10 rounds, evaluated after the fifth and the last."""

    folder: Path
    name: str
    begun: float

    @property
    def plan(self) -> Plan:
        tree = {"run_dir": str(self.folder / self.name), "federation": {"rounds": 10}, "evaluation": {"every": 5}}
        return Plan("pfedmma", "shapes", configuration.resolve(tree))

    @property
    def log(self) -> Path:
        return self.folder / "plans" / f"{self.name}.log"

    def has_done(self, *rounds: int) -> None:
        """Each in 2 s, and 10 s of testing."""
        (self.folder / self.name).mkdir(exist_ok=True)
        with open(self.folder / self.name / "metrics.jsonl", "a", encoding="utf-8") as file:
            for number in rounds:
                line = round_(number, 4, accuracy(70.0) if number == 5 else None)
                test = 10.0 if number == 5 else 0.0
                file.write(json.dumps(line | {"seconds": {"evaluate": test, "total": 2.0 + test}}) + "\n")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(board.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("active", "waiting", "jobs", "seconds"),
    [
        ([5.0], [], 1, 5.0),
        ([5.0], [10.0, 20.0], 1, 35.0),
        ([5.0, 1.0], [10.0], 2, 11.0),  # where 1 is free first
        ([5.0, 1.0], [10.0, 10.0], 2, 15.0),
        ([5.0, 1.0], [2.0, 10.0], 2, 13.0),
        ([], [10.0] * 3, 2, 20.0),
    ],
)
def test_waiting_runs_start_where_a_slot_is_free_first(active: list[float], waiting: list[float], jobs: int, seconds: float) -> None:
    assert until_all_done(active, waiting, jobs) == seconds


def plan(method: str, dataset: str, shots: int) -> Plan:
    return Plan(method, dataset, configuration.resolve({"run_dir": "x", "data": {"shots": shots}}))


def test_a_run_is_expected_to_take_what_those_most_like_it_took() -> None:
    """A method may take ten times as long as another; those of the cheap ones say little about it."""
    took = Durations()
    assert took.usual(plan("fedmgp", "shapes", 2)) is None
    for method, shots, seconds in (("local", 2, 10.0), ("local", 2, 20.0), ("local", 16, 90.0), ("fedmgp", 2, 200.0)):
        took.add(plan(method, "shapes", shots), seconds)
    assert took.usual(plan("local", "shapes", 2)) == 15.0
    assert took.usual(plan("local", "shapes", 4)) == took.usual(plan("local", "pacs", 2)) == 40.0
    assert took.usual(plan("fedmgp", "shapes", 16)) == 200.0
    assert took.usual(plan("pfedmma", "shapes", 2)) == 80.0


def test_the_rest_is_estimated_method_by_method() -> None:
    took = Durations()
    for method, seconds in (("local", 10.0), ("fedmgp", 200.0)):
        took.add(plan(method, "shapes", 2), seconds)
    waiting = [plan("local", "shapes", 2)] * 3
    shown = Board(total=5, jobs=1, done=2, waiting=waiting, took=took)
    assert shown.left() == 30.0
    waiting.append(plan("fedmgp", "shapes", 2))
    assert shown.left() == 230.0


def test_a_line_for_each_run_and_one_for_all(tmp_path: Path, clock: list[float]) -> None:
    runs = [Run(tmp_path, name, 0.0) for name in ("one", "two")]
    others = [Run(tmp_path, name, 0.0).plan for name in ("three", "four")]
    shown = Board(total=4, jobs=2, waiting=others)
    for slot, run in enumerate(runs):
        shown.started(slot, run)
    clock[0] = 15.0
    head = f"0/4 runs done, -:--:-- left; logs in {tmp_path / 'plans'}"
    assert shown.lines() == [head, "  round 0/10  -:--:-- left  one.log", "  round 0/10  -:--:-- left  two.log"]
    runs[0].has_done(1, 2)  # 8 rounds are left, and tests that nothing is known of: 31 s for the whole, so another needs 16 from now
    assert shown.lines() == [
        head.replace("-:--:--", "0:00:47"),  # then another in each slot
        "  round 2/10  0:00:16+ left  one.log",
        "  round 0/10  0:00:16 left  two.log",
    ]
    runs[0].has_done(3, 4, 5)
    runs[1].has_done(1)
    clock[0] = 20.0
    assert shown.lines()[1:] == ["  round 5/10  0:00:20 left  one.log", "  round 1/10  0:00:18+ left  two.log"]
    clock[0] = 23.0  # time goes by
    assert shown.lines()[1:] == ["  round 5/10  0:00:17 left  one.log", "  round 1/10  0:00:15+ left  two.log"]
    shown.ended(0, well=True)
    shown.failed = 1
    assert shown.lines()[0].startswith("1/4 runs done, 1 failed, 0:00:38 left; ")  # 23 s for each of two others, one now and one in 15 s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_lines_are_there_at_a_terminal_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line about a run that is over stands above them; at the end they are gone."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    shown = []
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stdout", stream)
        with Board(total=1, jobs=1) as lines:
            lines.started(0, Run(tmp_path, "a-run-with-a-name-that-is-as-long-as-names-of-runs-can-be-and-a-little-longer", 0.0))
            lines.look()
            print("a line")
        shown.append(stream.getvalue())
    assert shown[0] == "a line\n"
    text = "".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown[1]).split())
    assert "a-run-with-a-name-that-is-as-long-as-names-of-runs-can-be-and-a-little-longer.log" in text and "…" not in text
    assert shown[1].index("a line") < shown[1].rindex("0/1 runs done") and shown[1].endswith("\x1b[2K")


def test_a_run_that_began_anew_is_read_anew(tmp_path: Path) -> None:
    run = Run(tmp_path, "one", 0.0)
    folder = RunFolder(run.plan.config.run_dir)
    assert folder.new_rounds(0) == ([], 0)
    run.has_done(1, 2)
    rows, offset = folder.new_rounds(0)
    assert [row.round for row in rows] == [1, 2] and offset == folder.metrics.stat().st_size
    assert folder.new_rounds(offset) == ([], offset)
    with open(folder.metrics, "a") as file:
        file.write('{"round": 3')  # half a line, of which the other half is to come
    assert folder.new_rounds(offset) == ([], offset)
    with open(folder.metrics, "a") as file:
        file.write("}\n")  # and it is of no round
    assert folder.new_rounds(offset) == ([], offset + 13)
    folder.metrics.unlink()
    run.has_done(1)
    rows, offset = folder.new_rounds(offset)
    assert [row.round for row in rows] == [1] and offset == folder.metrics.stat().st_size
