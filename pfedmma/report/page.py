"""The page of some runs: which parts it has, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfedmma.report import accuracy, as_html, clients, costs, new_clients, privacy, result, setting
from pfedmma.report.document import Document
from pfedmma.report.groups import Group, by_setting, grouped
from pfedmma.report.runs import Report
from pfedmma.report.wire import Wire
from pfedmma.system.files import write_atomically


def write(runs: Sequence[Report], page: Path) -> None:
    """Write the page of these runs."""
    write_atomically(page, as_html.render(compose(runs, None, page)).encode())


def compose(runs: Sequence[Report], wire: Wire | None, page: Path | None = None) -> Document:
    """The report of these runs: the result first, settings last. ``page``: where it will lie, if it becomes one."""
    runs, groups = grouped(runs)
    datasets = {run.dataset for run in runs}
    about = f" on {runs[0].dataset}" if len(datasets) == 1 else ""
    sections = (
        result.section(groups),
        accuracy.curves(runs, groups),
        clients.section(runs),
        accuracy.final(runs),
        *new_clients.sections(runs),
        costs.communication(runs, wire),
        privacy.section(runs),
        costs.times(runs),
        *setting.index(runs, page),
        setting.section(runs),
        setting.environment(runs),
    )
    return Document(f"{runs[0].method if len(runs) == 1 else f'{len(runs)} runs'}{about}", lead(groups), setting.about(runs), sections)


def lead(groups: Sequence[Group]) -> str:
    """What was run, in a sentence or two; the result itself stands below it."""
    runs, settings = [run for group in groups for run in group.runs], list(by_setting(groups))
    unfinished = [f"{run.label} ({run.state})" for run in runs if not run.finished]
    said = [
        f"{len(groups)} methods in {len(runs)} runs" * (len(groups) > 1),
        settings[0] if len(settings) == 1 else f"{len(settings)} settings",
    ]
    if len(groups) == 1:
        said += [f"{len(runs)} seeds" * (len(runs) > 1), "" if groups[0].up is None else f"{groups[0].up:,.0f} B up a client and round"]
    return "; ".join(part for part in said if part) + "." + (f" Not finished: {', '.join(unfinished)}." if unfinished else "")
