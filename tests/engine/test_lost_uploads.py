"""Whole runs in which uploads are lost and rounds have nobody: what is averaged, kept, counted and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.records.checkpoint import manifest, read
from pfedmma.report import main as report
from pfedmma.train import main
from tests.support import small

SHARED = 3_168  # exchanged parameters of pfedmma on the tiny CLIP
IMAGES = dict.fromkeys(range(6), 18) | {6: 12}
NOBODY = ["federation.sampling=poisson", "federation.participation=0.2", "federation.rounds=5"]  # in round 4
POOLED = ["method.name=pfedmoap", "method.pfedmoap.context=2", "federation.batch_size=18"]
EACH = ["checkpoint.every=1", "checkpoint.keep=9"]


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    small.few_images(monkeypatch)


def tensors(run: Path, round_: int) -> dict[str, Tensor]:
    """All tensors of a checkpoint, named as in `small.final_tensors`."""
    found = manifest.read_manifest(manifest.folder_of(run / "checkpoints", round_))
    rows = read.read_rows(run / "checkpoints", found, range(7))
    return {row.kind if row.client is None else f"{row.client}.{row.kind}": row.tensor for row in rows}


def failing(round_: int, share: float) -> list[int]:
    return [i for i in range(7) if rng.uniform(0, "dropout", round_, i) < share]


def test_the_mean_is_over_those_who_arrive_and_who_fails_keeps_what_it_trained(tmp_path: Path) -> None:
    """The server keeps each prompt that comes, so its mean can be worked out; and each client answers with its own."""
    common = [*POOLED, *EACH, "federation.participation=1", "federation.rounds=1"]
    main(small.settings(tmp_path / "all", *common))
    main(small.settings(tmp_path / "some", *common, "federation.dropout=0.4"))
    everybody, some = tensors(tmp_path / "all", 1), tensors(tmp_path / "some", 1)
    lost = failing(1, 0.4)
    arrived = [i for i in range(7) if i not in lost]
    assert 0 < len(lost) < 7 and small.metrics(tmp_path / "some")[0]["lost"] == {"failed": lost, "late": []}
    assert {name for name in some if ".pool." in name} == {f"server.pool.{i}" for i in arrived}
    images = sum(IMAGES[i] for i in arrived)
    mean = sum(IMAGES[i] / images * everybody[f"server.pool.{i}"] for i in arrived)
    torch.testing.assert_close(some["server.shared"], mean, rtol=1e-5, atol=1e-7)
    assert (some["server.shared"] - everybody["server.shared"]).abs().max() > 1e-4  # all of them have another one
    for i in range(7):  # whether its upload has come makes no difference to what it has
        assert torch.equal(some[f"{i}.private"], everybody[f"{i}.private"])
    width = some["server.shared"].numel()
    newest = read.newest_good(tmp_path / "some" / "checkpoints")
    assert newest is not None
    for i in lost:
        answer = read.client_answer(tmp_path / "some" / "checkpoints", newest, i)
        assert torch.equal(answer.tensors["prompt"].flatten(), everybody[f"server.pool.{i}"]) and answer.others == {}
        assert torch.equal(some[f"{i}.private"][:width], everybody[f"server.pool.{i}"])


def test_bytes_by_hand(tmp_path: Path) -> None:
    """7 clients, 40 % of which are 3, and 5 are drawn for them; late ones have received and sent, too."""
    main(small.settings(tmp_path, "federation.rounds=3", "federation.over_selection=1.6", "federation.dropout=0.3"))
    rows, summary = small.metrics(tmp_path), small.summary(tmp_path)
    assert [len(row["clients"]) for row in rows] == [5, 5, 5]
    counts = [len(row["lost"]["failed"]) + len(row["lost"]["late"]) for row in rows]
    assert min(counts) >= 2 and any(row["lost"]["failed"] for row in rows) and any(row["lost"]["late"] for row in rows)
    for row, lost in zip(rows, counts, strict=True):
        assert row["comm"]["uplink_bytes"] == row["comm"]["downlink_bytes"] == 5 * 4 * SHARED
        assert row["comm"]["wasted_bytes"] == lost * 4 * SHARED
        assert row["comm"]["payload_bytes"] == 4 * SHARED
        assert row["samples"] == sum(IMAGES[i] for i in row["clients"])
    assert summary["comm"]["uplink_bytes"] == 15 * 4 * SHARED and summary["comm"]["wasted_bytes"] == sum(counts) * 4 * SHARED
    assert sum(summary["lost"].values()) == sum(counts)
    # All are equally fast, so 3 steps take 3 seconds; client 6 takes 2.
    assert [row["simulated_seconds"] for row in rows] == [3.0] * 3 and summary["simulated_seconds"] == 9.0


def test_simulated_time_alone_changes_nothing_else(tmp_path: Path) -> None:
    main(small.settings(tmp_path / "plain"))
    main(small.settings(tmp_path / "timed", "federation.speeds=0.5", "federation.step_seconds=0.1"))
    plain, timed = small.metrics(tmp_path / "plain"), small.metrics(tmp_path / "timed")
    assert not {"lost", "simulated_seconds"} & plain[0].keys() and "wasted_bytes" not in plain[0]["comm"]
    seconds = [row.pop("simulated_seconds") for row in timed]
    assert small.timeless(timed) == small.timeless(plain) and all(0.05 < value < 3 for value in seconds)
    assert small.summary(tmp_path / "timed")["simulated_seconds"] == pytest.approx(sum(seconds))
    assert not {"lost", "simulated_seconds"} & small.summary(tmp_path / "plain").keys()


@pytest.fixture(scope="module")
def nobody(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five rounds, the fourth without a participant; evaluated after each."""
    folder = tmp_path_factory.mktemp("nobody")
    with pytest.MonkeyPatch.context() as patch:
        small.few_images(patch)
        main(small.settings(folder / "run", *NOBODY, *EACH, "evaluation.every=1", "optimizer.state=persist"))
    return folder / "run"


def test_a_round_of_nobody_changes_nothing(nobody: Path) -> None:
    rows = small.metrics(nobody)
    assert [row["clients"] for row in rows] == [[3], [2], [3, 4, 6], [], [2, 5, 6]]
    before, after = tensors(nobody, 3), tensors(nobody, 4)
    assert before.keys() == after.keys() and all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert rows[3]["accuracy"] == rows[2]["accuracy"] and rows[3]["per_client"] == rows[2]["per_client"]
    assert (rows[3]["samples"], rows[3]["loss"]) == (0, None)
    moved = ("payload_bytes", "uplink_bytes", "downlink_bytes", "collectives", "ring_bytes_per_rank")
    assert [rows[3]["comm"][name] for name in moved] == [0] * 5
    assert small.summary(nobody)["comm"]["uplink_bytes"] == 8 * 4 * SHARED


def test_a_run_with_a_round_of_nobody_is_reported(nobody: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report([str(nobody), "--html", str(nobody / "page.html"), "--markdown", str(nobody / "page.md")])
    text = (nobody / "page.md").read_text()
    assert "| 1.6 |" in text and "12,672 B | 12,672 B" in text  # participants a round; bytes of each


def test_its_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(small.settings(tmp_path / "run", *NOBODY, "federation.dropout=0.4", "federation.speeds=0.5"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round ")]
    assert lines[3].startswith("round 4/5  nobody took part  0.00 simulated s  ")
    assert "  lost 2 of 3  3.88 simulated s  " in lines[2] and "lost" not in lines[0]


@pytest.mark.parametrize("more", [[], POOLED], ids=["shared", "pooled"])
def test_where_nobody_arrives_the_server_stays_as_it_was(tmp_path: Path, more: list[str]) -> None:
    """A local step takes a second, and nobody has as little as half a second."""
    main(small.settings(tmp_path, *more, *EACH, "federation.deadline=0.5"))
    rows, summary = small.metrics(tmp_path), small.summary(tmp_path)
    for row in rows:
        assert row["lost"] == {"failed": [], "late": row["clients"]} and row["simulated_seconds"] == 0.5 and row["loss"] > 0
        assert row["comm"]["wasted_bytes"] == row["comm"]["uplink_bytes"] > 0 and row["comm"]["payload_bytes"] == 0
    first, last = tensors(tmp_path, 1), tensors(tmp_path, 2)
    width = first["server.shared"].numel()
    assert torch.equal(last["server.shared"], first["server.shared"]) and torch.equal(first["server.shared"], first["initial"][:width])
    assert not any(".pool." in name for name in last)
    trained = [name for name in last if name.endswith(".private")]
    assert len(trained) == len({i for row in rows for i in row["clients"]})
    assert all(not torch.equal(last[name], first["initial"][-last[name].numel() :]) for name in trained)
    assert summary["lost"] == {"failed": 0, "late": 6} and summary["comm"]["wasted_bytes"] == summary["comm"]["uplink_bytes"]


@pytest.mark.parametrize("method", ["zeroshot", "local"])
def test_methods_that_send_nothing_lose_nothing(tmp_path: Path, method: str) -> None:
    main(small.settings(tmp_path, f"method.name={method}", *NOBODY, "federation.dropout=0.4"))
    found: list[dict[str, Any]] = small.metrics(tmp_path)
    assert [row["comm"]["wasted_bytes"] for row in found] == [0] * 5 and any(row["lost"]["failed"] for row in found)
