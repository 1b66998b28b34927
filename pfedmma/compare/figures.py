"""The figures of a comparison: a radar, accuracy against rounds, accuracy against cumulative bytes.

Needs matplotlib (``pip install "pfedmma[plots]"``). How series look is said in `pfedmma.system.series`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pfedmma.compare.table import Done, methods_of, rows, settings_of
from pfedmma.records.rows import HEADLINE, TITLES
from pfedmma.system.series import look

WIDTH = 1.5  # of a line, in points
MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "triangle down": "v"}
Curve = list[tuple[float, float]]


def draw(runs: Sequence[Done], out: Path) -> None:
    """Write ``radar.png``, ``accuracy_by_round.png`` and ``accuracy_by_bytes.png`` below ``out``."""
    _save(radar(runs), out / "radar.png")
    for name, by_bytes in (("accuracy_by_round", False), ("accuracy_by_bytes", True)):
        _save(curves(runs, by_bytes), out / f"{name}.png")


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
    plot.set_xticks(angles, axes)
    plot.set_title("HM, percent" if len(settings) >= 3 else "percent")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def curves(runs: Sequence[Done], by_bytes: bool) -> Figure:
    """HM against rounds, or against the bytes that all clients have sent and received by then; mean over seeds, a panel a setting.

    A logarithmic axis cannot show what sends nothing: it is a horizontal line at its last value.
    """
    settings = settings_of(runs)
    figure = Figure(figsize=(2.5 + 4.5 * len(settings), 4.5), layout="constrained")
    for position, setting in enumerate(settings, start=1):
        plot = figure.add_subplot(1, len(settings), position)
        for method in methods_of(runs):
            curve = mean_curve([run for run in runs if (run.plan.method, run.plan.setting) == (method, setting)], by_bytes)
            _line(plot, curve, by_bytes, _style(method, runs) | {"label": method if position == 1 else None})
        plot.set_title(setting)
        plot.set_xlabel("bytes sent and received by all clients" if by_bytes else "round")
        plot.set_ylabel("HM, percent")
        if by_bytes:
            plot.set_xscale("log")
        plot.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def mean_curve(runs: Sequence[Done], by_bytes: bool) -> Curve:
    """(round or cumulative bytes, mean HM over seeds) at each round in which every one of ``runs`` was evaluated."""
    points: dict[int, list[tuple[float, float]]] = {}
    for run in runs:
        moved = 0
        for row in run.rounds:
            moved += row.comm.uplink_bytes + row.comm.downlink_bytes
            if row.accuracy is not None and (hm := row.accuracy.score("hm")) is not None:
                points.setdefault(row.round, []).append((moved if by_bytes else row.round, hm))
    whole = [pairs for _, pairs in sorted(points.items()) if len(pairs) == len(runs)]
    return [(statistics.fmean(x for x, _ in pairs), statistics.fmean(y for _, y in pairs)) for pairs in whole]


def _line(plot: Axes, curve: Curve, by_bytes: bool, style: dict[str, Any]) -> None:
    if not curve:
        return
    if len(curve) == 1 or (by_bytes and curve[-1][0] == 0):
        plot.axhline(curve[-1][1], **(style | {"marker": None, "alpha": 0.7}))
    else:
        plot.plot(*zip(*curve, strict=True), **style)


def _style(method: str, runs: Sequence[Done]) -> dict[str, Any]:
    own = look(methods_of(runs).index(method))
    stroke = (0, own.dashes) if own.dashes else "-"
    drawn = {"color": own.on_white, "linestyle": stroke, "linewidth": WIDTH, "marker": MARKERS[own.mark], "markersize": 3.5}
    return {"label": method} | drawn


def _hm(runs: Sequence[Done], method: str, setting: str) -> float | None:
    values = [hm for run in runs if (run.plan.method, run.plan.setting) == (method, setting) and (hm := run.score("hm")) is not None]
    return statistics.fmean(values) if values else None


def _save(figure: Figure, path: Path) -> None:
    draft = path.with_name(f".{path.name}")
    figure.savefig(draft, dpi=110, format="png")
    draft.replace(path)
