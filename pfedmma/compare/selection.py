"""Choosing among the combinations of a grid (``select: val``): the best of each method on validation data is what is run on test data.

Every method that trains has the same candidates, the combinations of the grid, each run with the same seeds. They are tested on the
validation split; a method's best in a setting is the one with the highest mean HM over seeds, of equal ones the first in the grid. It
alone is run on the test split, with the seeds of the comparison, so nothing is chosen on test data. ``select_seeds`` are those of the
candidates where they shall have fewer. A candidate whose training diverged counts as tried and is not chosen; while another one is missing
nothing is chosen, so a choice is never one among fewer.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pfedmma.compare import schedule
from pfedmma.compare.grid import Plan
from pfedmma.run.finished import finished
from pfedmma.system.errors import UserError


@dataclass(frozen=True)
class Candidate:
    """A combination for a method in a setting: its ``plans``, one a seed, and their HM on validation data.

    ``hm``: the mean over seeds, in percent; None where a run diverged or is missing. ``settled``: none is missing.
    """

    plans: tuple[Plan, ...]
    hm: float | None
    settled: bool

    @classmethod
    def from_plans(cls, plans: Sequence[Plan]) -> Candidate:
        summaries = [finished(plan.config) for plan in plans]
        known = [hm for s in summaries if s and s.accuracy and (hm := s.accuracy.score("hm")) is not None]
        settled = all(summary or schedule.diverged(plan) for plan, summary in zip(plans, summaries, strict=True))
        return cls(tuple(plans), statistics.fmean(known) if len(known) == len(plans) else None, settled)


@dataclass(frozen=True)
class Choice:
    """What a method may be run with in a setting, and the ``best`` of it; None while a candidate is missing, or if all diverged."""

    candidates: tuple[Candidate, ...]
    best: Candidate | None

    @classmethod
    def from_candidates(cls, candidates: Sequence[Candidate]) -> Choice:
        known = [candidate for candidate in candidates if candidate.hm is not None]
        settled = all(candidate.settled for candidate in candidates)
        return cls(tuple(candidates), max(known, key=lambda candidate: candidate.hm or 0.0) if known and settled else None)

    @property
    def plan(self) -> Plan:
        """Any of the plans: their method and setting are the same."""
        return self.candidates[0].plans[0]

    @property
    def runs(self) -> list[Plan]:
        """What is to be run on test data."""
        return [self.best.plans[0].on_test(seed) for seed in self.plan.test_seeds] if self.best else []

    def __str__(self) -> str:
        count, seeds = len(self.candidates), len(self.candidates[0].plans)
        if self.best is None:
            return f"{self.plan.method}: none of {count} candidates is chosen yet"
        lost = sum(candidate.hm is None for candidate in self.candidates)
        return (
            f"{self.plan.method}: {self.best.plans[0].combination}, the best of {count} by HM on the validation split "
            f"({self.best.hm:.2f}, {seeds} seed{'s' if seeds > 1 else ''})" + (f"; {lost} diverged" if lost else "")
        )


def require_some(chosen: Sequence[Choice]) -> None:
    """Raise a `UserError` if a method has nothing to be run with: every candidate diverged."""
    for choice in chosen:
        if choice.best is None and all(candidate.settled for candidate in choice.candidates):
            plan = choice.plan
            raise UserError(f"every candidate of {plan.method} in {plan.setting} diverged; a lower optimizer.lr in the grid may not")


def choices(plans: Sequence[Plan]) -> list[Choice]:
    """One for each method and setting among the candidates of ``plans``, in their order."""
    groups: dict[tuple[str, str], dict[str, list[Plan]]] = {}
    for plan in plans:
        if plan.is_candidate:
            groups.setdefault((plan.setting, plan.method), {}).setdefault(plan.combination, []).append(plan)
    return [Choice.from_candidates([Candidate.from_plans(part) for part in group.values()]) for group in groups.values()]


def reported(plans: Sequence[Plan], chosen: Sequence[Choice]) -> list[Plan]:
    """The runs that stand in the tables: those that need no choice, and those that are chosen; in the order of ``plans``."""
    tested = {(choice.plan.setting, choice.plan.method): choice.runs for choice in chosen}
    found: list[Plan] = []
    for plan in plans:
        found += tested.pop((plan.setting, plan.method), []) if plan.is_candidate else [plan]
    return found
