"""What TensorBoard shows of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import small

Points = list[tuple[int, float]]  # (round, value)


def curves(run_dir: Path) -> dict[str, Points]:
    """All curves, by their tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "trackers" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def losses(run_dir: Path) -> Points:
    return [(row["round"], row["loss"]) for row in small.metrics(run_dir)]


def near(points: Points) -> Any:
    """What TensorBoard's single precision makes of them."""
    return [pytest.approx(point, rel=1e-6) for point in points]
