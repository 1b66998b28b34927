"""One of several ranks feeds the trackers, and a run that was killed goes on with the same curves."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pfedmma.records.rows import RoundRow
from pfedmma.train import Recorder, main
from tests.support import small
from tests.support.ranks import run_ranks, train, values_of
from tests.support.tracked import curves, losses, near

pytest.importorskip("tensorboard")


def train_and_die(meeting: list[str], settings: list[str]) -> None:
    """The main job, killed as soon as round 3 is recorded, one round after the checkpoint."""
    real = Recorder.round_done

    def round_done(self: Recorder, row: RoundRow) -> None:
        real(self, row)
        if row.round == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    Recorder.round_done = round_done  # type: ignore[method-assign]
    main([*meeting, *settings])


def test_a_killed_run_goes_on_with_the_same_curves(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = small.settings(run, "trackers=tensorboard", "federation.rounds=4", "checkpoint.every=2", "evaluation.every=2")
    killed = run_ranks(tmp_path / "killed", 2, train_and_die, arguments)
    assert -signal.SIGKILL in [rank.status for rank in killed]
    assert [round_ for round_, _ in curves(run)["loss"]] == [1, 2, 3]
    values_of(run_ranks(tmp_path / "resumed", 2, train, [*arguments, "resume=auto"]))

    rows, shown = small.metrics(run), curves(run)
    assert shown["loss"] == near(losses(run)) and len(rows) == 4
    for part in ("train", "input", "exchange", "total"):
        assert shown[f"seconds/{part}"] == near([(row["round"], row["seconds"][part]) for row in rows])
    sent = [row["comm"]["uplink_bytes"] for row in rows]
    assert shown["comm/uplink_bytes"] == near(list(enumerate(sent, start=1)))
    assert shown["comm/uplink_bytes_total"] == near([(i, sum(sent[:i])) for i in range(1, 5)])
    assert shown["accuracy/local"] == near([(row["round"], row["accuracy"]["local"]) for row in rows if row["accuracy"]])
    assert [round_ for round_, _ in shown["accuracy/hm"]] == [2, 4]
    summary = small.summary(run)
    assert shown["final/novel"] == near([(4, summary["accuracy"]["novel"])])
    assert shown["zero_shot/base"] == near([(4, summary["zero_shot"]["base"])])

    files = list((run / "trackers" / "tensorboard").glob("events.out.tfevents.*"))
    assert len(files) == 2, "one for each part of the run: rank 1 writes none"
    (known,) = (run / "trackers" / "tensorboard").glob("*/hparams.yml")
    assert "method.name: pfedmma" in known.read_text() and "data.clients: 7" in known.read_text()
