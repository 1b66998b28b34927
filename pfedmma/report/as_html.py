"""A report as one HTML file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from urllib.parse import quote
from xml.etree.ElementTree import Element

from pfedmma.report.document import Block, Cell, Details, Document, Facts, Figure, Numbers, Section, Table, Text
from pfedmma.report.markup import page, tag
from pfedmma.report.script import SCRIPT
from pfedmma.report.style import STYLE
from pfedmma.version import VERSION

# Even if something of a run's own slipped in unescaped, a browser would neither run nor fetch it: it runs the script of this digest alone.
_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_DIGEST}'"


def render(document: Document) -> str:
    """The whole page."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", document.title),
        tag("style", STYLE),
    )
    about = [tag("p", document.about, class_="about")] if document.about else []
    links = (tag("li", tag("a", section.title, href=f"#{section.name}")) for section in document.sections)
    body = tag(
        "body",
        tag("header", tag("h1", document.title), tag("p", document.lead), *about),
        tag("nav", tag("ul", *links), aria_label="sections"),
        tag("main", *map(_section, document.sections)),
        tag("footer", tag("p", f"pfedmma {VERSION}, python -m pfedmma.report. Accuracies in percent; 1 MB is 10^6 bytes.")),
        tag("script", SCRIPT),
    )
    return page(tag("html", head, body, lang="en"))


def _section(section: Section) -> Element:
    return tag("section", tag("h2", section.title), *map(_block, section.blocks), id=section.name)


def _block(block: Block) -> Element:
    if isinstance(block, Text):
        return tag("p", block.text)
    if isinstance(block, Facts):
        return _facts(block)
    if isinstance(block, Numbers):
        return _numbers(block)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Details):
        state = {"open": "open"} if block.open else {}
        return tag("details", tag("summary", block.content.caption), _block(block.content), **state)
    return _figure(block)


def _numbers(block: Numbers) -> Element:
    cards = tag("ul", class_="numbers")
    for number in block.numbers:
        beside = (tag("small", text) for text in number.beside)
        cards.append(tag("li", tag("span", number.name), tag("strong", number.value), *beside))
    return tag("figure", tag("figcaption", block.caption), cards)


def _facts(facts: Facts) -> Element:
    pairs = (tag("div", tag("dt", name), tag("dd", value), **_width(value)) for name, value in facts.pairs)
    return tag("dl", *pairs)


def _table(table: Table) -> Element:
    head = tag("tr", *(tag("th", name, scope="col", **_kind(table, i)) for i, name in enumerate(table.columns)))
    rows = (
        tag(
            "tr",
            tag("th", _named(row[0]), scope="row", **_width(_text(row[0]))),
            *(_cell(cell, table, i) for i, cell in enumerate(row) if i),
        )
        for row in table.rows
    )
    whole = tag("table", tag("thead", head), tag("tbody", *rows), **({"class_": "sortable"} if table.sortable else {}))
    # What is wider than the window scrolls inside a box, which the keyboard reaches too; the caption stays.
    return tag("figure", tag("figcaption", table.caption), tag("div", whole, class_="scroll", tabindex="0"))


def _kind(table: Table, column: int) -> dict[str, str]:
    return {"class_": "words"} if column in table.words else {}


def _width(text: str) -> dict[str, str]:
    return {"class_": "long"} if len(text) > 24 else {}


def _cell(cell: Cell | str, table: Table, column: int) -> Element:
    element = tag("td", _text(cell), **_kind(table, column))
    if column in table.words and _width(_text(cell)):
        element.set("class", "words long")
    if isinstance(cell, Cell):
        if cell.note:
            element = tag("td", f"{cell.text} ", tag("small", cell.note))
        if cell.best:
            element.set("class", "best")
    return element


def _named(cell: Cell | str) -> Element | str:
    """What heads a row, as a link where it has one."""
    return tag("a", cell.text, href=quote(cell.link)) if isinstance(cell, Cell) and cell.link else _text(cell)


def _text(cell: Cell | str) -> str:
    return cell.text if isinstance(cell, Cell) else cell


def _figure(figure: Figure) -> Element:
    panels = tag("div", class_="panels")
    for caption, drawing in figure.panels:
        panels.append(tag("figure", tag("figcaption", caption), drawing))
    return tag("div", *([] if figure.key is None else [figure.key]), panels)
