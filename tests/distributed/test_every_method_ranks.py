"""Every compared method: one rank = two ranks, and an exchange of exactly the numbers that the method says travel."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from pfedmma.clip import loading
from pfedmma.comm.world import World
from pfedmma.config import schema
from pfedmma.methods import registry
from pfedmma.stack.rules import POOL
from tests.support import painted, small
from tests.support.ranks import run_ranks, train, values_of


class Runs(NamedTuple):
    """The same run on one rank and on two; ``exchanged`` numbers of a client travel, of which the server keeps ``pooled`` for others."""

    alone: Path
    together: Path
    sent: list[list[int]]  # bytes of each exchange of each of the two ranks
    exchanged: int
    pooled: int


def recorded_run(meeting: list[str], settings: list[str]) -> list[int]:
    """The main job; returns the bytes handed to each collective for the exchange."""
    sizes: list[int] = []
    real = World.sum

    def world_sum(self: World, flat: Any, purpose: str) -> Any:
        if purpose == "exchange":
            sizes.append(flat.numel() * flat.element_size())
        return real(self, flat, purpose)

    World.sum = world_sum  # type: ignore[method-assign]
    train(meeting, settings)
    return sizes


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return painted.paint(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module", params=registry.NAMES)
def runs(request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two rounds, so that there is something to read of others in the second."""
    folder = tmp_path_factory.mktemp(request.param)
    # A large eps, as Adam divides by a gradient's size and would blow up rounding errors of gradients near zero.
    more = ["evaluation.every=2", "optimizer.state=persist", "optimizer.eps=0.01"]
    sent = {}
    for size in (1, 2):
        settings = painted.settings(pictures, folder / str(size), request.param, *more)
        sent[size] = values_of(run_ranks(folder / f"meet-{size}", size, recorded_run, settings))
    resolved = schema.load(folder / "1" / "config.yaml")
    method = registry.build(resolved.method, loading.load(resolved.backbone, 0, torch.device("cpu")))
    numbers = {tensor: math.prod(method.shapes[tensor]) for tensor in method.exchange}
    pooled = sum(size for tensor, size in numbers.items() if method.exchange[tensor] == POOL)
    return Runs(folder / "1", folder / "2", sent[2], sum(numbers.values()), pooled)


def test_one_rank_is_two_ranks(runs: Runs) -> None:
    alone, together = small.metrics(runs.alone), small.metrics(runs.together)
    # Two of three train on one rank; in the second round client 1 reads what clients of both ranks sent.
    assert [row["clients"] for row in alone] == [[0, 2, 4], [1, 2, 4]]
    for row, other in zip(alone, together, strict=True):
        assert (other["clients"], other["samples"]) == (row["clients"], row["samples"])
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-5)
        assert other["accuracy"] == (row["accuracy"] and pytest.approx(row["accuracy"], rel=1e-5))
        for key in ("shared_parameters", "payload_bytes", "uplink_bytes", "downlink_bytes", "collectives"):
            assert other["comm"][key] == row["comm"][key]
    small.assert_same_tensors(runs.together, runs.alone)
    one, two = small.summary(runs.alone), small.summary(runs.together)
    assert two["zero_shot"] == pytest.approx(one["zero_shot"], rel=1e-5)


def test_the_exchange_carries_the_mean_and_what_is_pooled(runs: Runs) -> None:
    payload = 4 * (runs.exchanged + painted.PARTICIPANTS * runs.pooled)
    assert runs.sent == [[payload] * 2 if payload else []] * 2
    assert [row["comm"]["payload_bytes"] for row in small.metrics(runs.together)] == [payload] * 2
