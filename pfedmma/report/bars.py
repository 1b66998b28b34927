"""Drawings of amounts, as `pfedmma.report.charts` draws lines: a row or a bar for each client, run or part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from pfedmma.report.axes import Axis, linear, round_step
from pfedmma.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, canvas, colour, frame, mark, scale_below
from pfedmma.report.markup import short, tag
from pfedmma.system.intervals import Interval
from pfedmma.system.series import look

ROW = 15.0


def dumbbells(rows: Sequence[tuple[str, float | None, float | None, str]], span: Sequence[float]) -> Element:
    """Rows of (label, before, after, tooltip): from a hollow mark to a filled one; what falls is dashed and ends in a diamond.

    ``span``: values that the axis must reach.
    """
    bottom = TOP + ROW * len(rows)
    left = 22.0 + 6.3 * max((len(label) for label, *_ in rows), default=0)
    x = linear(span, left, RIGHT)
    image = canvas(bottom + 36, "one row a client", scale_below(x, bottom, "percent"))
    for i, (label, before, after, tooltip) in enumerate(rows):
        y = TOP + ROW * (i + 0.5)
        falls = before is not None and after is not None and after < before
        row = tag("g", tag("title", tooltip), class_="loss" if falls else "gain")
        row.append(tag("text", label, x=left - 8, y=y + 4, text_anchor="end"))
        if before is not None and after is not None:
            row.append(tag("line", x1=x.at(before), x2=x.at(after), y1=y, y2=y, stroke_dasharray="3 2" if falls else "none"))
        if before is not None:
            row.append(mark(x.at(before), y, "circle", "hollow"))
        if after is not None:
            row.append(mark(x.at(after), y, "diamond" if falls else "circle", "filled"))
        image.append(row)
    return image


def dots(rows: Sequence[tuple[str, int, Interval]], level: float | None) -> Element:
    """Rows of (label, position of its look, mean with its interval) in percent; ``level``: zero-shot, a line."""
    bottom = TOP + 12 + 1.4 * ROW * len(rows)
    left = 22.0 + 6.3 * max((len(label) for label, *_ in rows), default=0)
    reach = [
        (max(score.mean - score.half, 0.0), min(score.mean + score.half, 100.0)) for _, _, score in rows
    ]  # of few seeds it goes beyond
    ends = [end for pair in reach for end in pair]
    x = linear([*ends, *([] if level is None else [level])], min(left, WIDTH / 2), RIGHT)
    image = canvas(bottom + 36, "a row a method", scale_below(x, bottom, "percent"))
    if level is not None:
        image.append(tag("line", class_="reference", x1=x.at(level), x2=x.at(level), y1=TOP, y2=bottom))
        image.append(
            tag("text", "zero-shot", class_="note", x=x.at(level), y=TOP, text_anchor="middle" if x.at(level) > left + 20 else "start")
        )
    for i, ((label, position, score), (low, high)) in enumerate(zip(rows, reach, strict=True)):
        y = TOP + 12 + 1.4 * ROW * (i + 0.5)
        row = tag("g", tag("title", f"{label}: {score.mean:.2f} ± {score.half:.2f} over {score.count} seeds"))
        row.append(tag("text", label, x=min(left, WIDTH / 2) - 8, y=y + 4, text_anchor="end"))
        row.append(tag("line", class_=f"line {colour(position)}", x1=x.at(low), x2=x.at(high), y1=y, y2=y))
        row.append(mark(x.at(score.mean), y, look(position).mark, f"mark {colour(position)}"))
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
    image = canvas(HEIGHT, "histogram over clients", frame(x, y, lambda v: f"{v:g}", unit))
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


def gains(rows: Sequence[tuple[float, str]]) -> Element:
    """Bars of (points gained, tooltip) from zero, in the order of their height; how many gain and lose stands above them."""
    ordered = sorted(rows)
    x = Axis(0.0, float(max(len(ordered), 1)), LEFT, RIGHT, ())
    y = linear([0.0, *(value for value, _ in ordered)], BOTTOM, TOP + 16)
    image = canvas(HEIGHT, "a bar a client", frame(x, y, lambda v: f"{v:+g}" if v else "0", "clients, by points of Local minus zero-shot"))
    wide = x.at(1.0) - x.at(0.0)
    for number, (value, tooltip) in enumerate(ordered):
        bar = tag("rect", tag("title", tooltip), class_="loss" if value < 0 else "gain", x=x.at(number) + wide * 0.1, width=wide * 0.8)
        bar.attrib |= {"y": short(min(y.at(value), y.at(0.0))), "height": short(max(abs(y.at(value) - y.at(0.0)), 1.0))}
        image.append(bar)
    image.append(tag("line", class_="zero", x1=LEFT, x2=RIGHT, y1=y.at(0.0), y2=y.at(0.0)))
    for anchor, at, text in (
        ("start", LEFT, f"{sum(v < 0 for v, _ in ordered)} lose"),
        ("end", RIGHT, f"{sum(v > 0 for v, _ in ordered)} gain"),
    ):
        image.append(tag("text", text, class_="note", x=at, y=TOP + 6, text_anchor=anchor))
    return image


def bars(rows: Sequence[tuple[str, float, str, str]]) -> Element:
    """Rows of (label, value, value as text, class): the label above its bar, from zero."""
    top = max((value for _, value, _, _ in rows), default=0.0) or 1.0
    image = canvas(len(rows) * 34.0 + 4, "bars", [])
    for i, (label, value, text, class_) in enumerate(rows):
        y, width = i * 34.0, max(1.0, value / top * (WIDTH - 4))
        image.append(tag("text", label, x=2, y=y + 13))
        image.append(tag("text", text, x=WIDTH - 2, y=y + 13, text_anchor="end"))
        image.append(tag("rect", tag("title", f"{label}: {text}"), class_=class_, x=2, y=y + 18, height=10, width=width))
    return image


def stacked(rows: Sequence[tuple[str, str, Sequence[tuple[str, float]]]]) -> Element:
    """Rows of (label, total as text, parts): each bar is the whole, its parts follow one another and are named below in that order."""
    image = canvas(len(rows) * 52.0 + 2, "parts of a whole", [])
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
