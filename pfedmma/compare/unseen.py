"""Leave one domain out: what each method reaches in a domain that no client holds, where each domain is left out in a run of its own."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pfedmma.compare.done import Done, methods_of


@dataclass(frozen=True)
class Unseen:
    """One method: percent in each domain while it was held out, mean over seeds; None where a run is missing."""

    method: str
    by_domain: dict[str, float | None]

    @property
    def mean(self) -> float | None:
        """Over domains; None unless all of them are there."""
        values = self._all()
        return statistics.fmean(values) if values else None

    @property
    def worst(self) -> float | None:
        """The lowest; None unless all of them are there."""
        return min(self._all(), default=None)

    def _all(self) -> list[float]:
        known = [value for value in self.by_domain.values() if value is not None]
        return known if len(known) == len(self.by_domain) else []


def by_held_out(runs: Sequence[Done]) -> list[list[Done]]:
    """The runs that differ in the domain that is held out, besides seed and method: a group for whatever else differs in the data.

    Runs of a group that hold out fewer than two domains are left out: there is nothing to take a mean or the worst of.
    """
    groups: dict[tuple[str, object], list[Done]] = {}
    for run in runs:
        if run.score("unseen") is not None:
            data = dataclasses.replace(run.plan.config.data, held_out_domain="")
            groups.setdefault((run.plan.group, data), []).append(run)
    return [group for group in groups.values() if len({_held_out(run) for run in group}) > 1]


def unseen(runs: Sequence[Done]) -> list[Unseen]:
    """A row for each method of a group of `by_held_out`, with a column for each domain that is held out in any of its runs."""
    domains = list(dict.fromkeys(map(_held_out, runs)))
    found = []
    for method in methods_of(runs):
        own = [(_held_out(run), run.score("unseen")) for run in runs if run.plan.method == method]
        found.append(Unseen(method, {domain: _mean([value for name, value in own if name == domain]) for domain in domains}))
    return found


def _held_out(run: Done) -> str:
    return run.plan.config.data.held_out_domain


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
