"""The final scores of a comparison as dots with intervals, and as a radar: what is drawn where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from pfedmma.compare.done import Done
from tests.support.compared import done

pytest.importorskip("matplotlib")

from pfedmma.compare import figures, final_scores
from pfedmma.compare.table import parts

# The interval of 70 and 80: standard error 5, and 12.7062 of Student's t with one degree of freedom.
HALF = 5 * 12.7062
RUNS = [done("ours", 0, (70.0, 60.0, 50.0)), done("ours", 1, (80.0, 60.0, 50.0)), done("theirs", 0, (75.0, 66.0, 61.0))]


def dots(runs: Sequence[Done]) -> Any:
    return final_scores.dots(parts(runs), figures.looks_of(runs))


def radar(runs: Sequence[Done]) -> Any:
    return final_scores.radar(runs, figures.looks_of(runs))


def drawn(plot: Any) -> dict[str, tuple[float, float, list[float]]]:
    """{method: (score, row, ends of its interval)} of a panel."""
    found = {}
    for bar in plot.containers:
        line, _, (ends,) = bar.lines
        (x,), (y,) = line.get_data()
        found[bar.get_label()] = (float(x), float(y), [round(float(end), 2) for end in ends.get_segments()[0][:, 0]])
    return found


def test_a_method_is_a_row_with_its_mean_and_interval():
    local, base, novel, hm = dots(RUNS).axes
    assert [plot.get_title() for plot in (local, base, novel, hm)] == [f"{name}, percent" for name in ("Local", "Base", "Novel", "HM")]
    found = drawn(local)
    assert found["ours"] == (75.0, 0.0, [round(75 - HALF, 2), round(75 + HALF, 2)])
    assert found["theirs"] == (75.0, 1.0, [75.0, 75.0])  # one seed has none
    assert drawn(base)["ours"] == (60.0, 0.0, [60.0, 60.0]) and drawn(novel)["theirs"][0] == 61.0
    assert [label.get_text() for label in local.get_yticklabels()] == ["ours", "theirs"] and local.get_ylim() == (1.5, -0.5)


def test_zero_shot_is_a_line_in_each_panel():
    """That of the summaries, 61.25 Local; of a run of its own where there is one."""
    figure = dots(RUNS)
    assert [line.get_xdata() for line in figure.axes[0].get_lines() if line.get_label() == "zero-shot"] == [[61.25, 61.25]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["zero-shot"]
    local = dots([*RUNS, done("zeroshot", 0, (40.0, 41.0, 42.0))]).axes[0]
    assert list(drawn(local)) == ["ours", "theirs"]
    assert final_scores.zero_shot([done("zeroshot", 0, (40.0, 41.0, 42.0))], "local") == 40.0
    assert list(drawn(dots([done("zeroshot", 0, (40.0, 41.0, 42.0))]).axes[0])) == ["zeroshot"]


def test_settings_stand_below_one_another_and_their_average_last():
    runs = [done("ours", 0, (70.0, 60.0, 50.0)), done("ours", 0, (90.0, 60.0, 50.0), "dtd")]
    figure = dots(runs)
    assert len(figure.axes) == 12 and len(parts(runs)) == 3
    assert [drawn(plot)["ours"][0] for plot in figure.axes[::4]] == [70.0, 90.0, 80.0]
    assert figure.axes[4].get_ylabel().replace("\n", " ") == "dtd, 16 shots"


def test_what_is_not_tested_has_no_panel():
    assert [plot.get_title() for plot in dots([done("ours", 0, (70.0, 60.0, None))]).axes] == [
        "Local, percent",
        "Base, percent",
        "HM, percent",
    ]
    assert len(dots([done("ours", 0, None)]).axes) == 1


# The radar.


def axes_of(figure: Any) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


def shapes(figure: Any) -> dict[str, list[float]]:
    return {line.get_label(): [float(y) for y in line.get_ydata()] for line in figure.axes[0].get_lines()}


def test_the_radar_of_one_setting_has_the_columns_of_a_short_table():
    figure = radar(RUNS)
    assert axes_of(figure) == ["Local", "Base", "Novel", "HM", "CM"]
    assert shapes(figure)["ours"][:3] == [75.0, 60.0, 50.0] and len(shapes(figure)["ours"]) == 6
    angles = figure.axes[0].get_lines()[0].get_xdata()
    assert list(angles) == pytest.approx([*(2 * math.pi * k / 5 for k in range(5)), 0])


def test_its_radius_begins_at_zero():
    """So that its areas are those of the scores."""
    low, high = radar(RUNS).axes[0].get_ylim()
    assert low == 0.0 and 75.0 < high < 80.0


def test_with_three_settings_they_are_the_axes():
    names = ("shapes", "cifar10", "dtd")
    runs = [done("ours", seed, (10.0 * k + seed,) * 3, name) for k, name in enumerate(names, start=1) for seed in (0, 2)]
    runs += [done("theirs", 0, (7.0 * k,) * 3, name) for k, name in enumerate(names, start=1)]
    runs += [done("partly", 0, (99.0,) * 3, name) for name in names[:2]]
    figure = radar(runs)
    assert axes_of(figure) == [f"{name}, 16 shots" for name in names]
    found = shapes(figure)
    assert set(found) == {"ours", "theirs"}  # a method that misses a setting has no shape
    assert found["ours"] == pytest.approx([11.0, 21.0, 31.0, 11.0]) and found["theirs"] == pytest.approx([7.0, 14.0, 21.0, 7.0])
    assert axes_of(radar([run for run in runs if run.plan.dataset != "dtd"])) == ["Local", "Base", "Novel", "HM", "CM"]


def test_a_protocol_without_novel_classes_has_a_radar_too():
    figure = radar([done("ours", 0, (40.0, 40.0, None)), done("theirs", 0, (30.0, 30.0, None))])
    assert axes_of(figure) == ["Local", "Base", "HM"]
    assert shapes(figure)["theirs"] == pytest.approx([30.0] * 4)
