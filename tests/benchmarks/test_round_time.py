"""The benchmark of whole rounds: its parts add up to the round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.programs import LIMIT, one_sentence, report_of, run

pytestmark = pytest.mark.timeout(LIMIT)


def test_the_parts_of_a_round_add_up(tmp_path: Path) -> None:
    sizes = ["--clients", "2", "--classes", "5", "--images-per-class", "3", "--test-images-per-class", "2", "--rounds", "2"]
    done = run("round_time.py", "--model", "tiny", *sizes, "--json", str(tmp_path / "report.json"))
    report = report_of(done)
    assert report == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["date"] and report["classes"] == {"base": 3, "novel": 2} and report["test_images"] == {"base": 6, "novel": 4}
    assert report["training_images"] == 9 and report["clients"] == 2 and len(report["rounds"]) == 2
    parts = ("input", "train", "wait", "exchange", "evaluate", "rest")
    for row in report["rounds"]:
        assert min(row[part] for part in parts) >= 0 and min(row["train"], row["evaluate"]) > 0
        assert sum(row[part] for part in parts) == pytest.approx(row["total"])
    assert report["later"] == report["rounds"][1]
    assert all(part in done.stdout for part in parts)


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--rounds", "0"), "--rounds: 0"), (("--model", "tiny", "--classes", "3", "--clients", "3"), "data.clients")],
)
def test_bad_options_end_it_with_one_line(options: tuple[str, ...], words: str) -> None:
    one_sentence(run("round_time.py", *options), words)
