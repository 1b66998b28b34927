"""What clients reach that came when the rounds were over."""

from __future__ import annotations

from collections.abc import Sequence

from pfedmma.records.rows import HEADLINE, TITLES, Accuracy, NewClients
from pfedmma.report import charts
from pfedmma.report.charts import Curve
from pfedmma.report.document import Block, Cell, Figure, Section, Table, Text
from pfedmma.report.runs import Report, minus, same_setting
from pfedmma.system.console import megabytes, percent

Met = tuple[Report, NewClients]  # what a run's new clients reach


def sections(runs: Sequence[Report]) -> list[Section]:
    """One section, or none where no run has new clients."""
    met = [(run, run.new_clients) for run in runs if run.new_clients]
    if not met:
        return []
    blocks: list[Block] = [
        Text(
            "These clients took part in no round. After the last one each received what the server has and trained alone, with that part "
            "frozen or free."
        )
    ]
    for group in same_setting(runs):
        alike: dict[tuple[int, ...], list[Met]] = {}
        for run, new in met:
            if any(run is one for one in group):
                alike.setdefault(new.ids, []).append((run, new))
        for part in alike.values():
            blocks += _blocks(part)
    return [Section("new-clients", "New clients", [*blocks, _bytes(met)])]


def _blocks(met: Sequence[Met]) -> list[Block]:
    """Of runs with the same new clients, which share their zero-shot reference."""
    reference, several = met[0][1].zero_shot, len(met) > 1
    names = [name for name in HEADLINE if any(row.accuracy.score(name) is not None for _, new in met for row in new.rows)]
    table: list[list[Cell | str]] = [["zero-shot", "", "", *(percent(reference.score(name)) for name in names)]]
    for run, new in met:
        for row in new.rows:
            table.append([run.label, row.shared, str(row.epochs), *(_beside(row.accuracy, reference, name) for name in names)])
    caption = f"{len(met[0][1].ids)} new clients after so many epochs alone, percent; beside it the difference from zero-shot"
    columns = ("run", "shared part", "epochs", *(TITLES[name] for name in names))
    key = charts.key_of([run for run, _ in met]) if several else None
    return [Table(caption, columns, table, (1,)), Figure([panel for name in names for panel in _panels(met, reference, name)], key)]


def _panels(met: Sequence[Met], reference: Accuracy, name: str) -> list[tuple[str, charts.Element]]:
    """A drawing of a score for each way of training."""
    level = reference.score(name)
    panels = []
    for way in dict.fromkeys(row.shared for _, new in met for row in new.rows):
        lines = [
            Curve(run.label, [(float(row.epochs), row.accuracy.score(name)) for row in new.rows if row.shared == way], run.look)
            for run, new in met
        ]
        levels = [] if level is None else [("zero-shot", level)]
        panels.append((f"{TITLES[name]}, {way}", charts.line_chart(lines, lambda v: f"{v:.4g}", levels, along="epoch")))
    return panels


def _beside(result: Accuracy, reference: Accuracy, name: str) -> Cell:
    gain = minus(result.score(name), reference.score(name))
    return Cell(percent(result.score(name)), "" if gain is None else f"{gain:+.2f}")


def _bytes(met: Sequence[Met]) -> Table:
    rows = [
        [run.label, what.replace("_", " "), megabytes(moved["uplink_bytes"]), megabytes(moved["downlink_bytes"])]
        for run, new in met
        for what, moved in new.bytes.items()
    ]
    return Table("Bytes of all of them together, beside those of the rounds", ("run", "for", "up", "down"), rows, (1,))
