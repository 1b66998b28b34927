"""What a comparison says of clients that came after the last round."""

from __future__ import annotations

import csv as reader
import io
from pathlib import Path
from typing import Any

import pytest

from pfedmma.compare import __main__ as command
from pfedmma.compare import new_clients
from pfedmma.compare.done import Done
from pfedmma.compare.grid import Plan
from pfedmma.config import schema as configuration
from tests.support.reported import met, round_row, run_summary


def done(method: str, seed: int, met_: dict[str, Any] | None, dataset: str = "shapes") -> Done:
    """A run whose new clients reach what ``met_`` says."""
    config = configuration.resolve({"seed": seed, "run_dir": f"runs/{dataset}-{method}-{seed}"})
    more = {} if met_ is None else {"new_clients": met_}
    return Done(Plan(method, dataset, config), run_summary(method=method, **more), [round_row(1)])


RUNS = [
    done("ours", 0, met((1, 3), start=50.0)),
    done("ours", 1, met((0, 2), start=54.0)),
    done("theirs", 0, met((1, 3), start=40.0)),
    done("theirs", 1, met((0, 2), start=40.0)),
]


def test_a_line_for_each_method_way_and_length() -> None:
    (sheet,) = new_clients.sheets(RUNS)
    name, rows = sheet.title, sheet.rows
    assert name == "New clients: shapes, 16 shots, tiny, base_to_novel, 2 seeds"
    assert [row[:3] for row in rows] == [
        ["zero-shot", "", ""],
        *([method, way, k] for method in ("ours", "theirs") for way in ("frozen", "free") for k in ("0", "5")),
    ]
    local = {tuple(row[:3]): row[3] for row in rows}
    assert local["zero-shot", "", ""] == "45.00 ± 0.00"
    assert local["ours", "frozen", "0"] == "52.00 ± 2.83"  # of 50 and 54
    assert local["ours", "free", "5"] == "62.00 ± 2.83"  # of 60 and 64
    assert local["theirs", "frozen", "5"] == "45.00 ± 0.00"


def test_settings_apart_and_runs_without_new_clients_left_out() -> None:
    runs = [*RUNS, done("ours", 0, met((1,), start=10.0), "cifar10"), done("theirs", 0, None, "cifar10"), done("ours", 0, None, "cifar100")]
    sheets = new_clients.sheets(runs)
    names, rows = [sheet.title for sheet in sheets], [sheet.rows for sheet in sheets]
    assert [name.split(",")[0] for name in names] == ["New clients: shapes", "New clients: cifar10"]
    assert {row[0] for row in rows[1]} == {"zero-shot", "ours"} and rows[1][1][3] == "10.00"  # one seed: no spread
    assert new_clients.sheets(runs[-2:]) == []


def test_every_run_stands_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.write(RUNS, [], tmp_path)
    lines = list(reader.DictReader(io.StringIO((tmp_path / "new_clients.csv").read_text())))
    assert len(lines) == 4 * 5
    (one,) = [x for x in lines if (x["method"], x["seed"], x["shared"], x["epochs"]) == ("ours", "1", "free", "5")]
    assert (one["setting"], one["local_percent"], one["run"]) == ("shapes, 16 shots", "64.0", "shapes-ours-1")
    assert [x["local_percent"] for x in lines if x["method"] == "zero-shot"] == ["45.0"] * 4
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| `ours` | free | 5 | 62.00 ± 2.83 |" in text and "**New clients: shapes" in text
    assert "New clients: shapes" in capsys.readouterr().out


def test_without_new_clients_there_is_no_such_file(tmp_path: Path) -> None:
    command.write([done("ours", 0, None)], [], tmp_path)
    assert not (tmp_path / "new_clients.csv").exists() and "New clients" not in (tmp_path / "table.md").read_text(encoding="utf-8")
