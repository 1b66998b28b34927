"""The figures of a comparison: a radar, accuracies against rounds, accuracies against cumulative bytes, and differences to a baseline.

Each as PNG and as PDF.

Needs matplotlib (``pip install "pfedmma[plots]"``). How series look is said in `pfedmma.system.series`.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pfedmma.compare.against import COLUMNS, Against, all_against
from pfedmma.compare.differences import Difference
from pfedmma.compare.done import Done, methods_of, settings_of
from pfedmma.compare.table import rows
from pfedmma.records.rows import HEADLINE, TITLES
from pfedmma.system.console import printable
from pfedmma.system.series import look

WIDTH = 1.5  # of a line, in points
MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "triangle down": "v"}
ROWS = 8  # settings of one figure


class Point(NamedTuple):
    """Of a curve: ``x``, rounds or bytes; mean and standard deviation over seeds in percent, None with one seed."""

    x: float
    mean: float
    std: float | None


def draw(runs: Sequence[Done], out: Path) -> None:
    """Write ``radar``, ``accuracy_by_round`` and ``accuracy_by_bytes`` below ``out``, each as ``.png`` and ``.pdf``.

    And ``differences``, where several settings are compared with a baseline. Curves of more than `ROWS` settings go on in ``..._2.png``
    and so on; a PDF has them as pages.
    """
    _save([radar(runs)], out, "radar")
    settings = settings_of(runs)
    pages = [settings[first : first + ROWS] for first in range(0, len(settings), ROWS)]
    for name, by_bytes in (("accuracy_by_round", False), ("accuracy_by_bytes", True)):
        _save([curves(runs, by_bytes, page) for page in pages], out, name)
    if len(compared := [part for part in all_against(runs) if part.label in settings]) > 1:
        _save([differences(runs, compared)], out, "differences")


def radar(runs: Sequence[Done]) -> Figure:
    """HM by setting where there are three or more settings, else what was tested of Local, Base, Novel and HM."""
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
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    plot = figure.add_subplot(projection="polar")
    angles = [2 * math.pi * k / len(axes) for k in range(len(axes))]
    for method, row in whole.items():
        plot.plot([*angles, angles[0]], [*row, row[0]], **_style(method, runs))
    shown = [v for row in whole.values() for v in row]
    if shown:
        spread = max(shown) - min(shown)
        plot.set_ylim(max(0.0, min(shown) - 0.1 * spread - 1.0), max(shown) + 1.0)
    plot.set_xticks(angles, list(map(_plain, axes)))
    plot.set_title("HM, percent" if len(settings) >= 3 else "percent")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def curves(runs: Sequence[Done], by_bytes: bool, settings: Sequence[str] = ()) -> Figure:
    """Local, Base, Novel and HM, a panel each, against rounds, or against the bytes that all clients have sent and received by then.

    A line of panels for each of ``settings`` (none: all). Lines are means over seeds, the bands around them a standard deviation wide
    on either side. A logarithmic axis cannot show what sends nothing: it is a horizontal line at its last value.
    """
    settings = settings or settings_of(runs)
    shown = [run for run in runs if run.plan.setting in settings]
    tested = [name for name in COLUMNS if any(row.accuracy and row.accuracy.score(name) is not None for run in shown for row in run.rounds)]
    tested = tested or ["hm"]
    figure = Figure(figsize=(2.0 + 3.2 * len(tested), 0.6 + 2.9 * len(settings)), layout="constrained")
    grid = figure.subplots(len(settings), len(tested), squeeze=False)
    for setting, panels in zip(settings, grid, strict=True):
        for name, plot in zip(tested, panels, strict=True):
            _panel(plot, [run for run in shown if run.plan.setting == setting], name, by_bytes, runs)
        panels[0].set_ylabel(textwrap.fill(_plain(setting), 40))
    for name, plot in zip(tested, grid[0], strict=True):
        plot.set_title(f"{TITLES[name]}, percent")
    for plot in grid[-1]:
        plot.set_xlabel("bytes, all clients, both ways" if by_bytes else "round")
    handles = [Line2D([], [], **_style(method, runs)) for method in methods_of(runs)]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    return figure


def _panel(plot: Axes, shown: Sequence[Done], name: str, by_bytes: bool, runs: Sequence[Done]) -> None:
    for method in methods_of(runs):
        curve = mean_curve([run for run in shown if run.plan.method == method], name, by_bytes)
        _line(plot, curve, by_bytes, _style(method, runs))
    if by_bytes:
        plot.set_xscale("log")
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
    figure = Figure(figsize=(2.0 + 3.2 * len(columns), 3.5), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    methods = [method for method in methods_of(runs) if any(part.of(method) for part in compared)]
    for column, plot in zip(columns, panels, strict=True):
        plot.axhline(0.0, color="0.4", linewidth=1)
        for number, method in enumerate(methods):
            # Side by side around the same number of images, so that no interval hides another.
            shift = 1.03 ** (number - (len(methods) - 1) / 2)
            points = [(shift * part.images, own[column]) for part in compared if column in (own := part.of(method))]
            _intervals(plot, points, _style(method, runs))
        plot.set_xscale("log", base=2)
        plot.xaxis.set_major_formatter("{x:g}")
        plot.set_title(f"{TITLES[column]}, points")
        plot.set_xlabel("training images a client")
        plot.grid(alpha=0.3)
    panels[0].set_ylabel(f"difference to {_plain(compared[0].baseline)}")
    handles = [Line2D([], [], **_style(method, runs)) for method in methods]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    return figure


def _intervals(plot: Axes, points: Sequence[tuple[float, Difference]], style: dict[str, Any]) -> None:
    """Means with their intervals; one seed has none."""
    below = [0.0 if d.low is None else d.mean - d.low for _, d in points]
    above = [0.0 if d.high is None else d.high - d.mean for _, d in points]
    plot.errorbar([x for x, _ in points], [d.mean for _, d in points], [below, above], capsize=2, **style)


def _style(method: str, runs: Sequence[Done]) -> dict[str, Any]:
    own = look(methods_of(runs).index(method))
    stroke = (0, own.dashes) if own.dashes else "-"
    drawn = {"color": own.on_white, "linestyle": stroke, "linewidth": WIDTH, "marker": MARKERS[own.mark], "markersize": 3.5}
    return {"label": _plain(method)} | drawn


def _plain(text: str) -> str:
    """Text in which a dollar sign begins no formula."""
    return printable(text).replace("$", r"\$")


def _hm(runs: Sequence[Done], method: str, setting: str) -> float | None:
    values = [hm for run in runs if (run.plan.method, run.plan.setting) == (method, setting) and (hm := run.score("hm")) is not None]
    return statistics.fmean(values) if values else None


def _save(figures: Sequence[Figure], out: Path, name: str) -> None:
    """``name``.png, the following ones numbered from 2, and all of them as pages of ``name``.pdf."""
    for number, figure in enumerate(figures, start=1):
        path = out / f"{name}{f'_{number}' if number > 1 else ''}.png"
        draft = path.with_name(f".{path.name}")
        figure.savefig(draft, dpi=110, format="png")
        draft.replace(path)
    draft = out / f".{name}.pdf"
    with PdfPages(draft, metadata={"CreationDate": None}) as pages:  # the same figures are the same file
        for figure in figures:
            pages.savefig(figure)
    draft.replace(out / f"{name}.pdf")
