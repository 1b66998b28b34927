"""A comparison against its baseline: tables, CSV, and the images of a client on the figure's axis."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from pfedmma.compare import against
from pfedmma.compare.done import Done
from tests.support.compared import done

SCORES = {"local": [(80.0, 50.0, 40.0), (82.0, 52.0, 44.0)], "ours": [(81.0, 53.0, 41.0), (84.0, 54.0, 43.0)], "once": [(90.0, 51.0, 41.0)]}


def compared(shots: int, baseline: str = "local") -> list[Done]:
    """Two seeds, of ``once`` one; clients of 3 x ``shots`` images."""
    runs = [done(name, seed, scores, shots=shots, baseline=baseline) for name, all_ in SCORES.items() for seed, scores in enumerate(all_)]
    return [replace(run, rounds=[replace(row, samples=3 * shots * len(row.clients)) for row in run.rounds]) for run in runs]


def test_rounds_of_nobody_have_no_images_a_client():
    run = compared(2)[0]
    first, *rest = run.rounds
    nobody = replace(first, clients=(), samples=0, loss=None)
    assert against.images_a_client([replace(run, rounds=[nobody, *rest])]) == 6.0
    assert against.images_a_client([replace(run, rounds=[nobody])]) == 0.0


def test_without_a_baseline_there_is_none():
    assert against.all_against([]) == against.all_against(compared(2, "")) == []
    assert against.sheets(compared(2, "")) == []


def test_every_score_of_every_method_stands_against_the_baseline():
    (sheet,) = against.sheets(compared(2))
    assert sheet.title == "Difference to local: shapes, 2 shots, tiny, base_to_novel, 2 seeds"
    assert sheet.head == ("method", "Local", "Base", "Novel", "HM")
    assert [row[0] for row in sheet.rows] == ["ours", "once"]
    # By hand: gaps 1 and 2; t with one degree of freedom leaves 2.5 % above 12.7062, so 1.5 -+ 12.7062 / 2.
    assert sheet.rows[0][1] == "+1.50 (-4.85 to +7.85)"
    assert sheet.rows[1][1:4] == ["+10.00", "+1.00", "+1.00"]  # one pair has no interval
    assert sheet.notes == ["Points of percent, with the 95 % interval of a paired t-test over seeds; 6.0 training images a client."]


def test_a_score_that_is_not_tested_is_left_out():
    runs = [done(name, 0, (50.0, 40.0, None), baseline="a") for name in "ab"]
    (sheet,) = against.sheets(runs)
    assert sheet.head == ("method", "Local", "Base", "HM")
    assert sheet.notes[0].startswith("Points of percent, of one pair each: no test; ")


def test_a_setting_in_which_the_baseline_has_not_run_has_no_differences():
    runs = [run for run in compared(2) if run.plan.method != "local"] + compared(4)
    assert [part.label for part in against.all_against(runs)] == ["shapes, 4 shots"]


def test_the_csv_reads_back_to_the_numbers():
    lines = list(csv.DictReader(io.StringIO(against.csv([*compared(2), *compared(16)]))))
    assert len(lines) == 2 * 4 * 2  # settings, scores, methods
    first = lines[0]
    assert (first["method"], first["baseline"], first["score"], first["pairs"]) == ("ours", "local", "local", "2")
    assert float(first["mean_points"]) == 1.5
    assert float(first["high_points"]) - float(first["low_points"]) == pytest.approx(12.7062, rel=1e-4)
    assert [float(line["training_images_per_client"]) for line in lines] == [6.0] * 8 + [48.0] * 8
    assert lines[1]["low_points"] == lines[1]["p"] == ""
