"""1 = 2 ranks for a method whose clients read tensors of others: the pool is the same on every rank, and after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support import small
from tests.support.ranks import run_ranks, train, values_of

MORE = ["method.name=pfedmoap", "federation.participation=0.6", "method.pfedmoap.experts=3", "method.pfedmoap.context=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same run on 1 and on 2 ranks, and one that goes from 1 rank to 2 after round 2."""
    folder = tmp_path_factory.mktemp("pool")
    for name, parts in {"1": [(1, 4)], "2": [(2, 4)], "1-then-2": [(1, 2), (2, 4)]}.items():
        for size, rounds in parts:
            more = [*MORE, "evaluation.every=4", "checkpoint.every=2", "resume=auto", f"federation.rounds={rounds}"]
            values_of(run_ranks(folder / f"meet-{name}-{rounds}", size, train, small.settings(folder / name, *more)))
    return {name: folder / name for name in ("1", "2", "1-then-2")}


@pytest.mark.parametrize("other", ["2", "1-then-2"])
def test_the_same_run(runs: dict[str, Path], other: str) -> None:
    alone, together = small.metrics(runs["1"]), small.metrics(runs[other])
    assert [row["clients"] for row in together] == [row["clients"] for row in alone]
    assert [row["loss"] for row in together] == pytest.approx([row["loss"] for row in alone], rel=1e-5)
    assert together[-1]["accuracy"] == pytest.approx(alone[-1]["accuracy"], rel=1e-5)
    for key in ("payload_bytes", "uplink_bytes", "downlink_bytes", "collectives"):
        assert [row["comm"][key] for row in together] == [row["comm"][key] for row in alone]
    small.assert_same_tensors(runs[other], runs["1"])


def test_the_runs_say_something(runs: dict[str, Path]) -> None:
    rows = small.metrics(runs["1"])
    assert rows[-1]["comm"]["downlink_bytes"] == 3 * rows[-1]["comm"]["uplink_bytes"]  # experts are read
    tensors = small.final_tensors(runs["1"])
    pool = {name: tensor for name, tensor in tensors.items() if name.startswith("server.pool.")}
    assert len(pool) >= 4 and all(not torch.equal(tensor, tensors["server.shared"]) for tensor in pool.values())
