"""Drawings as inline SVG, which a page shows without anything else. How series look is said in `pfedmma.system.series`; their colours are
classes that the page's style fills in.

A drawing is 360 units wide, about what a phone shows, so that its text has the size of the page's wherever it stands.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from pfedmma.report.axes import Axis, decades, linear, round_step
from pfedmma.report.markup import short, tag
from pfedmma.system.series import look

WIDTH, HEIGHT = 360.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 350.0, 12.0, 190.0  # of the plotting area
ROW = 15.0
LINE = 2.0  # width of a curve, as in the page's style
MARKS = {
    "circle": "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "square": "m-3-3h6v6h-6z",
    "triangle": "m0-4l4 7h-8z",
    "diamond": "m0-4l4 4-4 4-4-4z",
    "triangle down": "m-4-3h8l-4 7z",
}
MOST_POINTS, MOST_MARKS = 300, 40
MOST_IN_BUNDLE, FEWEST_POINTS = 6000, 20  # points of all thin lines together; of one, all the same
Format = Callable[[float], str]


@dataclass(frozen=True)
class Curve:
    """``points`` (round or epoch, value); ``index`` is the position of the series, None for a reference that no run stands for."""

    label: str
    points: Sequence[tuple[float, float | None]]
    index: int | None


def line_chart(
    curves: Sequence[Curve], form: Format, levels: Sequence[tuple[str, float]] = (), logarithmic: bool = False, along: str = "round"
) -> Element:
    """Curves over rounds, or what else lies ``along`` the axis; ``levels`` are horizontal references with their labels.

    Values that are None leave a gap.
    """
    drawn = [Curve(curve.label, thinned(curve.points), curve.index) for curve in curves]
    rounds = [x for curve in curves for x, _ in curve.points]
    values = [y for curve in drawn for _, y in curve.points if y is not None and (y > 0 or not logarithmic)] + [y for _, y in levels]
    room = 0.06 * (max(values) - min(values)) if levels else 0.0  # no level may lie on the frame, where it could not be seen
    values += [y + shift for _, y in levels for shift in (-room, room)]
    x, y = linear(rounds, LEFT, RIGHT, whole=True), (decades if logarithmic else linear)(values, BOTTOM, TOP)
    image = _image(HEIGHT, f"lines over {along}s", _frame(x, y, form, along))
    for _, value in levels:
        image.append(tag("line", class_="reference", x1=LEFT, x2=RIGHT, y1=y.at(value), y2=y.at(value)))
    image.extend(_curve(curve, x, y, form, along) for curve in drawn)
    for label, value in levels:  # over the curves, to be read where they cross
        below = 12 if y.at(value) < TOP + 14 else -4
        image.append(tag("text", label, class_="note", x=RIGHT, y=y.at(value) + below, text_anchor="end"))
    return image


def bundle(lines: Sequence[Curve], named: Sequence[Curve], form: Format) -> Element:
    """Many thin curves over rounds, told apart by their tooltips alone, and a few over them, named where they end."""
    most = most_in_bundle(len(lines))
    thin = [Curve(curve.label, thinned(curve.points, most), None) for curve in lines]
    thick = [Curve(curve.label, thinned(curve.points, most), curve.index) for curve in named]
    points = [point for curve in (*thin, *thick) for point in curve.points]
    x = linear([a for a, _ in points], LEFT, RIGHT, whole=True)
    y = linear([b for _, b in points if b is not None], BOTTOM, TOP)
    image = _image(HEIGHT, "a line a client over rounds", _frame(x, y, form, "round"))
    for curve in thin:
        known = [b for _, b in curve.points if b is not None]
        label = f"{curve.label}: {form(known[0])} to {form(known[-1])}" if known else curve.label
        path = "".join("M" + "L".join(f"{short(x.at(a))} {short(y.at(b))}" for a, b in part) for part in _unbroken(curve.points, False))
        image.append(tag("path", tag("title", label), class_="thin", d=path))
    image.extend(_curve(curve, x, y, form, "round") for curve in thick)
    image.extend(_named(curve, x, y) for curve in thick if any(b is not None for _, b in curve.points))
    return image


def most_in_bundle(lines: int) -> int:
    """How many points each of so many thin curves has at most."""
    return max(FEWEST_POINTS, MOST_IN_BUNDLE // max(lines, 1))


def _named(curve: Curve, x: Axis, y: Axis) -> Element:
    """The name of a curve where it ends: below its end in the lower half, above it in the upper one."""
    a, b = [(a, b) for a, b in curve.points if b is not None][-1]
    lower = (TOP + BOTTOM) / 2 < y.at(b) < BOTTOM - 14
    below = 14 if lower or y.at(b) < TOP + 14 else -6
    return tag("text", curve.label, class_="note", x=x.at(a), y=y.at(b) + below, text_anchor="end")


def thinned(points: Sequence[tuple[float, float | None]], most: int = MOST_POINTS) -> list[tuple[float, float | None]]:
    """The points, or means of as many neighbours as keep a drawing small: at most ``most`` of them."""
    size = stride(len(points), most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = ([v for _, v in group if v is not None] for group in groups)
    return [
        (statistics.fmean(x for x, _ in group), statistics.fmean(values) if values else None)
        for group, values in zip(groups, means, strict=True)
    ]


def stride(points: int, most: int = MOST_POINTS) -> int:
    """How many neighbours of so many points are drawn as their mean."""
    return max(1, -(-points // most))


def dumbbells(rows: Sequence[tuple[str, float | None, float | None, str]], span: Sequence[float]) -> Element:
    """Rows of (label, before, after, tooltip): from a hollow mark to a filled one; what falls is dashed and ends in a diamond.

    ``span``: values that the axis must reach.
    """
    bottom = TOP + ROW * len(rows)
    left = 22.0 + 6.3 * max((len(label) for label, *_ in rows), default=0)
    x = linear(span, left, RIGHT)
    image = _image(bottom + 36, "one row a client", _scale_below(x, bottom, "percent"))
    for i, (label, before, after, tooltip) in enumerate(rows):
        y = TOP + ROW * (i + 0.5)
        falls = before is not None and after is not None and after < before
        row = tag("g", tag("title", tooltip), class_="loss" if falls else "gain")
        row.append(tag("text", label, x=left - 8, y=y + 4, text_anchor="end"))
        if before is not None and after is not None:
            row.append(tag("line", x1=x.at(before), x2=x.at(after), y1=y, y2=y, stroke_dasharray="3 2" if falls else "none"))
        if before is not None:
            row.append(_mark(x.at(before), y, "circle", "hollow"))
        if after is not None:
            row.append(_mark(x.at(after), y, "diamond" if falls else "circle", "filled"))
        image.append(row)
    return image


def histogram(values: Sequence[float], unit: str, around_zero: bool) -> Element:
    """How many of ``values`` lie where; with ``around_zero`` no bar holds values of both signs, and each side is counted."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low, high = (min(low, 0.0), max(high, 0.0)) if around_zero else (low, high)
    step = round_step(high - low or 1.0, 24)
    bins = Counter(int(value // step) for value in values)
    first, last = min(bins, default=0), max(bins, default=0)
    x = linear([first * step, (last + 1) * step], LEFT, RIGHT)
    y = linear([0, max(bins.values(), default=1)], BOTTOM, TOP + 16)
    image = _image(HEIGHT, "histogram over clients", _frame(x, y, lambda v: f"{v:g}", unit))
    for index, count in sorted(bins.items()):
        start, stop = index * step, (index + 1) * step
        tooltip = tag("title", f"{count} clients: {start:g} to {stop:g} {unit}")
        bar = tag("rect", tooltip, class_="loss" if around_zero and index < 0 else "gain")
        bar.attrib |= {"x": short(x.at(start) + 0.5), "width": short(x.at(stop) - x.at(start) - 1)}
        bar.attrib |= {"y": short(y.at(count)), "height": short(BOTTOM - y.at(count))}
        image.append(bar)
    if around_zero:
        sides = (("end", -6, sum(v < 0 for v in values), "lose"), ("start", 6, sum(v > 0 for v in values), "gain"))
        image.append(tag("line", class_="zero", x1=x.at(0), x2=x.at(0), y1=TOP, y2=BOTTOM))
        for anchor, shift, count, verb in sides:
            text = f"\u25c0 {count} {verb}" if anchor == "end" else f"{count} {verb} \u25b6"
            fits = x.at(0) - LEFT > 70 if anchor == "end" else RIGHT - x.at(0) > 70
            if fits:
                image.append(tag("text", text, class_="note", x=x.at(0) + shift, y=TOP + 8, text_anchor=anchor))
    return image


def bars(rows: Sequence[tuple[str, float, str, str]]) -> Element:
    """Rows of (label, value, value as text, class): the label above its bar, from zero."""
    top = max((value for _, value, _, _ in rows), default=0.0) or 1.0
    image = _image(len(rows) * 34.0 + 4, "bars", [])
    for i, (label, value, text, class_) in enumerate(rows):
        y, width = i * 34.0, max(1.0, value / top * (WIDTH - 4))
        image.append(tag("text", label, x=2, y=y + 13))
        image.append(tag("text", text, x=WIDTH - 2, y=y + 13, text_anchor="end"))
        image.append(tag("rect", tag("title", f"{label}: {text}"), class_=class_, x=2, y=y + 18, height=10, width=width))
    return image


def stacked(rows: Sequence[tuple[str, str, Sequence[tuple[str, float]]]]) -> Element:
    """Rows of (label, total as text, parts): each bar is the whole, its parts follow one another and are named below in that order."""
    image = _image(len(rows) * 52.0 + 2, "parts of a whole", [])
    for i, (label, total, parts) in enumerate(rows):
        y, at = i * 52.0, 2.0
        whole = sum(value for _, value in parts) or 1.0
        image.append(tag("text", label, x=2, y=y + 13))
        image.append(tag("text", total, x=WIDTH - 2, y=y + 13, text_anchor="end"))
        for number, (name, value) in enumerate(parts):
            width = value / whole * (WIDTH - 4)
            tooltip = tag("title", f"{name}: {100 * value / whole:.1f} %")
            image.append(tag("rect", tooltip, class_=colour(number), x=at, y=y + 18, height=14, width=max(0.0, width - 1)))
            at += width
        said = " \u00b7 ".join(f"{name} {100 * value / whole:.0f}" for name, value in parts) + " %"
        image.append(tag("text", said, class_="note", x=2, y=y + 45))
    return image


def colour(index: int) -> str:
    """The class by which the page's style colours a series."""
    return f"s{look(index).colour}"


def key(labels: Sequence[tuple[int, str]]) -> Element | None:
    """The list that tells series apart: stroke, mark and colour of each beside its label. None where there is one."""
    items = tag("ul", class_="key")
    for index, label in labels:
        sample = tag("svg", class_="sample", viewBox="0 0 34 12", aria_hidden="true")
        sample.append(tag("path", class_=_class(index), stroke_dasharray=_stroke(index), d="M1 6H33"))
        sample.append(_mark(17, 6, look(index).mark, f"mark {colour(index)}"))
        items.append(tag("li", sample, label))
    return items if len(labels) > 1 else None


def _curve(curve: Curve, x: Axis, y: Axis, form: Format, along: str) -> Element:
    group = tag("g")
    points = [(a, b) for a, b in curve.points if b is not None and (b > 0 or not y.logarithmic)]
    for part in _unbroken(curve.points, y.logarithmic):
        path = "M" + "L".join(f"{short(x.at(a))} {short(y.at(b))}" for a, b in part)
        group.append(tag("path", class_=_class(curve.index), stroke_dasharray=_stroke(curve.index), d=path))
    every = -(-len(points) // MOST_MARKS) or 1
    for a, b in points[::-1][::every]:  # from the last one back: it is always marked
        class_ = "tip" if curve.index is None else f"mark {colour(curve.index)}"
        mark = _mark(x.at(a), y.at(b), look(curve.index or 0).mark, class_)
        mark.append(tag("title", f"{curve.label}, {along} {a:g}: {form(b)}"))
        group.append(mark)
    if curve.index is None and points:  # a reference is named where it ends
        group.append(tag("text", curve.label, class_="note", x=x.at(points[-1][0]), y=y.at(points[-1][1]) - 5, text_anchor="end"))
    return group


def _unbroken(points: Sequence[tuple[float, float | None]], positive: bool) -> Iterator[list[tuple[float, float]]]:
    part: list[tuple[float, float]] = []
    for a, b in [*points, (0.0, None)]:
        if b is not None and (b > 0 or not positive):
            part.append((a, b))
        elif part:
            yield part
            part = []


def _image(height: float, description: str, content: Sequence[Element]) -> Element:
    return tag("svg", *content, viewBox=f"0 0 {short(WIDTH)} {short(height)}", role="img", aria_label=description)


def _frame(x: Axis, y: Axis, form: Format, unit: str) -> list[Element]:
    parts = []
    for value in y.ticks:
        at = y.at(value)
        parts.append(tag("line", class_="grid", x1=LEFT, x2=RIGHT, y1=at, y2=at))
        parts.append(tag("text", form(value), x=LEFT - 6, y=at + 4, text_anchor="end"))
    return parts + _scale_below(x, BOTTOM, unit)


def _scale_below(x: Axis, bottom: float, unit: str) -> list[Element]:
    parts = [tag("line", class_="axis", x1=x.start, x2=x.stop, y1=bottom, y2=bottom)]
    for value in x.ticks:
        parts.append(tag("line", class_="axis", x1=x.at(value), x2=x.at(value), y1=bottom, y2=bottom + 4))
        parts.append(tag("text", f"{value:g}", x=x.at(value), y=bottom + 17, text_anchor="middle"))
    return [*parts, tag("text", unit, class_="note", x=(x.start + x.stop) / 2, y=bottom + 32, text_anchor="middle")]


def _mark(x: float, y: float, kind: str, class_: str) -> Element:
    return tag("path", class_=class_, d=f"M{short(x)} {short(y)}{MARKS[kind]}")


def _class(index: int | None) -> str:
    return "reference" if index is None else f"line {colour(index)}"


def _stroke(index: int | None) -> str:
    dashes = () if index is None else look(index).dashes
    return " ".join(short(LINE * length) for length in dashes) or "none"
