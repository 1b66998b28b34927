"""What the released code does in training, and this project not by default: whole runs with each of the switches, on 1 and 2 ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfedmma.train import main
from tests.support import small
from tests.support.ranks import run_ranks, train, values_of

ROUNDS = ["federation.rounds=3"]


def test_everybody_trains_in_round_1(tmp_path: Path) -> None:
    """Whatever the participation; the later rounds have the cohorts that they would have had."""
    main(small.settings(tmp_path / "drawn", *ROUNDS))
    for ranks in (1, 2):
        folder = tmp_path / f"all-{ranks}"
        values_of(run_ranks(tmp_path / f"meet-{ranks}", ranks, train, small.settings(folder, *ROUNDS, "federation.first_round=all")))
    drawn, alone, together = ([row["clients"] for row in small.metrics(tmp_path / name)] for name in ("drawn", "all-1", "all-2"))
    assert len(drawn[0]) == 3
    assert alone == together == [list(range(7)), *drawn[1:]]
    rows = small.metrics(tmp_path / "all-1")
    assert rows[0]["samples"] == 6 * 18 + 12 and rows[0]["comm"]["uplink_bytes"] == 7 * 4 * rows[0]["comm"]["shared_parameters"]
    small.assert_same_tensors(tmp_path / "all-2", tmp_path / "all-1")


def test_without_the_last_batch_of_an_epoch(tmp_path: Path) -> None:
    """Clients hold 18 or 12 images, 2 or 1 full batches of 8; means are still weighted by all their images, as in the released code."""
    for name, ranks, more in (("all", 1, []), ("alone", 1, ["federation.drop_last=true"]), ("together", 2, ["federation.drop_last=true"])):
        values_of(run_ranks(tmp_path / f"meet-{name}", ranks, train, small.settings(tmp_path / name, *ROUNDS, *more)))
    rows = {name: small.metrics(tmp_path / name) for name in ("all", "alone", "together")}
    assert [row["samples"] for row in rows["alone"]] == [row["samples"] for row in rows["all"]]
    assert rows["alone"][0]["loss"] != rows["all"][0]["loss"]
    assert [row["loss"] for row in rows["together"]] == pytest.approx([row["loss"] for row in rows["alone"]], rel=1e-5)
    small.assert_same_tensors(tmp_path / "together", tmp_path / "alone")
    speed = {name: small.summary(tmp_path / name)["throughput"]["train_images_per_second"] for name in ("all", "alone")}
    for name, part in (("all", lambda n: n), ("alone", lambda n: n - n % 8)):
        later = rows[name][1:]
        sizes = {client["id"]: client["train_samples"] for client in small.summary(tmp_path / name)["per_client"]}
        images = sum(part(sizes[client]) for row in later for client in row["clients"])
        spent = sum(row["seconds"]["train"] + row["seconds"]["wait"] for row in later)
        assert speed[name] == pytest.approx(images / spent)
