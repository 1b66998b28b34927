"""Finished runs of a comparison, with made-up numbers."""

from __future__ import annotations

import statistics
from typing import Any

from pfedmma.compare.done import Done
from pfedmma.compare.grid import Plan
from pfedmma.config import schema as configuration
from pfedmma.records.rows import combined
from tests.support.reported import round_row, run_summary, summary

UP, DOWN, TRAINED = 1_500, 2_500_000, 40_800


def done(method: str, seed: int, accuracy: tuple[float | None, ...] | None, dataset: str = "shapes", shots: int = 16, **more: Any) -> Done:
    """A run that ended with these Local, Base and Novel, and with what follows from them as in a real summary.

    ``more``: ``tree``: further settings; ``extra``: further scores; ``combination``, ``candidates``, ``baseline``, ``grid``: of a plan;
    ``selected``; ``seconds``.
    """
    tree = {"seed": seed, "run_dir": f"runs/{dataset}-{method}-{seed}", "data": {"shots": shots}}
    tree |= more.pop("tree", {})
    result: dict[str, Any] | None = None
    if accuracy is not None:
        present = [value for value in accuracy if value is not None]
        result = dict(zip(("local", "base", "novel"), accuracy, strict=True))
        result["hm"] = statistics.harmonic_mean(present) if present else None
        both = accuracy[1:]
        result["hm_base_novel"] = None if None in both else statistics.harmonic_mean(both)  # type: ignore[type-var]
        result["cm"] = combined(accuracy[0], result["hm_base_novel"])
        result |= more.get("extra", {})
    made = run_summary(
        method=method,
        accuracy=result,
        bytes_per_client_round=UP,
        bytes_down_per_client_round=DOWN,
        trained_parameters=more.get("trained", TRAINED),
        selected=more.get("selected"),
        comm=summary()["comm"] | {"uplink_bytes": 10 * UP, "downlink_bytes": 10 * DOWN},
    )
    seconds = more.get("seconds", (9.0, 1.0, 2.0))
    parts = [{"train": s, "wait": 0.25, "exchange": 0.5, "evaluate": 100.0, "total": 200.0} for s in seconds]
    rounds = [round_row(number, seconds=part) for number, part in enumerate(parts, start=1)]
    own = {name: more[name] for name in ("combination", "candidates", "baseline", "grid") if name in more}
    plan = Plan(method, dataset, configuration.resolve(tree), **own)
    return Done(plan, made, rounds)


def hm(*values: float) -> float:
    return len(values) / sum(1 / value for value in values)


# One setting, two methods, three seeds.
ONE = [
    done("ours", 0, (80.0, 70.0, 60.0)),
    done("ours", 1, (82.0, 69.0, 64.0)),
    done("ours", 2, (87.0, 73.0, 59.0)),
    done("theirs", 0, (70.0, 66.0, 61.0)),
    done("theirs", 1, (75.0, 65.0, 63.0)),
    done("theirs", 2, (71.0, 69.0, 62.5)),
]
