"""A finished run of a comparison, and what it is asked for."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pfedmma.compare.grid import Plan
from pfedmma.records.rows import HEADLINE, RoundRow, RunSummary

OF_DOMAIN = "domain:"  # before the name of a domain: the column of its mean Local accuracy
DOMAIN_TITLES = {"domain_average": "mean of domains", "unseen": "unseen domain"}


@dataclass(frozen=True)
class Done:
    """A finished run: its plan, its summary, its rounds."""

    plan: Plan
    summary: RunSummary
    rounds: Sequence[RoundRow]

    def score(self, column: str) -> float | None:
        """A final score, or with `OF_DOMAIN` that of a domain, in percent; None where nothing was evaluated."""
        accuracy = self.summary.accuracy
        if accuracy is None:
            return None
        name = column.removeprefix(OF_DOMAIN)
        return accuracy.score(column) if name == column else accuracy.domains.get(name)

    @property
    def seconds(self) -> float | None:
        """Seconds of a round: training and exchange, without evaluation; the median, as the first rounds warm up."""
        parts = [row.spent("train", "wait", "exchange") for row in self.rounds]
        return statistics.median(parts) if parts and self.summary.trained_parameters else None


@dataclass(frozen=True)
class Failed:
    """A run that failed: its plan, why, and the log that says more."""

    plan: Plan
    why: str
    log: Path

    def __str__(self) -> str:
        return f"{self.plan.name}: {self.why} (see {self.log})"


def settings_of(runs: Sequence[Done]) -> list[str]:
    return list(dict.fromkeys(run.plan.setting for run in runs))


def methods_of(runs: Sequence[Done]) -> list[str]:
    return list(dict.fromkeys(run.plan.method for run in runs))


def by_seed(runs: Sequence[Done], method: str) -> dict[int, list[Done]]:
    """The runs of a method by seed: of the seeds that have a run in every setting. Another one would be averaged over other data."""
    wanted, found = set(settings_of(runs)), dict[int, list[Done]]()
    for run in runs:
        if run.plan.method == method:
            found.setdefault(run.plan.config.seed, []).append(run)
    return {seed: group for seed, group in found.items() if {run.plan.setting for run in group} == wanted}


def domain_columns(runs: Sequence[Done]) -> list[str]:
    """The columns of each domain among the runs, of their mean, and of a domain that no client holds; none where there are no domains."""
    accuracies = [run.summary.accuracy for run in runs if run.summary.accuracy]
    own = dict.fromkeys(f"{OF_DOMAIN}{name}" for accuracy in accuracies for name in accuracy.domains)
    whole = [name for name in DOMAIN_TITLES if any(accuracy.score(name) is not None for accuracy in accuracies)]
    return [*own, *whole]


def columns(runs: Sequence[Done]) -> list[str]:
    """Every score that a table of these runs can have."""
    return [*HEADLINE, "hm_base_novel", *domain_columns(runs)]
