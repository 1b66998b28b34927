"""Bytes of a client and round by method, up and down, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pfedmma.cost.lines import Line
from pfedmma.system.console import megabytes
from pfedmma.system.plots import new_figure
from pfedmma.system.series import look

THICK = 0.38  # of a bar; two stand on one method
WAYS = ("up", "down")


def draw(lines: Sequence[Line]) -> Any:
    """A pair of bars for each method, of the first combination among ``lines``; what moves nothing says so. See `new_figure`."""
    first = lines[0]
    shown = [line for line in lines if (line.exchange.wire, line.clients, line.ranks) == (first.exchange.wire, first.clients, first.ranks)]
    moved = [[line.exchange.up for line in shown], [line.exchange.down for line in shown]]
    least = min((count for way in moved for count in way if count), default=1)
    figure = new_figure(6.5, 1.4 + 0.34 * len(shown))
    axes = figure.subplots()
    axes.set_xscale("log")
    for number, (way, counts) in enumerate(zip(WAYS, moved, strict=True)):
        places = [place + (number - 0.5) * THICK for place in range(len(shown))]
        style = {"color": look(number).on_white, "hatch": "//" if number else None, "edgecolor": "white", "linewidth": 0}
        axes.barh(places, counts, THICK, label=way, **style)
        for place, count in zip(places, counts, strict=True):
            axes.text(count or least / 4, place, f" {megabytes(count)}", va="center", fontsize=7)
    axes.set_yticks(range(len(shown)), [line.method for line in shown], parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(least / 4, 8 * max(map(max, moved)) if any(map(any, moved)) else 4)
    axes.set_xlabel(f"bytes of a client and round, {first.exchange.wire}; logarithmic")
    axes.set_title(f"{first.config.backbone.name}, {first.clients} clients", fontsize=9, parse_math=False)
    axes.legend(frameon=False)
    return figure
