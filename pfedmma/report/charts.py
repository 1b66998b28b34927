"""Drawings as inline SVG, which a page shows without anything else. How series look is said in `pfedmma.system.series`; their colours are
classes that the page's style fills in.

A drawing is 360 units wide, about what a phone shows, so that its text has the size of the page's wherever it stands.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from xml.etree.ElementTree import Element

from pfedmma.report.axes import Axis, decades, linear
from pfedmma.report.markup import short, tag
from pfedmma.report.runs import Report
from pfedmma.system.series import look

WIDTH, HEIGHT = 360.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 350.0, 12.0, 190.0  # of the plotting area
LINE = 2.0  # width of a curve, as in the page's style
LABEL = 12.0  # height of a line of text
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
    """``points`` (round, epoch or bytes; value); ``index`` is the position of its look, None for a reference that no run stands for.

    ``band``: (round, from, to) around it.
    """

    label: str
    points: Sequence[tuple[float, float | None]]
    index: int | None
    band: Sequence[tuple[float, float, float]] = ()


def line_chart(
    curves: Sequence[Curve], form: Format, levels: Sequence[tuple[str, float]] = (), logarithmic: bool = False, along: str = "round"
) -> Element:
    """Curves over rounds, or what else lies ``along`` the axis; ``levels`` are horizontal references with their labels.

    Values that are None leave a gap.
    """
    drawn = [replace(curve, points=thinned(curve.points)) for curve in curves]
    x = linear([x for curve in curves for x, _ in curve.points], LEFT, RIGHT, whole=True)
    values = [v for v in _values(drawn, levels) if v > 0 or not logarithmic]
    return _lines(drawn, x, (decades if logarithmic else linear)(values, BOTTOM, TOP), levels, Words(form, along, f"{along} {{:g}}", along))


def against_bytes(curves: Sequence[Curve], form: Format, bytes_: Format, levels: Sequence[tuple[str, float]], logarithmic: bool) -> Element:
    """Curves over bytes."""
    drawn = [replace(curve, points=thinned([point for point in curve.points if point[0] > 0 or not logarithmic])) for curve in curves]
    moved = [x for curve in drawn for x, _ in curve.points]
    x = decades(moved, LEFT, RIGHT) if logarithmic else linear([0.0, *moved], LEFT, RIGHT, 4)
    words = Words(form, "bytes up and down, all clients", "{}", "byte", bytes_)
    return _lines(drawn, x, linear(_values(drawn, levels), BOTTOM, TOP), levels, words)


@dataclass(frozen=True)
class Words:
    """What a drawing says: ``form`` of its values; ``unit`` below it; ``at``: where a point lies; ``along``: what its lines go over."""

    form: Format
    unit: str
    at: str
    along: str
    ticks: Format = "{:g}".format

    def place(self, x: float) -> str:
        return self.at.format(self.ticks(x) if self.at == "{}" else x)


def _values(drawn: Sequence[Curve], levels: Sequence[tuple[str, float]]) -> list[float]:
    """All that the axis of values must reach; no level may lie on the frame, where it could not be seen."""
    values = [v for curve in drawn for _, v in curve.points if v is not None] + [v for _, v in levels]
    values += [end for curve in drawn for _, *ends in curve.band for end in ends]
    room = 0.06 * (max(values) - min(values)) if levels else 0.0
    return values + [v + shift for _, v in levels for shift in (-room, room)]


def _lines(drawn: Sequence[Curve], x: Axis, y: Axis, levels: Sequence[tuple[str, float]], words: Words) -> Element:
    image = canvas(HEIGHT, f"lines over {words.along}s", frame(x, y, words.form, words.unit, words.ticks))
    for _, value in levels:
        image.append(tag("line", class_="reference", x1=LEFT, x2=RIGHT, y1=y.at(value), y2=y.at(value)))
    image.extend(_band(curve, x, y) for curve in drawn if curve.band)
    image.extend(_curve(curve, x, y, words) for curve in drawn)
    for (label, _), height in zip(levels, heights([y.at(value) for _, value in levels]), strict=True):  # over the curves, to be read
        image.append(tag("text", label, class_="note", x=RIGHT, y=height, text_anchor="end"))
    return image


def heights(at: Sequence[float]) -> list[float]:
    """Where the labels of lines at these heights stand: above each, but below where there is no room or another label stands."""
    found: dict[int, float] = {}
    last = -LABEL
    for number in sorted(range(len(at)), key=lambda number: at[number]):
        above, below = at[number] - 4, at[number] + LABEL
        last = above if above >= max(TOP + 10, last + LABEL) else max(below, last + LABEL)
        found[number] = last
    return [found[number] for number in range(len(at))]


def _band(curve: Curve, x: Axis, y: Axis) -> Element:
    """The area around a curve."""
    ends = [*((a, high) for a, _, high in curve.band), *((a, low) for a, low, _ in reversed(curve.band))]
    path = "M" + "L".join(f"{short(x.at(a))} {short(y.at(b))}" for a, b in ends) + "z"
    return tag("path", class_=f"band {colour(curve.index or 0)}", d=path)


def bundle(lines: Sequence[Curve], named: Sequence[Curve], form: Format) -> Element:
    """Many thin curves over rounds, told apart by their tooltips alone, and a few over them, named where they end."""
    most = most_in_bundle(len(lines))
    thin = [Curve(curve.label, thinned(curve.points, most), None) for curve in lines]
    thick = [Curve(curve.label, thinned(curve.points, most), curve.index) for curve in named]
    points = [point for curve in (*thin, *thick) for point in curve.points]
    x = linear([a for a, _ in points], LEFT, RIGHT, whole=True)
    y = linear([b for _, b in points if b is not None], BOTTOM, TOP)
    words = Words(form, "round", "round {:g}", "round")
    image = canvas(HEIGHT, "a line a client over rounds", frame(x, y, form, "round"))
    for curve in thin:
        known = [b for _, b in curve.points if b is not None]
        label = f"{curve.label}: {form(known[0])} to {form(known[-1])}" if known else curve.label
        path = "".join("M" + "L".join(f"{short(x.at(a))} {short(y.at(b))}" for a, b in part) for part in _unbroken(curve.points, False))
        image.append(tag("path", tag("title", label), class_="thin", d=path))
    image.extend(_curve(curve, x, y, words) for curve in thick)
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


def thinned_band(band: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """As many of its places as a drawing's points."""
    return list(band[:: stride(len(band))])


def stride(points: int, most: int = MOST_POINTS) -> int:
    """How many neighbours of so many points are drawn as their mean."""
    return max(1, -(-points // most))


def colour(index: int) -> str:
    """The class by which the page's style colours a series."""
    return f"s{look(index).colour}"


def key(labels: Sequence[tuple[int, str]]) -> Element | None:
    """The list that tells series apart: stroke, mark and colour of each beside its label. None where there is one."""
    items = tag("ul", class_="key")
    for index, label in labels:
        sample = tag("svg", class_="sample", viewBox="0 0 34 12", aria_hidden="true")
        sample.append(tag("path", class_=_class(index), stroke_dasharray=_stroke(index), d="M1 6H33"))
        sample.append(mark(17, 6, look(index).mark, f"mark {colour(index)}"))
        items.append(tag("li", sample, label))
    return items if len(labels) > 1 else None


def key_of(runs: Sequence[Report]) -> Element | None:
    """The key of a drawing with a line for each run; those of one group look alike."""
    return key(list(dict.fromkeys((run.look, run.group) for run in runs)))


def _curve(curve: Curve, x: Axis, y: Axis, words: Words) -> Element:
    group = tag("g")
    points = [(a, b) for a, b in curve.points if b is not None and (b > 0 or not y.logarithmic)]
    for part in _unbroken(curve.points, y.logarithmic):
        path = "M" + "L".join(f"{short(x.at(a))} {short(y.at(b))}" for a, b in part)
        group.append(tag("path", class_=_class(curve.index), stroke_dasharray=_stroke(curve.index), d=path))
    every = -(-len(points) // MOST_MARKS) or 1
    for a, b in points[::-1][::every]:  # from the last one back: it is always marked
        class_ = "tip" if curve.index is None else f"mark {colour(curve.index)}"
        sign = mark(x.at(a), y.at(b), look(curve.index or 0).mark, class_)
        sign.append(tag("title", f"{curve.label}, {words.place(a)}: {words.form(b)}"))
        group.append(sign)
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


def canvas(height: float, description: str, content: Sequence[Element]) -> Element:
    return tag("svg", *content, viewBox=f"0 0 {short(WIDTH)} {short(height)}", role="img", aria_label=description)


def frame(x: Axis, y: Axis, form: Format, unit: str, ticks: Format = "{:g}".format) -> list[Element]:
    parts = []
    for value in y.ticks:
        at = y.at(value)
        parts.append(tag("line", class_="grid", x1=LEFT, x2=RIGHT, y1=at, y2=at))
        parts.append(tag("text", form(value), x=LEFT - 6, y=at + 4, text_anchor="end"))
    return parts + scale_below(x, BOTTOM, unit, ticks)


def scale_below(x: Axis, bottom: float, unit: str, ticks: Format = "{:g}".format) -> list[Element]:
    parts = [tag("line", class_="axis", x1=x.start, x2=x.stop, y1=bottom, y2=bottom)]
    for value in x.ticks:
        parts.append(tag("line", class_="axis", x1=x.at(value), x2=x.at(value), y1=bottom, y2=bottom + 4))
        said = ticks(value)
        at = min(x.at(value), WIDTH - 3.8 * len(said))  # a long one at the end would not be seen whole
        parts.append(tag("text", said, x=at, y=bottom + 17, text_anchor="middle"))
    return [*parts, tag("text", unit, class_="note", x=(x.start + x.stop) / 2, y=bottom + 32, text_anchor="middle")]


def mark(x: float, y: float, kind: str, class_: str) -> Element:
    return tag("path", class_=class_, d=f"M{short(x)} {short(y)}{MARKS[kind]}")


def _class(index: int | None) -> str:
    return "reference" if index is None else f"line {colour(index)}"


def _stroke(index: int | None) -> str:
    dashes = () if index is None else look(index).dashes
    return " ".join(short(LINE * length) for length in dashes) or "none"
