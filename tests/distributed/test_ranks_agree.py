"""1 = 2 = 4 ranks: the number of processes changes who computes what, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfedmma.comm.assignment import longest_first
from tests.support import small
from tests.support.ranks import run_ranks, train, values_of

SIZES = (1, 2, 4)


@pytest.fixture(scope="module", params=["pfedmma", "fedavg_mma"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run on 1, 2 and 4 ranks: world size -> run folder. 3 of 7 clients take part in a round."""
    folder = tmp_path_factory.mktemp(request.param)
    for size in SIZES:
        more = [f"method.name={request.param}", "federation.rounds=6", "evaluation.every=6", "optimizer.state=persist"]
        values_of(run_ranks(folder / f"meet-{size}", size, train, small.settings(folder / str(size), *more)))
    return {size: folder / str(size) for size in SIZES}


def test_the_runs_cover_idle_ranks_and_clients_that_move(runs: dict[int, Path]) -> None:
    # Six clients take 3 steps in a round and client 6 two. Only with such cohorts do the tests below say much.
    work = dict.fromkeys(range(6), 3) | {6: 2}
    cohorts = [row["clients"] for row in small.metrics(runs[4])]
    homes = {size: longest_first(work, range(size)) for size in SIZES}
    ranks = {size: [longest_first({i: work[i] for i in cohort}, range(size), homes[size]) for cohort in cohorts] for size in SIZES}
    assert all(set(one.values()) < set(range(4)) for one in ranks[4]), "every round leaves a rank without participants"
    assert any(0 not in one.values() for one in ranks[4]), "rank 0, which records, is idle once"
    assert all(sorted(one.values()) in ([0, 0, 1], [0, 1, 1]) for one in ranks[2]), "a rank of two has two participants"
    for size in (2, 4):
        trained = {i: {one[i] for one in ranks[size] if i in one} for i in range(7)}
        assert any(len(where) > 1 for where in trained.values()), "a client trains on two ranks, one after the other"


@pytest.mark.parametrize("size", SIZES[1:])
def test_same_cohorts_and_losses(runs: dict[int, Path], size: int) -> None:
    alone, together = small.metrics(runs[1]), small.metrics(runs[size])
    assert [row["clients"] for row in together] == [row["clients"] for row in alone]
    assert [row["samples"] for row in together] == [row["samples"] for row in alone]
    assert [row["loss"] for row in together] == pytest.approx([row["loss"] for row in alone], rel=1e-5)


@pytest.mark.parametrize("size", SIZES[1:])
def test_same_accuracies(runs: dict[int, Path], size: int) -> None:
    for alone, together in zip(small.metrics(runs[1]), small.metrics(runs[size]), strict=True):
        if alone["accuracy"] is None:
            assert together["accuracy"] is None
        else:
            assert together["accuracy"] == pytest.approx(alone["accuracy"], rel=1e-5)
    alone, together = small.summary(runs[1]), small.summary(runs[size])
    assert together["accuracy"] == pytest.approx(alone["accuracy"], rel=1e-5)
    assert together["zero_shot"] == pytest.approx(alone["zero_shot"], rel=1e-5)
    for one, other in zip(alone["per_client"], together["per_client"], strict=True):
        assert other["classes"] == one["classes"]
        numbers = ("id", "train_samples", "test_samples", "local", "base", "novel")
        assert [other[key] for key in numbers] == pytest.approx([one[key] for key in numbers], rel=1e-5)


@pytest.mark.parametrize("size", SIZES[1:])
def test_same_final_tensors(runs: dict[int, Path], size: int) -> None:
    assert {"server.shared", "5.private", "5.optimizer.momentum"} <= small.final_tensors(runs[1]).keys()
    small.assert_same_tensors(runs[size], runs[1])


@pytest.mark.parametrize("size", SIZES[1:])
def test_client_bytes_are_the_same_and_ring_bytes_follow_the_model(runs: dict[int, Path], size: int) -> None:
    for alone, together in zip(small.metrics(runs[1]), small.metrics(runs[size]), strict=True):
        for key in ("shared_parameters", "payload_bytes", "uplink_bytes", "downlink_bytes", "collectives"):
            assert together["comm"][key] == alone["comm"][key]
        assert together["comm"]["ring_bytes_per_rank"] == 2 * (size - 1) / size * together["comm"]["payload_bytes"]
        assert alone["comm"]["ring_bytes_per_rank"] == 0


def test_more_ranks_than_clients(tmp_path: Path) -> None:
    # Ranks 2 and 3 host nobody: they train, test and save nothing, and still enter every collective.
    more = ["data.clients=2", "federation.participation=1", "federation.rounds=1", "evaluation.every=1"]
    for size in (1, 4):
        values_of(run_ranks(tmp_path / f"meet-{size}", size, train, small.settings(tmp_path / str(size), *more)))
    (alone,), (together,) = small.metrics(tmp_path / "1"), small.metrics(tmp_path / "4")
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert together["accuracy"] == pytest.approx(alone["accuracy"], rel=1e-5)
    small.assert_same_tensors(tmp_path / "4", tmp_path / "1")
