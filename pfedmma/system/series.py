"""How the series of a figure look: which colour, stroke and mark each has, in every figure of the project.

There are two renderers. The report's page must open anywhere, also from a run's folder on a machine without matplotlib, and follows
the reader's light or dark screen: it draws SVG by itself (`pfedmma.report.charts`). Figures for papers are matplotlib's
(`pfedmma.compare.figures`). Both take what they draw from here, so a method that is the third in one is known again in the other.

Colours are those of Okabe and Ito, which also readers tell apart who do not see red or green; stroke and mark say the same without colour.
"""

from __future__ import annotations

from dataclasses import dataclass

# (on white, on a dark page); the last is the colour of the text.
COLOURS = (
    ("#0072b2", "#2b8fcb"),
    ("#d55e00", "#d55e00"),
    ("#009e73", "#009e73"),
    ("#cc79a7", "#cc79a7"),
    ("#e69f00", "#e69f00"),
    ("#56b4e9", "#56b4e9"),
    ("#1b1f24", "#e6e9ed"),
)
# Lengths drawn and left out by turns, in widths of the line.
DASHES: tuple[tuple[float, ...], ...] = ((), (3.5, 1.5), (1, 1.5), (4.5, 1.5, 1, 1.5), (2, 1))
MARKS = ("circle", "square", "triangle", "diamond", "triangle down")


@dataclass(frozen=True)
class Look:
    """``colour``: index into `COLOURS`; ``dashes``: none is a whole line; ``mark``: one of `MARKS`."""

    colour: int
    dashes: tuple[float, ...]
    mark: str

    @property
    def on_white(self) -> str:
        return COLOURS[self.colour][0]


def look(index: int) -> Look:
    """The look of a figure's series, by its position among them; the first 35 differ."""
    return Look(index % len(COLOURS), DASHES[index % len(DASHES)], MARKS[index % len(MARKS)])
