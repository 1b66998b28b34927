"""The runs of a comparison in this process, one after the other, where no test is about processes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pfedmma import train
from pfedmma.compare import schedule
from pfedmma.compare.board import Durations
from pfedmma.compare.grid import Plan


def do_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends."""

    def run_all(plans: Sequence[Plan], slots: schedule.Slots, took: Durations) -> list[str]:
        for plan in plans:
            if not schedule.settled(plan):
                train.carry_out(plan.config)
        return []

    monkeypatch.setattr(schedule, "run_all", run_all)
