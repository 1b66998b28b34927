"""How good the models are: the final table, and curves over rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import NamedTuple

from pfedmma.records.evaluated import DIAGNOSTICS, written
from pfedmma.records.rows import IN_HM, TITLES, Accuracy
from pfedmma.report import charts
from pfedmma.report.charts import Curve
from pfedmma.report.document import Block, Cell, Figure, Section, Table, Text
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


def curves(runs: Sequence[Report]) -> Section:
    """Loss, accuracies and, where they are known, diagnostics over rounds, all runs in each drawing."""
    drawn = with_curves(runs)
    if not drawn:
        return Section("curves", "Over rounds", [Text("There is no metrics.jsonl, so there are no curves.")])
    losses = [Curve(run.label, [(float(row.round), row.loss) for row in run.rounds], i) for i, run in drawn]
    panels = [("Training loss", charts.line_chart(losses, lambda v: f"{v:.4g}"))]
    shown = [(f"{TITLES[name]}, percent", methodcaller("score", name)) for name in (*IN_HM, "hm", "unseen")]
    shown += [(title[0].upper() + title[1:], methodcaller("diagnostic", name)) for name, title in DIAGNOSTICS.items()]
    panels += [(title, chart) for title, value in shown if (chart := _over_rounds(drawn, value)) is not None]
    blocks: list[Block] = [Figure(panels, charts.key([(i, run.label) for i, run in drawn]))]
    if (means := max(charts.stride(len(run.rounds)) for _, run in drawn)) > 1:
        blocks.insert(0, Text(f"Of the longest run each point is the mean of {means} rounds."))
    return Section("curves", "Over rounds", blocks)


def _over_rounds(drawn: Sequence[tuple[int, Report]], value: Callable[[Accuracy], float | None]) -> charts.Element | None:
    """What ``value`` takes of each evaluation of the runs (position, run), beside zero-shot; None where there is nothing."""
    lines = [Curve(run.label, [(float(row.round), value(row.accuracy)) for row in run.rounds if row.accuracy], i) for i, run in drawn]
    if not any(v is not None for line in lines for _, v in line.points):
        return None
    levels = {f"{v:.4g}": v for _, run in drawn if run.zero_shot and (v := value(run.zero_shot)) is not None}
    levels_shown = [("zero-shot", v) for v in levels.values()] if len(levels) <= 3 else []
    return charts.line_chart(lines, lambda v: f"{v:.4g}", levels_shown)
