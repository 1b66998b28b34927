"""The first screen: what was reached beside zero-shot and clients on their own, for how many bytes, and who gains and who loses."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from operator import methodcaller

from pfedmma.records.rows import IN_HM, TITLES, RoundRow
from pfedmma.report import bars, charts
from pfedmma.report.accuracy import mean_curve, zero_shot_levels
from pfedmma.report.charts import Curve
from pfedmma.report.clients import described
from pfedmma.report.costs import brief
from pfedmma.report.document import Block, Cell, Figure, Number, Numbers, Section, Table, Text
from pfedmma.report.groups import Group, by_setting
from pfedmma.system.console import megabytes, percent
from pfedmma.system.intervals import Interval

SHOWN = (*IN_HM, "hm")
LOCAL = "local"  # the method whose clients train alone
MOST_BARS = 60  # clients; more are a histogram


def section(groups: Sequence[Group]) -> Section:
    """Of each setting the best method's numbers, and all methods beside each other."""
    blocks: list[Block] = []
    settings = by_setting(groups)
    for setting, members in settings.items():
        about = f" on {setting}" if len(settings) > 1 else ""
        best = best_of(members)
        if best is None:
            blocks.append(Text(f"Nothing is evaluated{about}."))
            continue
        if len(settings) == 1:
            blocks.append(_numbers(best, members))
        blocks += _drawings(best, members, about)
        if len(members) > 1 or len(best.runs) > 1:
            blocks.append(table(members, f"Methods{about}: percent, mean over seeds ± its 95 % interval"))
    return Section("result", "Result", blocks)


def best_of(members: Sequence[Group]) -> Group | None:
    """The group with the highest HM among those that are no baseline, where there are others; None where nothing is evaluated."""
    evaluated = [group for group in members if any(run.accuracy for run in group.runs)]
    return max(methods(evaluated), key=lambda group: mean(group.score("hm")) or 0.0, default=None)


def methods(members: Sequence[Group]) -> list[Group]:
    """Without zero-shot and clients on their own, which the others are compared with; or what there is of these."""
    trained = [group for group in members if not group.is_reference]
    return [group for group in trained if group.runs[0].method != LOCAL] or trained or list(members)


def mean(found: Interval | None) -> float | None:
    return found.mean if found else None


def _numbers(best: Group, members: Sequence[Group]) -> Numbers:
    alone = next((group for group in members if group.runs[0].method == LOCAL and group is not best), None)
    count, apart = len(methods(members)), f" beside {alone.label}" if alone else ""
    said = f"{best.label}, the highest HM of {count} methods{apart}" if count > 1 else best.label
    seeds = f"; means over {len(best.runs)} seeds, ± their 95 % intervals" if len(best.runs) > 1 else ""
    numbers = [_number(best, alone, name) for name in SHOWN if best.score(name)]
    return Numbers(f"{said}: percent{seeds}{best.so_far}", numbers)


def _number(best: Group, alone: Group | None, name: str) -> Number:
    score, beside = best.score(name), []
    if score and score.count > 1:
        beside.append(f"± {score.half:.2f}")
    if (gain := best.gain(name)) and not best.is_reference:
        beside.append(beyond(gain.mean, "zero-shot"))
    if alone and (gain := best.over(alone, name)):
        beside.append(beyond(gain.mean, alone.label))
    return Number(TITLES[name], percent(mean(score)), beside)


def beyond(points: float, other: str) -> str:
    """How far a score lies from another one, in words: ``5.33 below local``."""
    shown = f"{abs(points):.2f}"
    if not float(shown):
        return f"equal to {other}"
    return f"{shown} {'above' if points > 0 else 'below'} {other}"


def _drawings(best: Group, members: Sequence[Group], about: str) -> list[Block]:
    drawn = [group for group in members if not group.is_reference] or list(members)
    panels = [(f"HM, percent, against bytes{about}", chart)] if (chart := _against_bytes(drawn)) is not None else []
    if len(drawn) > 1:
        seeds = "; mean and 95 % interval over seeds" if any(len(group.runs) > 1 for group in drawn) else ""
        panels.append((f"HM, percent, by method{about}{seeds}", bars.dots(*_dots(drawn))))
    clients = [(gain, described(client)) for run in best.runs for client in run.clients if (gain := client.gain("local")) is not None]
    if clients and not best.is_reference:
        gains = [gain for gain, _ in clients]
        middle = statistics.median(gains)
        counts = f"{sum(v > 0 for v in gains):,} of {len(gains):,} gain, {sum(v < 0 for v in gains):,} lose, median {middle:+.2f}"
        few = len(clients) <= MOST_BARS
        chart = bars.gains(clients) if few else bars.histogram(gains, "points of Local minus zero-shot", True)
        panels.append((f"Clients of {best.label} against zero-shot: {counts}", chart))
    return [Figure(panels, charts.key([(group.look, group.label) for group in drawn]))] if panels else []


def _dots(drawn: Sequence[Group]) -> tuple[list[tuple[str, int, Interval]], float | None]:
    """The rows of `bars.dots`, and the level of zero-shot."""
    level = zero_shot_levels([run for group in drawn for run in group.runs], methodcaller("score", "hm"))
    rows = [(group.label, group.look, score) for group in drawn if (score := group.score("hm"))]
    return rows, level[0][1] if level else None


def _against_bytes(drawn: Sequence[Group]) -> charts.Element | None:
    """HM of each evaluation against the bytes moved by then; what moves none is a level. None where there are no rounds."""
    value = methodcaller("score", "hm")
    curves = [curve for curve in map(_by_bytes, drawn) if curve.points]
    moving = [curve for curve in curves if curve.points[-1][0] > 0]
    levels = zero_shot_levels([run for group in drawn for run in group.runs], value)
    levels += [(f"{c.label}, no bytes", last) for c in curves if c not in moving and (last := c.points[-1][1]) is not None]
    if not moving:
        return None
    return charts.against_bytes(moving, lambda v: f"{v:.4g}", brief, levels, logarithmic=len(moving) > 1)


def _by_bytes(group: Group) -> Curve:
    moved: dict[int, float] = {}
    for run in group.runs:
        each = (row.comm.uplink_bytes + row.comm.downlink_bytes for row in run.rounds)
        moved |= {id(row): float(total) for row, total in zip(run.rounds, itertools.accumulate(each), strict=True)}
    curve = mean_curve(group, lambda row: moved[id(row)], _hm)
    return Curve(curve.label, [point for point in curve.points if point[1] is not None], curve.index, curve.band)


def _hm(row: RoundRow) -> float | None:
    return row.accuracy.score("hm") if row.accuracy else None


def table(members: Sequence[Group], caption: str) -> Table:
    """A line for each method, zero-shot first."""
    own = [group for group in members if not group.is_reference] or list(members)
    names = [name for name in SHOWN if any(group.score(name) for group in own)]
    alone = next((group for group in own if group.runs[0].method == LOCAL), None) if len(own) > 1 else None
    best = {name: max(v for group in own if (v := mean(group.score(name))) is not None) for name in names if len(own) > 1}
    levels = {
        name: max((level for group in members if (level := group.zero_shot(name))), key=lambda level: level.count, default=None)
        for name in names
    }
    rows: list[list[Cell | str]] = []
    if any(levels.values()) and not own[0].is_reference:
        rows.append(["zero-shot", "", *(_cell(level, None) for level in levels.values()), *[""] * (1 + bool(alone)), megabytes(0)])
    for group in own:
        cells = [_cell(group.score(name), best.get(name)) for name in names]
        gains = [_signed(group.gain("hm"))] + ([_signed(group.over(alone, "hm") if group is not alone else None)] if alone else [])
        rows.append([group.label + group.so_far, str(len(group.runs)), *cells, *gains, "-" if group.up is None else megabytes(group.up)])
    head = ("method", "seeds", *(TITLES[name] for name in names), "HM minus zero-shot")
    return Table(caption, (*head, *[f"HM minus {LOCAL}"] * bool(alone), "up / client / round"), rows)


def _cell(score: Interval | None, best: float | None) -> Cell:
    if score is None:
        return Cell("-")
    return Cell(percent(score.mean), _spread(score), score.mean == best)


def _signed(gain: Interval | None) -> Cell | str:
    if gain is None:
        return "-"
    return Cell(f"{gain.mean:+.2f}", _spread(gain))


def _spread(found: Interval) -> str:
    return f"± {found.half:.2f}" if found.count > 1 else ""
