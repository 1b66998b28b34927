"""The table of a comparison: means and standard deviations over seeds, what it costs, and whether the differences mean anything."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from pfedmma.accuracy.metrics import harmonic_mean
from pfedmma.compare import selection
from pfedmma.compare.grid import Plan
from pfedmma.records.rows import HEADLINE, IN_HM, TITLES, RoundRow, RunSummary
from pfedmma.system import markdown as md
from pfedmma.system.console import megabytes


@dataclass(frozen=True)
class Done:
    """A finished run: its plan, its summary, its rounds."""

    plan: Plan
    summary: RunSummary
    rounds: Sequence[RoundRow]

    def score(self, name: str) -> float | None:
        """A final score; None where nothing was evaluated."""
        return self.summary.accuracy.score(name) if self.summary.accuracy else None

    @property
    def seconds(self) -> float | None:
        """Seconds of a round: training and exchange, without evaluation; the median, as the first rounds warm up."""
        parts = [row.spent("train", "wait", "exchange") for row in self.rounds]
        return statistics.median(parts) if parts and self.summary.trained_parameters else None


@dataclass(frozen=True)
class Row:
    """One method: ``mean`` and ``std`` of each of `HEADLINE` over ``seeds`` seeds (None: nothing to test, or one seed)."""

    method: str
    mean: dict[str, float | None]
    std: dict[str, float | None]
    seeds: int
    up: int
    down: int | None
    trained: int
    seconds: float | None


def settings_of(runs: Sequence[Done]) -> list[str]:
    return list(dict.fromkeys(run.plan.setting for run in runs))


def methods_of(runs: Sequence[Done]) -> list[str]:
    return list(dict.fromkeys(run.plan.method for run in runs))


def rows(runs: Sequence[Done]) -> list[Row]:
    """A row for each method, over all settings among ``runs``: first averaged over settings, then over seeds.

    HM is the harmonic mean of the averages of Local, Base and Novel, as in the paper; with one setting, that run's own.
    """
    wanted = set(settings_of(runs))
    return [_row(method, [run for run in runs if run.plan.method == method], wanted) for method in methods_of(runs)]


def _row(method: str, runs: Sequence[Done], wanted: set[str]) -> Row:
    by_seed: dict[int, list[Done]] = {}
    for run in runs:
        by_seed.setdefault(run.plan.config.seed, []).append(run)
    # A seed that misses a setting would be averaged over other data than the rest.
    whole = [group for group in by_seed.values() if {run.plan.setting for run in group} == wanted]
    averages = [_average(group) for group in whole]
    mean: dict[str, float | None] = {}
    std: dict[str, float | None] = {}
    for column in HEADLINE:
        values = [v for average in averages if (v := average[column]) is not None]
        mean[column] = statistics.fmean(values) if values else None
        std[column] = statistics.stdev(values) if len(values) > 1 else None
    seconds = [s for run in runs if (s := run.seconds) is not None]
    first = runs[0].summary
    cost = (first.bytes_per_client_round, first.bytes_down_per_client_round, first.trained_parameters)
    return Row(method, mean, std, len(whole), *cost, statistics.fmean(seconds) if seconds else None)


def _average(group: Sequence[Done]) -> dict[str, float | None]:
    result: dict[str, float | None] = {}
    for column in IN_HM:
        values = [v for run in group if (v := run.score(column)) is not None]
        result[column] = statistics.fmean(values) if values else None
    present = [v for v in result.values() if v is not None]
    result["hm"] = harmonic_mean(present) if present else None
    return result


@dataclass(frozen=True)
class Difference:
    """A method's HM against that of the best other one, paired over seeds and settings, in points of percent."""

    method: str
    other: str
    mean: float
    pairs: int
    low: float | None = None  # 95 % interval
    high: float | None = None
    p: float | None = None  # two-sided paired t-test

    def __str__(self) -> str:
        start = f"{self.method} - {self.other}: {self.mean:+.2f} points of HM"
        if self.p is None:
            return f"{start} ({self.pairs} pair{'s' if self.pairs > 1 else ''}: no test)"
        return f"{start}, 95 % interval {self.low:+.2f} to {self.high:+.2f}, paired t-test over {self.pairs} pairs: p = {self.p:.2g}"


def differences(runs: Sequence[Done]) -> list[Difference]:
    """Each method against the best other one; methods without HM are left out."""
    scores: dict[str, dict[tuple[str, int], float]] = {}
    for run in runs:
        if (hm := run.score("hm")) is not None:
            scores.setdefault(run.plan.method, {})[run.plan.setting, run.plan.config.seed] = hm
    found = []
    for method, own in scores.items():
        common = {other: sorted(own.keys() & theirs.keys()) for other, theirs in scores.items() if other != method}
        rivals = [other for other, keys in common.items() if keys]
        if rivals:
            best = max(rivals, key=lambda other: statistics.fmean(scores[other].values()))
            keys = common[best]
            found.append(_difference(method, best, [own[k] for k in keys], [scores[best][k] for k in keys]))
    return found


def _difference(method: str, other: str, own: Sequence[float], theirs: Sequence[float]) -> Difference:
    gaps = [a - b for a, b in zip(own, theirs, strict=True)]
    mean = statistics.fmean(gaps)
    if len(gaps) < 2 or statistics.pstdev(gaps) == 0:  # no spread to test against
        return Difference(method, other, mean, len(gaps))
    from scipy import stats  # takes a second to import

    test = stats.ttest_rel(own, theirs)
    interval = test.confidence_interval(0.95)
    return Difference(method, other, mean, len(gaps), float(interval.low), float(interval.high), float(test.pvalue))


def title(runs: Sequence[Done]) -> str:
    names = settings_of(runs)
    seeds = len({run.plan.config.seed for run in runs})
    what = names[0] if len(names) == 1 else f"average over {len(names)} settings"
    config = runs[0].plan.config
    split = " (validation split)" if config.evaluation.split == "val" else ""
    return f"{what}, {config.backbone.name}, {config.data.protocol}, {seeds} seed{'s' if seeds > 1 else ''}{split}"


def tables(runs: Sequence[Done]) -> list[tuple[str, Sequence[Done]]]:
    """(title, runs) of each table: one a setting, and the average over all of them, where there are several, of the methods in all."""
    parts = [[run for run in runs if run.plan.setting == setting] for setting in settings_of(runs)]
    everywhere = set.intersection(*(set(methods_of(part)) for part in parts))
    average = [run for run in runs if run.plan.method in everywhere]
    return [(title(part), part) for part in [*parts, *([average] if len(parts) > 1 and everywhere else [])]]


HEAD = ("method", *(TITLES[name] for name in HEADLINE), "up", "down", "trained", "s / round")


def cells(row: Row) -> list[str]:
    """The texts of a row, in the order of `HEAD`."""
    values = [with_spread(row.mean[column], row.std[column]) for column in HEADLINE]
    seconds = "-" if row.seconds is None else f"{row.seconds:.2f}"
    return [row.method, *values, megabytes(row.up), "-" if row.down is None else megabytes(row.down), f"{row.trained:,}", seconds]


def with_spread(mean: float | None, std: float | None) -> str:
    """A mean, and its standard deviation if there is one."""
    if mean is None:
        return "-"
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def terminal(name: str, runs: Sequence[Done]) -> Table:
    table = Table(title=escape(name))
    for column in HEAD:
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for row in rows(runs):
        table.add_row(*map(escape, cells(row)))
    return table


NOTE = (
    "Percent, mean ± standard deviation over seeds. up, down: bytes a client and round; trained: parameters of one client; "
    "s / round: training and exchange."
)


def notes(runs: Sequence[Done]) -> list[str]:
    """What is to be said below all tables."""
    return [*selection.notes((run.plan.method, run.summary.selected) for run in runs), NOTE]


def markdown(runs: Sequence[Done]) -> str:
    """All tables, and what the differences mean."""
    lines = []
    for name, part in tables(runs):
        whole = [[md.code(method), *map(md.escape, rest)] for method, *rest in map(cells, rows(part))]
        lines += [md.bold(md.escape(name)), "", *md.table(HEAD, whole), ""]
        lines += [*(f"- {md.escape(str(difference))}" for difference in differences(part)), ""]
    *selected, note = notes(runs)
    return "\n".join([*lines, *(f"{md.escape(line)}\n" for line in selected), note, ""])


def table_csv(runs: Sequence[Done]) -> str:
    """One line for each table and method."""
    lines: list[list[Any]] = [
        ["table", "method", "seeds"]
        + [f"{column}_{kind}" for column in HEADLINE for kind in ("mean", "std")]
        + ["bytes_up", "bytes_down", "trained_parameters", "seconds_per_round"]
    ]
    for name, part in tables(runs):
        for row in rows(part):
            values = [value for column in HEADLINE for value in (row.mean[column], row.std[column])]
            lines.append([name, row.method, row.seeds, *values, row.up, row.down, row.trained, row.seconds])
    return as_csv(lines)


def runs_csv(runs: Sequence[Done]) -> str:
    """One line for each run."""
    lines: list[list[Any]] = [
        ["method", "dataset", "shots", "seed", *HEADLINE, "uplink_bytes", "downlink_bytes", "seconds_per_round", "run"]
    ]
    for run in runs:
        config, comm = run.plan.config, run.summary.comm
        accuracy = [run.score(column) for column in HEADLINE]
        cost = [comm.uplink_bytes, comm.downlink_bytes, run.seconds, run.plan.name]
        lines.append([run.plan.method, run.plan.dataset, config.data.shots, config.seed, *accuracy, *cost])
    return as_csv(lines)


def as_csv(lines: Sequence[Sequence[Any]]) -> str:
    """The lines as they stand in a file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([list(map(_cell, line)) for line in lines])
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe, which it hides."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
