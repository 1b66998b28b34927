"""The figures of a comparison, from runs with made-up metrics: what is drawn where."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pfedmma.compare.done import Done
from pfedmma.compare.grid import Plan
from pfedmma.config import schema as configuration
from pfedmma.system import plots
from pfedmma.system.plots import COLUMN, MARKERS, PAGE
from pfedmma.system.series import COLOURS, DASHES, MARKS, OWN
from tests.support.reported import round_, round_row, run_summary

pytest.importorskip("matplotlib")

from pfedmma.compare import figures
from pfedmma.compare.against import all_against

UP, DOWN = 1_000, 3_000


def accuracy(value: float | None) -> dict[str, Any]:
    return dict.fromkeys(("local", "base", "novel", "hm", "hm_base_novel", "cm"), value)


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
    run.summary.accuracy.scores.update(novel=None, hm_base_novel=None, cm=None)


RUNS = [
    done("pfedmma", 0, {1: 10.0, 2: 20.0, 4: 40.0}),
    done("pfedmma", 1, {2: 30.0, 3: 35.0, 4: 50.0}),
    done("local", 0, {2: 12.0, 4: 14.0}, factor=0),
    done("zeroshot", 0, {1: 5.0}, factor=0),
]


def lines(plot) -> dict[str, Any]:
    return {line.get_label(): line for line in plot.get_lines()}


def means(runs: list[Done], by_bytes: bool, name: str = "hm") -> list[tuple[float, float]]:
    return [(point.x, point.mean) for point in figures.mean_curve(runs, name, by_bytes)]


def points(line) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]


# Curves.


def test_a_curve_has_the_rounds_in_which_all_seeds_were_evaluated():
    assert means(RUNS[:2], False) == [(2, 25.0), (4, 45.0)]
    assert means(RUNS[:1], False) == [(1, 10.0), (2, 20.0), (4, 40.0)]


def test_bytes_are_those_of_both_ways_up_to_the_round():
    # Rounds 1 .. k move 4,000 (1 + ... + k): 4,000, 12,000, 24,000, 40,000; rounds without evaluation count as well.
    assert means(RUNS[:2], True) == [(12_000, 25.0), (40_000, 45.0)]
    twice = done("pfedmma", 2, {4: 0.0}, factor=2)
    assert means([RUNS[0], twice], True) == [(60_000, 20.0)]


def test_an_evaluation_without_hm_is_no_point():
    assert means([done("a", 0, {1: None, 2: 4.0})], False) == [(2, 4.0)]
    assert means([done("a", 0, {})], False) == []
    assert means([], False) == []


def test_the_spread_is_the_standard_deviation_over_seeds():
    found = figures.mean_curve(RUNS[:2], "hm", False)  # 20 and 30, then 40 and 50
    assert [point.std for point in found] == pytest.approx([math.sqrt(50.0)] * 2)
    assert [point.std for point in figures.mean_curve(RUNS[:1], "hm", False)] == [None] * 3


@pytest.mark.parametrize("by_bytes", [False, True])
def test_every_score_has_its_panel_and_every_method_its_line(by_bytes: bool):
    panels = figures.curves(RUNS, by_bytes).axes
    assert [plot.get_title() for plot in panels] == ["Local, percent", "Base, percent", "Novel, percent", "HM, percent"]
    for plot in panels:
        found = lines(plot)
        assert list(found) == ["pfedmma", "local", "zeroshot"]
        assert points(found["pfedmma"]) == means(RUNS[:2], by_bytes)
        # What has been evaluated once is a level; and so is, against bytes, what sends none.
        assert points(found["zeroshot"]) == [(0.0, 5.0), (1.0, 5.0)]
        assert points(found["local"]) == ([(0.0, 14.0), (1.0, 14.0)] if by_bytes else [(2.0, 12.0), (4.0, 14.0)])
        assert plot.get_xscale() == ("log" if by_bytes else "linear")
        assert by_bytes or all(tick == int(tick) for tick in plot.get_xticks())
        assert len({line.get_color() for line in found.values()}) == 3
    figure = panels[0].figure
    assert [plot.get_xlabel() for plot in panels] == ["", "", *["bytes of all clients" if by_bytes else "round"] * 2]
    assert figure.get_suptitle() == "shapes, 16 shots"


def test_each_panel_has_its_own_score():
    runs = [done("pfedmma", 0, {1: 10.0, 2: 20.0})]
    for row in runs[0].rounds:
        assert row.accuracy is not None
        row.accuracy.scores.update(local=90.0 + row.round, novel=None)
    local, base, hm = figures.curves(runs, by_bytes=False).axes  # there is no Novel
    assert points(lines(local)["pfedmma"]) == [(1.0, 91.0), (2.0, 92.0)]
    assert points(lines(base)["pfedmma"]) == points(lines(hm)["pfedmma"]) == [(1.0, 10.0), (2.0, 20.0)]


def bands(plot) -> list[list[tuple[float, float]]]:
    """The corners of each band, from left to right and from below."""
    return [sorted({(float(x), round(float(y), 6)) for x, y in band.get_paths()[0].vertices}) for band in plot.collections]


def test_a_band_shows_the_spread():
    plot, *_ = figures.curves(RUNS[:3], by_bytes=False).axes
    half = round(math.sqrt(50.0), 6)
    (band,) = bands(plot)  # one seed has none
    assert band == [(2.0, 25.0 - half), (2.0, 25.0 + half), (4.0, 45.0 - half), (4.0, 45.0 + half)]


def test_every_setting_has_its_line_of_panels():
    runs = [*RUNS[:2], done("local", 0, {1: 1.0, 2: 2.0}, "cifar10"), done("pfedmma", 0, {1: 7.0, 3: 8.0}, "cifar10")]
    panels = figures.curves(runs, by_bytes=False).axes
    first, second = panels[0], panels[4]
    assert len(panels) == 8 and (first.get_ylabel(), second.get_ylabel()) == ("shapes, 16 shots", "cifar10, 16 shots")
    assert [points(line) for line in first.get_lines()] == [[(2.0, 25.0), (4.0, 45.0)]]
    colour = first.get_lines()[0].get_color()
    assert [(line.get_color() == colour, points(line)) for line in second.get_lines()] == [
        (True, [(1.0, 7.0), (3.0, 8.0)]),
        (False, [(1.0, 1.0), (2.0, 2.0)]),
    ]


def test_the_legend_has_every_method_also_one_without_a_curve_in_the_first_setting():
    figure = figures.curves([*RUNS[:1], done("local", 0, {1: 1.0, 2: 2.0}, "cifar10")], by_bytes=False)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pfedmma", "local"]


def test_more_methods_than_colours_are_told_apart():
    runs = [done(f"method {k}", 0, {1: 1.0 + k, 2: 2.0 + k}) for k in range(2 * len(COLOURS) + 1)]
    plot, *_ = figures.curves(runs, by_bytes=False).axes
    marked = {(line.get_color(), line.get_marker()) for line in plot.get_lines()}
    dashed = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in plot.get_lines()}
    assert len(marked) == len(dashed) == len(runs)


def test_every_mark_and_stroke_of_a_series_can_be_drawn():
    assert set(MARKERS) == set(MARKS) and len(set(MARKERS.values())) == len(MARKS)
    plot, *_ = figures.curves([done(name, 0, {1: 1.0, 2: 2.0}) for name in OWN[: len(DASHES)]], by_bytes=False).axes
    patterns = [line._unscaled_dash_pattern[1] for line in plot.get_lines()]
    assert [tuple(pattern or ()) for pattern in patterns] == list(DASHES)


def test_a_method_looks_alike_whatever_it_is_compared_with():
    few, more = ([done(name, 0, {1: 1.0, 2: 2.0}) for name in names] for names in (["local"], ["promptfl", "own", "local"]))
    first, second = (lines(figures.curves(runs, by_bytes=False).axes[0])["local"] for runs in (few, more))
    assert (first.get_color(), first.get_marker()) == (second.get_color(), second.get_marker()) == (COLOURS[1][0], "s")


# Files.

BEGIN = {".png": b"\x89PNG\r\n\x1a\n", ".pdf": b"%PDF-", ".svg": b"<?xml"}
NAMES = {f"{name}{kind}" for name in ("accuracy", "accuracy_by_round", "accuracy_by_bytes") for kind in BEGIN}


def test_the_files_are_pictures(tmp_path: Path):
    (tmp_path / "accuracy.png").write_text("an earlier one")
    figures.draw(RUNS, tmp_path, with_radar=True)
    assert {path.name for path in tmp_path.iterdir()} == NAMES | {f"radar{kind}" for kind in BEGIN}
    assert all(path.read_bytes().startswith(BEGIN[path.suffix]) for path in tmp_path.iterdir())


def test_a_figure_fits_in_a_column_in_letters_of_8_points(tmp_path: Path):
    figures.draw(RUNS, tmp_path)
    for name in ("accuracy", "accuracy_by_round", "accuracy_by_bytes"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.size[0] == round(300 * COLUMN) and picture.info["dpi"][0] == pytest.approx(300, abs=1)
        text = (tmp_path / f"{name}.svg").read_text()
        assert {"8px", "7px"} >= set(re.findall(r"font-size: (\d+px)", text)) >= {"8px"} and ">pfedmma<" in text
    with plots.paper():
        assert figures.curves([*RUNS, done("local", 0, {1: 1.0}, "dtd")], by_bytes=False).get_figwidth() == PAGE


def test_the_same_runs_give_the_same_files(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with plots.paper():
            plots.write_all([figures.curves(RUNS, by_bytes=False)], tmp_path / name, "same")
    for kind in BEGIN:
        assert (tmp_path / "a" / f"same{kind}").read_bytes() == (tmp_path / "b" / f"same{kind}").read_bytes()


def written(runs: list[Done], out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """{name: how many figures} of what `figures.draw` would write."""
    found: dict[str, int] = {}
    monkeypatch.setattr(figures, "write_all", lambda drawn, out, name: found.update({name: len(drawn)}))
    figures.draw(runs, out)
    return found


def test_many_settings_go_on_in_another_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(figures, "ROWS", 1)
    runs = [done("pfedmma", 0, {1: 1.0, 2: 2.0}, name) for name in ("shapes", "dtd")]
    assert written(runs, tmp_path, monkeypatch) == {"accuracy": 3, "accuracy_by_round": 2, "accuracy_by_bytes": 2}  # and the average
    plots.write_all([plots.new_figure(1.0, 1.0)] * 2, tmp_path, "two")
    assert {path.name for path in tmp_path.iterdir()} == {"two.png", "two.svg", "two_2.png", "two_2.svg", "two.pdf"}
    assert (tmp_path / "two.pdf").read_bytes().count(b"/Type /Page ") == 2


def test_a_label_is_no_formula(tmp_path: Path):
    runs = [done(label, 0, {1: 1.0, 2: 2.0}, f"{label}shapes") for label in ("$x", "$\\frac$", "a $5 b $6", "_hidden")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures.draw([dataclasses.replace(run, plan=dataclasses.replace(run.plan, dataset="$ $\\frac$")) for run in runs], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == NAMES
    text = (tmp_path / "accuracy_by_round.svg").read_text()
    assert all(f">{label}<" in text for label in ("$x", "a $5 b $6", "_hidden"))


@pytest.mark.parametrize(
    "runs", [[done("pfedmma", 0, {})], [done("local", 0, {2: 3.0}, factor=0)], [done("pfedmma", 0, {1: None, 2: None})]]
)
def test_runs_with_little_to_show_are_drawn(runs: list[Done], tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures.draw(runs, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == NAMES


def of_size(run: Done, images: int) -> Done:
    """The run in a comparison with ``local``, with clients of so many images."""
    rows = [dataclasses.replace(row, samples=images * len(row.clients)) for row in run.rounds]
    return dataclasses.replace(run, plan=dataclasses.replace(run.plan, baseline="local"), rounds=rows)


def test_differences_to_a_baseline_stand_at_the_images_of_a_client():
    runs = [
        of_size(done(method, seed, {1: value}, data), size)
        for data, size in (("few", 8), ("many", 64))
        for method, values in (("local", (40.0, 50.0)), ("ours", (41.0, 53.0)))
        for seed, value in enumerate(values)
    ]
    compared = [part for part in all_against(runs) if "average" not in part.label]
    panels = figures.differences(runs, compared).axes
    assert [plot.get_title() for plot in panels] == [f"{name}, points" for name in ("Local", "Base", "Novel", "HM")]
    (drawn,) = panels[0].containers  # ours; the baseline is the line at zero
    line, _, (bars,) = drawn.lines
    assert line.get_xydata().tolist() == [[8.0, 2.0], [64.0, 2.0]]
    # Gaps 1 and 3: by hand, t with one degree of freedom leaves 2.5 % above 12.7062.
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([2.0 - 12.7062, 2.0 + 12.7062], rel=1e-4)


def test_one_setting_has_no_figure_of_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs = [dataclasses.replace(run, plan=dataclasses.replace(run.plan, baseline="local")) for run in RUNS]
    assert "differences" not in written(runs, tmp_path, monkeypatch)
