"""Elements of HTML and SVG. The standard library's element tree escapes every text and attribute when it is written."""

from __future__ import annotations

from xml.etree.ElementTree import Element, indent, tostring

from pfedmma.system.console import printable


def tag(kind: str, /, *content: Element | str, **attributes: str | float) -> Element:
    """<kind attributes>content</kind>; ``class_`` is class, other underscores are dashes, numbers are written short."""
    element = Element(kind, {key.rstrip("_").replace("_", "-"): short(value) for key, value in attributes.items()})
    for item in content:
        if isinstance(item, Element):
            element.append(item)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + printable(item)
        else:
            element.text = (element.text or "") + printable(item)
    return element


def short(value: str | float) -> str:
    """A length in a drawing to a tenth of a pixel."""
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def page(root: Element) -> str:
    """A whole HTML document, an element a line; a table's row is one, since there are many."""
    indent(root)
    for row in root.iter("tr"):
        row.text = None
        for cell in row:
            cell.tail = None
    return "<!doctype html>\n" + tostring(root, encoding="unicode", method="html") + "\n"
