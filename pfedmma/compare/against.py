"""A comparison against its baseline: each method's difference to it in every score, with an interval, as tables and as a CSV file."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pfedmma.compare.differences import Difference, against
from pfedmma.compare.done import Done, methods_of
from pfedmma.compare.table import Sheet, parts
from pfedmma.records.columns import IMAGES
from pfedmma.records.rows import IN_HM, TITLES
from pfedmma.system.csv_text import as_csv

COLUMNS = (*IN_HM, "hm")


@dataclass(frozen=True)
class Against:
    """The differences of all methods to the baseline in runs that are compared with each other.

    ``images``: training images of a client, mean over clients. ``by_column``: score -> differences; scores without any are left out.
    """

    title: str
    label: str
    baseline: str
    images: float
    by_column: dict[str, list[Difference]]

    def of(self, method: str) -> dict[str, Difference]:
        """{score: the method's difference in it}."""
        return {column: found for column, all_ in self.by_column.items() for found in all_ if found.method == method}


def all_against(runs: Sequence[Done]) -> list[Against]:
    """One for each part of the comparison that has runs of its baseline; none where it has no baseline."""
    if not runs or not runs[0].plan.baseline:
        return []
    found = []
    for part in parts(runs):
        by_column = {column: own for column in COLUMNS if (own := against(part.runs, column))}
        if by_column:
            found.append(Against(part.title, part.label, runs[0].plan.baseline, images_a_client(part.runs), by_column))
    return found


def images_a_client(runs: Sequence[Done]) -> float:
    """Training images of a participant, mean over the rounds of ``runs`` that had any; 0 where none had."""
    means = [row.samples / len(row.clients) for run in runs for row in run.rounds if row.clients]
    return statistics.fmean(means) if means else 0.0


def sheets(runs: Sequence[Done]) -> list[Sheet]:
    """A table for each of `all_against`."""
    return [_sheet(part, methods_of(runs)) for part in all_against(runs)]


def _sheet(part: Against, methods: Sequence[str]) -> Sheet:
    lines = [[method, *(_cell(own.get(column)) for column in part.by_column)] for method in methods if (own := part.of(method))]
    tested = any(found.low is not None for all_ in part.by_column.values() for found in all_)
    how = "with the 95 % interval of a paired t-test over seeds" if tested else "of one pair each: no test"
    note = f"Points of percent, {how}; {part.images:.1f} training images a client."
    head = ("method", *(TITLES[column] for column in part.by_column))
    return Sheet(f"Difference to {part.baseline}: {part.title}", head, lines, [note])


def _cell(found: Difference | None) -> str:
    if found is None:
        return "-"
    return f"{found.mean:+.2f}" + ("" if found.low is None else f" ({found.low:+.2f} to {found.high:+.2f})")


def csv(runs: Sequence[Done]) -> str:
    """One line for each part, method and score."""
    lines: list[Sequence[object]] = [
        ["table", "method", "baseline", "score", IMAGES, "pairs", "mean_points", "low_points", "high_points", "p"]
    ]
    for part in all_against(runs):
        for column, found in part.by_column.items():
            lines += [[part.title, d.method, d.other, column, part.images, d.pairs, d.mean, d.low, d.high, d.p] for d in found]
    return as_csv(lines)
