"""The tables of a comparison: means and standard deviations over seeds, and what it costs; as numbers, and as texts to be shown.

Over several data sets every score is the mean of each data set's own, HM, CM and HM(Base, Novel) like the rest. The HM of averages is
another number, and never a lower one: published averages are means of HMs.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pfedmma.compare import published, selected_rounds
from pfedmma.compare.differences import differences
from pfedmma.compare.done import DOMAIN_TITLES, OF_DOMAIN, Done, Failed, by_seed, columns, domain_columns, methods_of, settings_of
from pfedmma.compare.selection import Choice
from pfedmma.compare.unseen import by_held_out, unseen
from pfedmma.records.rows import HEADLINE, TITLES
from pfedmma.system.console import megabytes

PUBLISHED = ", published"  # behind the label of a method
COSTS = ("up", "down", "trained", "s / round")
HEAD = ("method", *(TITLES[name] for name in HEADLINE), *COSTS)
NOTE = (
    "Percent, mean ± standard deviation over seeds. HM: harmonic mean of those of Local, Base and Novel that a protocol has; CM: mean of "
    "Local and the harmonic mean of Base and Novel; over several settings both are means of each setting's own. up, down: bytes a client "
    "and round; trained: parameters of one client; s / round: training and exchange."
)


@dataclass(frozen=True)
class Row:
    """One method: ``mean`` and ``std`` of each of `columns` over ``seeds`` seeds (None: nothing to test, or one seed).

    The costs are None where they are not known: of published numbers, which have no seeds either.
    """

    method: str
    mean: Mapping[str, float | None]
    std: Mapping[str, float | None]
    seeds: int
    up: int | None
    down: int | None
    trained: int | None
    seconds: float | None


@dataclass(frozen=True)
class Part:
    """Runs that are compared with each other: those of a setting, or of several to be averaged over."""

    title: str
    label: str
    runs: Sequence[Done]

    @property
    def rows(self) -> list[Row]:
        """A row for each method, followed by what is published of it in this setting."""
        found = []
        for row in rows(self.runs):
            found.append(row)
            if known := published.beside([run for run in self.runs if run.plan.method == row.method]):
                found.append(Row(f"{row.method}{PUBLISHED}", known, {}, 0, None, None, None, None))
        return found


@dataclass(frozen=True)
class Sheet:
    """A table as it is shown: ``rows`` of texts under ``head``, whose first column is names; ``notes``: sentences below it."""

    title: str
    head: tuple[str, ...]
    rows: list[list[str]]
    notes: list[str]


def rows(runs: Sequence[Done]) -> list[Row]:
    """A row for each method, over all settings among ``runs``: every score first averaged over settings, then over seeds.

    A score that one of the settings has not (Novel, where there are no novel classes) has no average over them.
    """
    named = columns(runs)
    return [_row(runs, method, named) for method in methods_of(runs)]


def _row(all_runs: Sequence[Done], method: str, named: Sequence[str]) -> Row:
    runs, whole = [run for run in all_runs if run.plan.method == method], list(by_seed(all_runs, method).values())
    mean: dict[str, float | None] = {}
    std: dict[str, float | None] = {}
    for column in named:
        values = [v for group in whole if (v := _mean([run.score(column) for run in group])) is not None]
        mean[column] = statistics.fmean(values) if values else None
        std[column] = statistics.stdev(values) if len(values) > 1 else None
    seconds = [s for run in runs if (s := run.seconds) is not None]
    first = runs[0].summary
    cost = (first.bytes_per_client_round, first.bytes_down_per_client_round, first.trained_parameters)
    return Row(method, mean, std, len(whole), *cost, statistics.fmean(seconds) if seconds else None)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def parts(runs: Sequence[Done]) -> list[Part]:
    """One for each setting; and the average over those that differ in data alone, of the methods in all of them.

    Nothing is averaged over shots, or over the values of a grid.
    """
    found = [Part(title(part), setting, part) for setting in settings_of(runs) if (part := _of(runs, setting))]
    for varied in dict.fromkeys(run.plan.varied for run in runs):
        group = [run for run in runs if run.plan.varied == varied]
        settings = settings_of(group)
        everywhere = set.intersection(*(set(methods_of(_of(group, setting))) for setting in settings))
        if len(settings) > 1 and everywhere:
            average = [run for run in group if run.plan.method in everywhere]
            found.append(Part(title(average), _what(average), average))
    return found


def _of(runs: Sequence[Done], setting: str) -> list[Done]:
    return [run for run in runs if run.plan.setting == setting]


def _what(runs: Sequence[Done]) -> str:
    settings, varied = settings_of(runs), runs[0].plan.varied
    if len(settings) == 1:
        return settings[0]
    return ", ".join(part for part in (f"average over {len(settings)} settings", varied) if part)


def title(runs: Sequence[Done], what: str = "") -> str:
    """What the runs have in common, in a line; ``what`` takes the place of their setting."""
    seeds = len({run.plan.config.seed for run in runs})
    split = " (validation split)" if runs[0].plan.config.evaluation.split == "val" else ""
    backbones = " and ".join(dict.fromkeys(run.plan.config.backbone.name for run in runs))
    protocols = " and ".join(dict.fromkeys(run.plan.config.data.protocol for run in runs))
    return f"{what or _what(runs)}, {backbones}, {protocols}, {seeds} seed{'s' if seeds > 1 else ''}{split}"


def sheets(runs: Sequence[Done], choices: Sequence[Choice] = (), failed: Sequence[Failed] = ()) -> list[Sheet]:
    """Every table to be shown: one a part, or a single one with a line a part where there is one method; then those by domain.

    Runs that ``failed`` are lines of the table of their setting, or of the last one where theirs has none; notes say why.
    """
    found, methods = parts(runs), methods_of(runs)
    if len(methods) == 1 and len(found) > 1:
        lines = [[part.label + row.method.removeprefix(methods[0]), *cells(row)[1:]] for part in found for row in part.rows]
        main = [Sheet(title(runs, methods[0]), ("setting", *HEAD[1:]), lines, _notes(found, choices))]
    else:
        main = [Sheet(part.title, HEAD, [cells(row) for row in part.rows], _notes([part], choices)) for part in found]
    place = {part.label: sheet for part, sheet in zip(found, main, strict=False)}
    for run in failed:
        sheet = place.get(run.plan.setting, main[-1])
        sheet.rows.append([f"{run.plan.method}, seed {run.plan.config.seed}: failed", *["-"] * (len(HEAD) - 1)])
        sheet.notes.append(f"failed: {run}")
    return [*main, *(by_domain(part) for part in found if domain_columns(part.runs)), *map(by_unseen_domain, by_held_out(runs))]


def by_domain(part: Part) -> Sheet:
    """Local of each domain, their mean, and that of an unseen one. Over several settings: the domains that all of them have."""
    own = rows(part.runs)
    named = [name for name in domain_columns(part.runs) if any(row.mean[name] is not None for row in own)]
    head = ("method", *(DOMAIN_TITLES.get(name, name.removeprefix(OF_DOMAIN)) for name in named))
    return Sheet(f"Local by domain: {part.title}", head, [[row.method, *_scores(row, named)] for row in own], [])


def by_unseen_domain(runs: Sequence[Done]) -> Sheet:
    """Of runs that hold out one domain each: the accuracy in it, and the mean and the worst over these domains."""
    own = unseen(runs)
    lines = [[row.method, *(with_spread(v, None) for v in (*row.by_domain.values(), row.mean, row.worst))] for row in own]
    data = runs[0].plan.config.data.name
    return Sheet(f"Unseen domain, left out in turn: {title(runs, data)}", ("method", *own[0].by_domain, "mean", "worst"), lines, [])


def _notes(shown: Sequence[Part], choices: Sequence[Choice]) -> list[str]:
    notes: list[str] = []
    for part in shown:
        before = f"{part.label}: " if len(shown) > 1 else ""
        notes += [f"{before}{choice}" for choice in choices if {choice.plan.setting} == set(settings_of(part.runs))]
        notes += [f"{before}{difference}" for difference in differences(part.runs)]
        notes += [f"{before}{said}" for said in selected_rounds.notes((run.plan.method, run.summary.selected) for run in part.runs)]
        notes += [published.SOURCE] * any(row.method.endswith(PUBLISHED) for row in part.rows)
    return notes


def cells(row: Row) -> list[str]:
    """The texts of a row, in the order of `HEAD`."""
    seconds = "-" if row.seconds is None else f"{row.seconds:.2f}"
    moved = ["-" if count is None else megabytes(count) for count in (row.up, row.down)]
    return [row.method, *_scores(row, HEADLINE), *moved, "-" if row.trained is None else f"{row.trained:,}", seconds]


def _scores(row: Row, named: Sequence[str]) -> list[str]:
    return [with_spread(row.mean.get(column), row.std.get(column)) for column in named]


def with_spread(mean: float | None, std: float | None) -> str:
    """A mean, and its standard deviation if there is one."""
    if mean is None:
        return "-"
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
