"""What a report consists of, whether it becomes HTML or Markdown. All text is plain; the renderers escape it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element


@dataclass(frozen=True)
class Cell:
    """A table's cell; ``note`` is said smaller beside it, ``best`` marks the best of a column, ``link`` leads to a file beside the page."""

    text: str
    note: str = ""
    best: bool = False
    link: str = ""


@dataclass(frozen=True)
class Table:
    """``words``: columns that hold words rather than numbers; the first always does, and heads its row.

    ``sortable``: a click on the head of a column sorts by it, in a page.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    words: Sequence[int] = ()
    sortable: bool = False


@dataclass(frozen=True)
class Facts:
    """Names and what they are, one value each."""

    caption: str
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Number:
    """A result that is to be seen first: its name, its value, and what it is compared with, a line each."""

    name: str
    value: str
    beside: Sequence[str] = ()


@dataclass(frozen=True)
class Numbers:
    """A few numbers in large digits."""

    caption: str
    numbers: Sequence[Number]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Figure:
    """Drawings side by side, each with a caption, under one ``key`` that tells their lines apart. HTML only."""

    panels: Sequence[tuple[str, Element]]
    key: Element | None = None


@dataclass(frozen=True)
class Details:
    """What is there to be looked up: closed at first, unless it is ``open``."""

    content: Table | Facts
    open: bool = False


Block = Text | Facts | Numbers | Table | Figure | Details


@dataclass(frozen=True)
class Section:
    """``name`` is what links lead to (#name)."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole report; ``about``: when and how the runs were made, in a line."""

    title: str
    lead: str
    about: str = ""
    sections: Sequence[Section] = field(default_factory=tuple)
