"""The figures of a comparison, from runs with made-up metrics: what is drawn where."""

from __future__ import annotations

import math
import statistics
import warnings
from pathlib import Path
from typing import Any

import pytest

from pfedmma.compare.grid import Plan
from pfedmma.compare.table import Done
from pfedmma.config import schema as configuration
from pfedmma.system.series import COLOURS, DASHES, MARKS
from tests.support.reported import round_, round_row, run_summary

pytest.importorskip("matplotlib")

from pfedmma.compare import figures

UP, DOWN = 1_000, 3_000


def accuracy(value: float | None) -> dict[str, Any]:
    if value is None:
        return {"local": None, "base": None, "novel": None, "hm": None}
    return {"local": value, "base": value, "novel": value, "hm": value}


def done(method: str, seed: int, curve: dict[int, float | None], dataset: str = "shapes", factor: int = 1, rounds: int = 0) -> Done:
    """A run that was evaluated after these rounds; each moves 4,000 x ``factor`` bytes times its number."""
    config = configuration.resolve({"seed": seed, "run_dir": f"runs/{dataset}-{method}-{seed}"})
    rows = []
    for k in range(1, (rounds or max(curve, default=3)) + 1):
        comm = round_(k, 4, None)["comm"] | {"uplink_bytes": k * factor * UP, "downlink_bytes": k * factor * DOWN}
        rows.append(round_row(k, evaluated=accuracy(curve[k]) if k in curve else None, comm=comm))
    last = accuracy(curve[max(curve)]) if curve else None
    return Done(Plan(method, dataset, config), run_summary(method=method, accuracy=last), rows)


def forget_novel(run: Done) -> None:
    assert run.summary.accuracy is not None
    run.summary.accuracy.scores["novel"] = None


RUNS = [
    done("pfedmma", 0, {1: 10.0, 2: 20.0, 4: 40.0}),
    done("pfedmma", 1, {2: 30.0, 3: 35.0, 4: 50.0}),
    done("local", 0, {2: 12.0, 4: 14.0}, factor=0),
    done("zeroshot", 0, {1: 5.0}, factor=0),
]


def lines(plot) -> dict[str, Any]:
    return {line.get_label(): line for line in plot.get_lines()}


def points(line) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]


# Curves.


def test_a_curve_has_the_rounds_in_which_all_seeds_were_evaluated():
    assert figures.mean_curve(RUNS[:2], by_bytes=False) == [(2, 25.0), (4, 45.0)]
    assert figures.mean_curve(RUNS[:1], by_bytes=False) == [(1, 10.0), (2, 20.0), (4, 40.0)]


def test_bytes_are_those_of_both_ways_up_to_the_round():
    # Rounds 1 .. k move 4,000 (1 + ... + k): 4,000, 12,000, 24,000, 40,000; rounds without evaluation count as well.
    assert figures.mean_curve(RUNS[:2], by_bytes=True) == [(12_000, 25.0), (40_000, 45.0)]
    twice = done("pfedmma", 2, {4: 0.0}, factor=2)
    assert figures.mean_curve([RUNS[0], twice], by_bytes=True) == [(60_000, 20.0)]


def test_an_evaluation_without_hm_is_no_point():
    assert figures.mean_curve([done("a", 0, {1: None, 2: 4.0})], by_bytes=False) == [(2, 4.0)]
    assert figures.mean_curve([done("a", 0, {})], by_bytes=False) == []
    assert figures.mean_curve([], by_bytes=False) == []


@pytest.mark.parametrize("by_bytes", [False, True])
def test_every_method_has_its_line(by_bytes: bool):
    (plot,) = figures.curves(RUNS, by_bytes).axes
    found = lines(plot)
    assert list(found) == ["pfedmma", "local", "zeroshot"]
    assert points(found["pfedmma"]) == figures.mean_curve(RUNS[:2], by_bytes)
    # What has been evaluated once is a level; and so is, against bytes, what sends none.
    assert points(found["zeroshot"]) == [(0.0, 5.0), (1.0, 5.0)]
    assert points(found["local"]) == ([(0.0, 14.0), (1.0, 14.0)] if by_bytes else [(2.0, 12.0), (4.0, 14.0)])
    assert plot.get_xscale() == ("log" if by_bytes else "linear")
    assert ("bytes" in plot.get_xlabel()) == by_bytes and plot.get_title() == "shapes, 16 shots"
    assert len({line.get_color() for line in found.values()}) == 3


def test_every_setting_has_its_panel():
    runs = [*RUNS[:2], done("local", 0, {1: 1.0, 2: 2.0}, "cifar10"), done("pfedmma", 0, {1: 7.0, 3: 8.0}, "cifar10")]
    figure = figures.curves(runs, by_bytes=False)
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("shapes, 16 shots", "cifar10, 16 shots")
    assert [points(line) for line in first.get_lines()] == [[(2.0, 25.0), (4.0, 45.0)]]
    colour = first.get_lines()[0].get_color()
    assert [(line.get_color() == colour, points(line)) for line in second.get_lines()] == [
        (True, [(1.0, 7.0), (3.0, 8.0)]),
        (False, [(1.0, 1.0), (2.0, 2.0)]),
    ]


def test_more_methods_than_colours_are_told_apart():
    runs = [done(f"method {k}", 0, {1: 1.0 + k, 2: 2.0 + k}) for k in range(2 * len(COLOURS) + 1)]
    (plot,) = figures.curves(runs, by_bytes=False).axes
    marked = {(line.get_color(), line.get_marker()) for line in plot.get_lines()}
    dashed = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in plot.get_lines()}
    assert len(marked) == len(dashed) == len(runs)


def test_every_mark_and_stroke_of_a_series_can_be_drawn():
    assert set(figures.MARKERS) == set(MARKS) and len(set(figures.MARKERS.values())) == len(MARKS)
    runs = [done(f"method {k}", 0, {1: 1.0 + k, 2: 2.0 + k}) for k in range(len(DASHES))]
    (plot,) = figures.curves(runs, by_bytes=False).axes
    patterns = [line._unscaled_dash_pattern[1] for line in plot.get_lines()]
    assert [tuple(pattern or ()) for pattern in patterns] == list(DASHES)


# The radar.


def radar_axes(figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


def test_the_radar_of_one_setting_has_the_four_columns():
    runs = [done("pfedmma", 0, {1: 40.0}), done("pfedmma", 1, {1: 60.0}), done("local", 0, {1: 30.0})]
    assert runs[0].summary.accuracy is not None
    runs[0].summary.accuracy.scores["novel"] = 20.0
    figure = figures.radar(runs)
    assert radar_axes(figure) == ["Local", "Base", "Novel", "HM"]
    found = lines(figure.axes[0])
    values = [y for _, y in points(found["pfedmma"])]
    assert values[:3] == pytest.approx([50.0, 50.0, 40.0]) and values[4] == values[0]
    assert values[3] == pytest.approx(statistics.fmean([3 / (1 / 40 + 1 / 40 + 1 / 20), 60.0]))
    assert [x for x, _ in points(found["local"])] == pytest.approx([0, math.pi / 2, math.pi, 3 * math.pi / 2, 0])
    assert figure.axes[0].get_ylim()[0] < 30.0 and figure.axes[0].get_ylim()[1] > 50.0


def test_with_three_settings_they_are_the_axes():
    names = ("shapes", "cifar10", "dtd")
    runs = [done("pfedmma", seed, {1: 10.0 * k + seed}, name) for k, name in enumerate(names, start=1) for seed in (0, 2)]
    runs += [done("local", 0, {1: 7.0 * k}, name) for k, name in enumerate(names, start=1)]
    runs += [done("partly", 0, {1: 99.0}, name) for name in names[:2]]
    figure = figures.radar(runs)
    assert radar_axes(figure) == [f"{name}, 16 shots" for name in names]
    found = lines(figure.axes[0])
    assert set(found) == {"pfedmma", "local"}  # a method that misses a setting has no shape
    assert [y for _, y in points(found["pfedmma"])] == [11.0, 21.0, 31.0, 11.0]
    assert [y for _, y in points(found["local"])] == [7.0, 14.0, 21.0, 7.0]
    assert radar_axes(figures.radar([run for run in runs if run.plan.dataset != "dtd"])) == ["Local", "Base", "Novel", "HM"]


def test_a_protocol_without_novel_classes_has_a_radar_too():
    runs = [done("pfedmma", 0, {1: 40.0}), done("local", 0, {1: 30.0})]
    for run in runs:
        forget_novel(run)
    figure = figures.radar(runs)
    assert radar_axes(figure) == ["Local", "Base", "HM"]
    assert [y for _, y in points(lines(figure.axes[0])["local"])] == pytest.approx([30.0] * 4)


# Files.

PNG = b"\x89PNG\r\n\x1a\n"
NAMES = {"radar.png", "accuracy_by_round.png", "accuracy_by_bytes.png"}


def test_the_files_are_pictures(tmp_path: Path):
    (tmp_path / "radar.png").write_text("an earlier one")
    figures.draw(RUNS, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == NAMES
    assert all(path.read_bytes().startswith(PNG) for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    "runs", [[done("pfedmma", 0, {})], [done("local", 0, {2: 3.0}, factor=0)], [done("pfedmma", 0, {1: None, 2: None})]]
)
def test_runs_with_little_to_show_are_drawn(runs: list[Done], tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures.draw(runs, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == NAMES
