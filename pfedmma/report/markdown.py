"""A report as Markdown: the same content without the drawings."""

from __future__ import annotations

from pfedmma.report.document import Block, Cell, Details, Document, Facts, Numbers, Table, Text
from pfedmma.system.markdown import bold, escape, table


def render(document: Document) -> str:
    """The whole report."""
    lines = [f"# {escape(document.title)}", "", escape(document.lead), "", *([escape(document.about), ""] if document.about else [])]
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
    if isinstance(block, Numbers):
        rows = [[number.name, number.value, "; ".join(number.beside)] for number in block.numbers]
        return _table(Table(block.caption, ("", "percent", ""), rows, (2,)))
    return _table(block) if isinstance(block, Table) else []


def _table(block: Table) -> list[str]:
    rows = [[_cell(cell) for cell in row] for row in block.rows]
    return [bold(escape(block.caption)), "", *table([escape(name) for name in block.columns], rows, block.words), ""]


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return escape(cell)
    text = escape(cell.text) + (f" ({escape(cell.note)})" if cell.note else "")
    return bold(text) if cell.best else text
