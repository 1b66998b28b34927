"""The final scores of a comparison, drawn: a dot and an interval for each method, or a radar."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pfedmma.compare.against import COLUMNS
from pfedmma.compare.differences import seed_scores
from pfedmma.compare.done import Done, methods_of, settings_of
from pfedmma.compare.table import Part, rows
from pfedmma.records.rows import HEADLINE, TITLES
from pfedmma.system.intervals import interval
from pfedmma.system.plots import COLUMN, PAGE, legend, new_figure, panels, plain, style

ZERO_SHOT = "zeroshot"
LEVEL: dict[str, Any] = {"color": "0.35", "linestyle": (0, (1, 1.5)), "linewidth": 1.2, "label": "zero-shot"}


def dots(parts: Sequence[Part], looks: Mapping[str, int]) -> Any:
    """A line of panels (Local, Base, Novel, HM) for each part, in them a row for each method: its mean, and the 95 % interval over seeds.

    One seed has a dot alone. Zero-shot is a line. ``looks``: method -> `pfedmma.system.series.positions`.
    """
    tested = [c for c in COLUMNS if any(run.score(c) is not None for part in parts for run in part.runs)] or ["hm"]
    shown = [_shown(part.runs) for part in parts]
    heights = [0.5 + 0.17 * len(methods) for methods in shown]
    alone = len(parts) == 1
    stacked = -(-len(tested) // 2) if alone else 1
    figure = new_figure(COLUMN if alone else PAGE, 0.5 + stacked * sum(heights))
    grid = panels(figure, len(parts), len(tested))
    for part, methods, line, height in zip(parts, shown, grid, heights, strict=True):
        for number, (column, plot) in enumerate(zip(tested, line, strict=True)):
            _rows(plot, part.runs, methods, column, looks)
            names = number % 2 == 0 if alone else number == 0
            plot.set_yticks(range(len(methods)), [plain(method) if names else "" for method in methods])
        line[0].set_ylabel("" if alone else textwrap.fill(plain(part.label), int(height / 0.07)))
    for column, plot in zip(tested, grid[0], strict=True):
        plot.set_title(f"{TITLES[column]}, percent")
    if any(zero_shot(part.runs, column) is not None for part in parts for column in tested):
        from matplotlib.lines import Line2D

        legend(figure, [Line2D([], [], **LEVEL)])
    if alone:
        figure.suptitle(plain(parts[0].label))
    return figure


def _shown(runs: Sequence[Done]) -> list[str]:
    """The methods that have a row: zero-shot is a line, unless it is alone."""
    reference = {run.plan.method for run in runs if run.summary.method == ZERO_SHOT}
    return [method for method in methods_of(runs) if method not in reference] or methods_of(runs)


def _rows(plot: Any, runs: Sequence[Done], methods: Sequence[str], column: str, looks: Mapping[str, int]) -> None:
    scores = seed_scores(runs, column)
    for row, method in enumerate(methods):
        if found := interval(list(scores.get(method, {}).values())):
            drawn = style(method, looks[method]) | {"linestyle": "none", "elinewidth": 1.1, "capsize": 2, "markersize": 4}
            plot.errorbar([found.mean], [row], xerr=[[found.half], [found.half]], **drawn)
    if (level := zero_shot(runs, column)) is not None:
        plot.axvline(level, zorder=0, **LEVEL)
    low, high = plot.get_xlim()
    plot.set_xlim(max(low, -1.0), min(high, 101.0))  # the interval of few seeds goes beyond what a score can be
    plot.set_ylim(len(methods) - 0.5, -0.5)
    plot.grid(axis="x", alpha=0.3)
    plot.tick_params(axis="y", length=0)


def zero_shot(runs: Sequence[Done], column: str) -> float | None:
    """What CLIP as it comes reaches: over the settings the mean of each one's mean over seeds; None where one has none."""
    found: dict[str, dict[int, float]] = {setting: {} for setting in settings_of(runs)}
    for run in runs:
        accuracy = run.summary.accuracy if run.summary.method == ZERO_SHOT else run.summary.zero_shot
        if accuracy and (value := accuracy.score(column)) is not None:
            found[run.plan.setting].setdefault(run.plan.config.seed, value)
    known = [statistics.fmean(seeds.values()) for seeds in found.values() if seeds]
    return statistics.fmean(known) if known and len(known) == len(found) else None


def radar(runs: Sequence[Done], looks: Mapping[str, int]) -> Any:
    """HM by setting where there are three or more settings, else what was tested of Local, Base, Novel, HM and CM; from zero."""
    settings = settings_of(runs)
    if len(settings) >= 3:
        axes = settings
        values = {method: [_hm(runs, method, setting) for setting in settings] for method in methods_of(runs)}
    else:
        table = rows(runs)
        tested = [column for column in HEADLINE if any(row.mean[column] is not None for row in table)]  # some protocols have no Novel
        axes = [TITLES[column] for column in tested]
        values = {row.method: [row.mean[column] for column in tested] for row in table}
    whole = {method: [v for v in row if v is not None] for method, row in values.items() if row and None not in row}
    figure = new_figure(COLUMN, COLUMN + 0.2 * (2 + len(whole) // 3))
    plot = figure.add_subplot(projection="polar")
    angles = [2 * math.pi * k / len(axes) for k in range(len(axes))]
    drawn = [plot.plot([*angles, angles[0]], [*row, row[0]], **style(method, looks[method]))[0] for method, row in whole.items()]
    plot.set_ylim(0.0, max((v for row in whole.values() for v in row), default=1.0) * 1.05 or 1.0)
    plot.set_xticks(angles, list(map(plain, axes)))
    figure.suptitle("HM, percent" if len(settings) >= 3 else "percent")
    legend(figure, drawn)
    return figure


def _hm(runs: Sequence[Done], method: str, setting: str) -> float | None:
    values = [hm for run in runs if (run.plan.method, run.plan.setting) == (method, setting) and (hm := run.score("hm")) is not None]
    return statistics.fmean(values) if values else None
