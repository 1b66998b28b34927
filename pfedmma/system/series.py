"""How the series of a figure look: which colour, stroke and mark each has, in every figure of the project.

There are two renderers. The report's page must open anywhere, also from a run's folder on a machine without matplotlib, and follows
the reader's light or dark screen: it draws SVG by itself (`pfedmma.report.charts`). Figures for papers are matplotlib's
(`pfedmma.compare.figures`). Both take what they draw from here by a method's name, so it is known again in every figure.

Colours are those of Okabe and Ito, which also readers tell apart who do not see red or green; stroke and mark say the same without colour.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
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
DIFFERENT = len(COLOURS) * len(DASHES)  # looks; the numbers of colours and dashes have no common factor
# Names that are often drawn together have colours of their own, wherever else they stand; the first seven share none.
OWN = ("pfedmma", "local", "fedavg_mma", "promptfl", "fedlora", "pfedmoap", "zeroshot", "fedpgp", "fedotp", "fedtpg", "fedmaple", "fedclip")


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
    """The look of a series by its position, see `positions`; the first `DIFFERENT` differ."""
    return Look(index % len(COLOURS), DASHES[index % len(DASHES)], MARKS[index % len(MARKS)])


def positions(names: Sequence[str]) -> list[int]:
    """For each series of a figure the position of its look, by its name.

    A name of `OWN` always has the same one, another one too unless it is taken; what is repeated has another look than the first.
    """
    taken: dict[int, int] = {}  # position -> which name has it
    for number, name in sorted(enumerate(names), key=lambda item: item[1] not in OWN):
        others = (range(len(OWN), DIFFERENT), range(len(OWN)), itertools.count(DIFFERENT))
        free = (place for place in itertools.chain([_wanted(name)], *others) if place not in taken)
        taken[next(free)] = number
    return [place for place, _ in sorted(taken.items(), key=lambda item: item[1])]


def _wanted(name: str) -> int:
    """The position that a name has if it is the first to ask for it."""
    return OWN.index(name) if name in OWN else len(OWN) + zlib.crc32(name.encode()) % (DIFFERENT - len(OWN))
