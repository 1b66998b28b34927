"""A report as Markdown: the same content without the drawings."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pfedmma.report.document import Block, Cell, Details, Document, Facts, Table, Text, printable


def render(document: Document) -> str:
    """The whole report."""
    lines = [f"# {escape(document.title)}", "", escape(document.lead), ""]
    for section in document.sections:
        content = [line for block in section.blocks for line in _block(block)]
        lines += [f"## {section.title}", "", *content] if content else []
    return "\n".join(lines)


def _block(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [escape(block.text), ""]
    if isinstance(block, Details):
        return _block(block.content)
    if isinstance(block, Facts):
        return _table(Table(block.caption, ("", ""), block.pairs, (1,)))
    return _table(block) if isinstance(block, Table) else []


def _table(table: Table) -> list[str]:
    rule = "".join("---|" if i == 0 or i in table.words else "---:|" for i in range(len(table.columns)))
    rows = [_row([_cell(cell) for cell in row]) for row in table.rows]
    return [f"**{escape(table.caption)}**", "", _row([escape(name) for name in table.columns]), f"|{rule}", *rows, ""]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return escape(cell)
    text = escape(cell.text) + (f" ({escape(cell.note)})" if cell.note else "")
    return f"**{text}**" if cell.best else text


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no end of a cell."""
    one_line = " ".join(printable(text).split())
    return re.sub(r"([\\`*\[\]|])", r"\\\1", one_line).replace("&", "&amp;").replace("<", "&lt;")
