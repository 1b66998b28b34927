"""What a report consists of, whether it becomes HTML or Markdown. All text is plain; the renderers escape it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element


@dataclass(frozen=True)
class Cell:
    """A table's cell; ``note`` is said smaller beside it, ``best`` marks the best of a column."""

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """``words``: columns that hold words rather than numbers; the first always does, and heads its row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    words: Sequence[int] = ()


@dataclass(frozen=True)
class Facts:
    """Names and what they are, one value each."""

    caption: str
    pairs: Sequence[tuple[str, str]]


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
    """What is there to be looked up: closed at first."""

    content: Table | Facts


Block = Text | Facts | Table | Figure | Details


@dataclass(frozen=True)
class Section:
    """``name`` is what links lead to (#name)."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    lead: str
    sections: Sequence[Section] = field(default_factory=tuple)
