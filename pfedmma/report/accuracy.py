"""How good the models are: the final table, and curves over rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import NamedTuple

from pfedmma.records.evaluated import DIAGNOSTICS, written
from pfedmma.records.rows import IN_HM, TITLES, Accuracy, RoundRow
from pfedmma.report import charts
from pfedmma.report.charts import Curve
from pfedmma.report.document import Block, Cell, Figure, Section, Table, Text
from pfedmma.report.groups import Group, by_setting
from pfedmma.report.runs import Report, minus, same_setting, with_curves
from pfedmma.system.console import megabytes, percent


def final(runs: Sequence[Report]) -> Section:
    """The accuracies of every run beside zero-shot, and their spread over clients."""
    blocks: list[Block] = []
    groups = same_setting(runs)
    for group in groups:
        rows = _rows(group)
        if all(row.accuracy is None for row in rows):
            blocks.append(
                Text("Nothing was evaluated: evaluation.every=0 in these runs." if group[0].finished else "Nothing is evaluated yet.")
            )
            continue
        about = f" on {group[0].dataset} ({group[0].protocol}), {group[0].backbone}, seed {group[0].seed}" if len(groups) > 1 else ""
        blocks += [_means(rows, f"Accuracy in percent{about}; beside it the difference from zero-shot"), _spread(rows, about)]
        if any(row.accuracy.domains for row in rows if row.accuracy):
            blocks.append(_domains(rows, about))
        blocks += [Text(f"{run.label}: {run.selected}.") for run in group if run.selected is not None]
        if any(row.accuracy.diagnostics for row in rows if row.accuracy):
            blocks.append(_diagnostics(rows, about))
    return Section("accuracy", "Accuracy", blocks)


class Row(NamedTuple):
    """A line of the final tables; ``up``: bytes a client and round."""

    label: str
    accuracy: Accuracy | None
    up: float | None

    def score(self, name: str) -> float | None:
        return self.accuracy.score(name) if self.accuracy else None


def _rows(group: Sequence[Report]) -> list[Row]:
    """Zero-shot, then the runs, of which a zero-shot run is the reference itself."""
    reference = next((run.zero_shot for run in group if run.zero_shot), None)
    runs = [Row(run.label if run.finished else f"{run.label} (so far)", run.accuracy, run.up) for run in group if not run.is_reference]
    return [Row("zero-shot", reference, 0.0), *runs] if reference else runs or [Row(run.label, run.accuracy, run.up) for run in group]


def _present(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    return [name for name in names if any(row.score(name) is not None for row in rows)]


def _means(rows: Sequence[Row], caption: str) -> Table:
    columns = _present(rows, list(TITLES))
    reference = rows[0].accuracy.scores if rows[0].label == "zero-shot" and rows[0].accuracy else {}
    values = {name: [row.score(name) for row in rows] for name in columns}
    best = {name: max((v for v in column[bool(reference) :] if v is not None), default=None) for name, column in values.items()}
    several = len(rows) - bool(reference) > 1
    table: list[list[Cell | str]] = []
    for i, row in enumerate(rows):
        cells: list[Cell | str] = []
        for name in columns:
            value, gain = values[name][i], minus(values[name][i], reference.get(name))
            note = f"{gain:+.2f}" if gain is not None and not (reference and i == 0) else ""
            cells.append(Cell(percent(value), note, several and i >= bool(reference) and value is not None and value == best[name]))
        table.append([row.label, *cells, "-" if row.up is None else megabytes(row.up)])
    return Table(caption, ("run", *(TITLES[name] for name in columns), "up / client / round"), table)


def _spread(rows: Sequence[Row], about: str) -> Table:
    kinds = ("", "_std", "_worst", "_worst_decile")
    table = [
        [row.label, TITLES[name], *(percent(row.score(name + kind)) for kind in kinds)]
        for name in _present(rows, [*IN_HM, "unseen"])
        for row in rows
        if row.score(name) is not None
    ]
    columns = ("run", "of", "mean", "standard deviation", "worst client", "worst decile")
    return Table(f"Spread over clients in percent{about}", columns, table, (1,))


def _domains(rows: Sequence[Row], about: str) -> Table:
    with_domains = [(row.label, row.accuracy) for row in rows if row.accuracy and row.accuracy.domains]
    names = dict.fromkeys(name for _, accuracy in with_domains for name in accuracy.domains)
    table: list[list[Cell | str]] = [[name, *(percent(accuracy.domains.get(name)) for _, accuracy in with_domains)] for name in names]
    table.append(["average of domains", *(percent(accuracy.score("domain_average")) for _, accuracy in with_domains)])
    return Table(f"Local by domain in percent{about}", ("domain", *(label for label, _ in with_domains)), table)


def _diagnostics(rows: Sequence[Row], about: str) -> Table:
    known = [(row.label, row.accuracy) for row in rows if row.accuracy and row.accuracy.diagnostics]
    table = [[label, *(written(name, accuracy.diagnostic(name)) for name in DIAGNOSTICS)] for label, accuracy in known]
    caption = f"Diagnostics on the base test images{about}: margin and gap of normalised features, means over clients"
    return Table(caption, ("run", *DIAGNOSTICS.values()), table)


def curves(runs: Sequence[Report], groups: Sequence[Group]) -> Section:
    """Loss, accuracies and, where they are known, diagnostics over rounds, all groups of a setting in each drawing."""
    if not with_curves(runs):
        return Section("curves", "Over rounds", [Text("There is no metrics.jsonl, so there are no curves.")])
    blocks: list[Block] = []
    settings = by_setting(groups)
    for setting, members in settings.items():
        drawn = [group for group in members if with_curves(group.runs) and (not group.is_reference or len(runs) == 1)]
        if drawn:
            blocks += [Text(f"{setting}:")] * (len(settings) > 1)
            blocks.append(_figure(drawn))
    if any(len(group.runs) > 1 for group in groups):
        blocks.insert(0, Text("Lines are means over seeds, the bands around them a standard deviation wide on either side."))
    if (means := max(charts.stride(len(run.rounds)) for run in with_curves(runs))) > 1:
        blocks.insert(0, Text(f"Of the longest run each point is the mean of {means} rounds."))
    return Section("curves", "Over rounds", blocks)


def _figure(drawn: Sequence[Group]) -> Figure:
    losses = [mean_curve(group, lambda row: float(row.round), lambda row: row.loss) for group in drawn]
    panels = [("Training loss", charts.line_chart(losses, lambda v: f"{v:.4g}"))]
    shown = [(f"{TITLES[name]}, percent", methodcaller("score", name)) for name in (*IN_HM, "hm", "unseen")]
    shown += [(title[0].upper() + title[1:], methodcaller("diagnostic", name)) for name, title in DIAGNOSTICS.items()]
    panels += [(title, chart) for title, value in shown if (chart := _over_rounds(drawn, value)) is not None]
    return Figure(panels, charts.key([(group.look, group.label) for group in drawn]))


def _over_rounds(drawn: Sequence[Group], value: Callable[[Accuracy], float | None]) -> charts.Element | None:
    """What ``value`` takes of each evaluation of the groups, beside zero-shot; None where there is nothing."""
    lines = [mean_curve(g, lambda row: float(row.round), lambda row: value(row.accuracy) if row.accuracy else None) for g in drawn]
    if not any(v is not None for line in lines for _, v in line.points):
        return None
    return charts.line_chart(lines, lambda v: f"{v:.4g}", zero_shot_levels([run for group in drawn for run in group.runs], value))


def zero_shot_levels(runs: Sequence[Report], value: Callable[[Accuracy], float | None]) -> list[tuple[str, float]]:
    """The level of zero-shot, mean over seeds; none where it is not known."""
    by_seed = {run.seed: v for run in runs if run.zero_shot and (v := value(run.zero_shot)) is not None}
    return [("zero-shot", statistics.fmean(by_seed.values()))] if by_seed else []


def mean_curve(group: Group, along: Callable[[RoundRow], float], value: Callable[[RoundRow], float | None]) -> Curve:
    """The mean of a group's runs at each round that all of them have, with a standard deviation on either side as its band."""
    found: dict[int, list[tuple[float, float | None]]] = {}
    runs = [run for run in group.runs if run.rounds]
    for run in runs:
        for row in run.rounds:
            found.setdefault(row.round, []).append((along(row), value(row)))
    points, band = list[tuple[float, float | None]](), list[tuple[float, float, float]]()
    for _, pairs in sorted(found.items()):
        known, x = [v for _, v in pairs if v is not None], statistics.fmean(x for x, _ in pairs)
        if len(pairs) < len(runs):
            continue
        mean = statistics.fmean(known) if len(known) == len(runs) else None
        points.append((x, mean))
        if mean is not None and len(known) > 1:
            spread = statistics.stdev(known)
            band.append((x, mean - spread, mean + spread))
    return Curve(group.label, points, group.look, charts.thinned_band(band))
