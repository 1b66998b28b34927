"""The figures of a comparison: final scores, accuracies against rounds and against cumulative bytes, and differences to a baseline.

Each as PNG, SVG and PDF, in the size of a column of a paper, or of a page where there are several settings.

Needs matplotlib (``pip install "pfedmma[plots]"``). How series look is said in `pfedmma.system.series`.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pfedmma.compare.against import COLUMNS, Against, all_against
from pfedmma.compare.differences import Difference
from pfedmma.compare.done import Done, methods_of, settings_of
from pfedmma.compare.final_scores import dots, radar
from pfedmma.compare.table import parts
from pfedmma.records.rows import TITLES
from pfedmma.system.plots import COLUMN, PAGE, legend, new_figure, panels, paper, plain, style, write_all
from pfedmma.system.series import positions

ROWS = 8  # settings of one figure


class Point(NamedTuple):
    """Of a curve: ``x``, rounds or bytes; mean and standard deviation over seeds in percent, None with one seed."""

    x: float
    mean: float
    std: float | None


def draw(runs: Sequence[Done], out: Path, with_radar: bool = False) -> None:
    """Write ``accuracy``, ``accuracy_by_round`` and ``accuracy_by_bytes`` below ``out``, each as ``.png``, ``.svg`` and ``.pdf``.

    And ``differences``, where several settings are compared with a baseline. More than `ROWS` settings go on in ``..._2.png`` and so on;
    a PDF has them as pages.
    """
    with paper():
        looks = looks_of(runs)
        write_all([dots(page, looks) for page in _pages(parts(runs))], out, "accuracy")
        settings = settings_of(runs)
        for name, by_bytes in (("accuracy_by_round", False), ("accuracy_by_bytes", True)):
            write_all([curves(runs, by_bytes, page) for page in _pages(settings)], out, name)
        if len(compared := [part for part in all_against(runs) if part.label in settings]) > 1:
            write_all([differences(runs, compared)], out, "differences")
        if with_radar:
            write_all([radar(runs, looks)], out, "radar")


def looks_of(runs: Sequence[Done]) -> dict[str, int]:
    """The look of each method."""
    methods = methods_of(runs)
    return dict(zip(methods, positions(methods), strict=True))


def _pages(rows: Sequence[Any]) -> list[Sequence[Any]]:
    return [rows[first : first + ROWS] for first in range(0, len(rows), ROWS)]


def curves(runs: Sequence[Done], by_bytes: bool, settings: Sequence[str] = ()) -> Figure:
    """Local, Base, Novel and HM, a panel each, against rounds, or against the bytes that all clients have sent and received by then.

    A line of panels for each of ``settings`` (none: all). Lines are means over seeds, the bands around them a standard deviation wide
    on either side. A logarithmic axis cannot show what sends nothing: it is a horizontal line at its last value.
    """
    settings = settings or settings_of(runs)
    shown = [run for run in runs if run.plan.setting in settings]
    tested = [name for name in COLUMNS if any(row.accuracy and row.accuracy.score(name) is not None for run in shown for row in run.rounds)]
    tested, alone, looks = tested or ["hm"], len(settings) == 1, looks_of(runs)
    figure = new_figure(COLUMN if alone else PAGE, 0.6 + 1.5 * (-(-len(tested) // 2) if alone else len(settings)))
    grid = panels(figure, len(settings), len(tested))
    for setting, line in zip(settings, grid, strict=True):
        for name, plot in zip(tested, line, strict=True):
            _panel(plot, [run for run in shown if run.plan.setting == setting], name, by_bytes, looks)
        line[0].set_ylabel("" if alone else textwrap.fill(plain(setting), 24))
    for name, plot in zip(tested, grid[0], strict=True):
        plot.set_title(f"{TITLES[name]}, percent")
    if alone:
        figure.suptitle(plain(settings[0]))
    for plot in grid[-1][-2 if alone else 0 :]:
        plot.set_xlabel("bytes of all clients" if by_bytes else "round")
    legend(figure, [Line2D([], [], **style(method, look)) for method, look in looks.items()])
    return figure


def _panel(plot: Axes, shown: Sequence[Done], name: str, by_bytes: bool, looks: Mapping[str, int]) -> None:
    for method, look in looks.items():
        curve = mean_curve([run for run in shown if run.plan.method == method], name, by_bytes)
        _line(plot, curve, by_bytes, style(method, look))
    if by_bytes:
        plot.set_xscale("log")
    else:
        plot.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    plot.grid(alpha=0.3)


def mean_curve(runs: Sequence[Done], name: str, by_bytes: bool) -> list[Point]:
    """The score ``name`` at each round in which every one of ``runs`` was evaluated."""
    points: dict[int, list[tuple[float, float]]] = {}
    for run in runs:
        moved = 0
        for row in run.rounds:
            moved += row.comm.uplink_bytes + row.comm.downlink_bytes
            if row.accuracy is not None and (value := row.accuracy.score(name)) is not None:
                points.setdefault(row.round, []).append((moved if by_bytes else row.round, value))
    whole = [zip(*pairs, strict=True) for _, pairs in sorted(points.items()) if len(pairs) == len(runs)]
    return [Point(statistics.fmean(x), statistics.fmean(y), statistics.stdev(y) if len(y) > 1 else None) for x, y in whole]


def _line(plot: Axes, curve: Sequence[Point], by_bytes: bool, style: dict[str, Any]) -> None:
    if not curve:
        return
    band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
    last = curve[-1]
    if len(curve) == 1 or (by_bytes and last.x == 0):
        plot.axhline(last.mean, **(style | {"marker": None, "alpha": 0.7}))
        if last.std:
            plot.axhspan(last.mean - last.std, last.mean + last.std, **band)
        return
    plot.plot([point.x for point in curve], [point.mean for point in curve], **style)
    spread = [point for point in curve if point.std is not None]
    low, high = ([point.mean + side * (point.std or 0.0) for point in spread] for side in (-1, 1))
    if spread:
        plot.fill_between([point.x for point in spread], low, high, **band)


def differences(runs: Sequence[Done], compared: Sequence[Against]) -> Figure:
    """Each method minus the baseline against training images of a client, a panel each for Local, Base, Novel and HM; 95 % intervals."""
    columns = list(dict.fromkeys(column for part in compared for column in part.by_column))
    figure = new_figure(PAGE, 2.6)
    plots = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    looks = {method: look for method, look in looks_of(runs).items() if any(part.of(method) for part in compared)}
    for column, plot in zip(columns, plots, strict=True):
        plot.axhline(0.0, color="0.4", linewidth=1)
        for number, (method, look) in enumerate(looks.items()):
            # Side by side around the same number of images, so that no interval hides another.
            shift = 1.03 ** (number - (len(looks) - 1) / 2)
            points = [(shift * part.images, own[column]) for part in compared if column in (own := part.of(method))]
            _intervals(plot, points, style(method, look))
        plot.set_xscale("log", base=2)
        plot.xaxis.set_major_formatter("{x:g}")
        plot.set_title(f"{TITLES[column]}, points")
        plot.set_xlabel("training images a client")
        plot.grid(alpha=0.3)
    plots[0].set_ylabel(f"difference to {plain(compared[0].baseline)}")
    legend(figure, [Line2D([], [], **style(method, look)) for method, look in looks.items()])
    return figure


def _intervals(plot: Axes, points: Sequence[tuple[float, Difference]], style: dict[str, Any]) -> None:
    """Means with their intervals; one seed has none."""
    below = [0.0 if d.low is None else d.mean - d.low for _, d in points]
    above = [0.0 if d.high is None else d.high - d.mean for _, d in points]
    plot.errorbar([x for x, _ in points], [d.mean for _, d in points], [below, above], capsize=2, **style)
