"""What new clients (``data.new_clients``) reach: methods after so many epochs alone, over seeds, beside zero-shot of the same clients."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from pfedmma.compare.done import Done, methods_of, settings_of
from pfedmma.compare.table import Sheet, title, with_spread
from pfedmma.records.columns import percent
from pfedmma.records.rows import HEADLINE, TITLES, Accuracy
from pfedmma.system.csv_text import as_csv

HEAD = ("method", "shared part", "epochs alone", *(TITLES[name] for name in HEADLINE))
ZERO_SHOT = ("zero-shot", "", "")
Place = tuple[str, str, str]  # method, frozen or free, epochs; or `ZERO_SHOT`


def sheets(runs: Sequence[Done]) -> list[Sheet]:
    """A table for each setting in which there are new clients."""
    found = []
    for setting in settings_of(runs):
        part = [run for run in runs if run.plan.setting == setting and run.summary.new_clients]
        if part:
            found.append(Sheet(f"New clients: {title(part)}", HEAD, _rows(part), []))
    return found


def _rows(runs: Sequence[Done]) -> list[list[str]]:
    """Mean and standard deviation over the seeds of each `Place`, the methods one after another."""
    values: dict[Place, dict[int, Accuracy]] = {ZERO_SHOT: {}}
    for method in methods_of(runs):
        for run in runs:
            if run.plan.method == method:
                for place, accuracy in _met(run):
                    values.setdefault(place, {})[run.plan.config.seed] = accuracy
    return [[*place, *(_over(list(seeds.values()), name) for name in HEADLINE)] for place, seeds in values.items()]


def _met(run: Done) -> list[tuple[Place, Accuracy]]:
    new = run.summary.new_clients
    if new is None:
        return []
    return [(ZERO_SHOT, new.zero_shot), *(((run.plan.method, row.shared, str(row.epochs)), row.accuracy) for row in new.rows)]


def _over(seeds: Sequence[Accuracy], name: str) -> str:
    known = [value for accuracy in seeds if (value := accuracy.score(name)) is not None]
    return with_spread(statistics.fmean(known) if known else None, statistics.stdev(known) if len(known) > 1 else None)


def csv(runs: Sequence[Done]) -> str:
    """One line for each run, way and number of epochs, and one for zero-shot of the run's new clients."""
    lines: list[list[Any]] = [["method", "setting", "seed", "shared", "epochs", *map(percent, HEADLINE), "run"]]
    for run in runs:
        for (method, way, epochs), accuracy in _met(run):
            plan = run.plan
            lines.append([method, plan.setting, plan.config.seed, way, epochs, *map(accuracy.score, HEADLINE), plan.name])
    return as_csv(lines)
