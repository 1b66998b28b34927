"""``python -m``, ``torchrun`` and ``accelerate launch`` start the same run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pfedmma.train import main
from tests.support import small

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(launcher: str, settings: list[str]) -> subprocess.CompletedProcess[str]:
    """Two ranks through a launcher's own command line."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    accelerate = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port())]
    options = {"torchrun": torchrun, "accelerate": accelerate}[launcher]
    command = [sys.executable, "-m", *options, "-m", "pfedmma.train", *settings]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=small.PATIENCE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three clients with one class each; on the CPU wherever the test runs."""
    folder = tmp_path_factory.mktemp("images")
    small.write_caltech(folder, classes=6)
    data = ["data.name=caltech101", f"data.root={folder}", "data.clients=3", "federation.participation=0.67"]
    return [*data, "evaluation.every=2", "distributed.device=cpu"]


@pytest.fixture(scope="module")
def plain(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    main(small.settings(folder, *settings))
    return folder


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_the_same_metrics(launcher: str, settings: list[str], plain: Path, tmp_path: Path) -> None:
    ended = launch(launcher, small.settings(tmp_path / "run", *settings))
    assert ended.returncode == 0, ended.stderr
    assert small.summary(tmp_path / "run")["world_size"] == 2
    rows, expected = small.metrics(tmp_path / "run"), small.metrics(plain)
    assert [row["clients"] for row in rows] == [row["clients"] for row in expected]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-5)
    assert rows[-1]["accuracy"] == pytest.approx(expected[-1]["accuracy"], rel=1e-5)
    assert small.summary(tmp_path / "run")["zero_shot"] == pytest.approx(small.summary(plain)["zero_shot"], rel=1e-5)


def test_bad_input_is_said_once_and_stops_every_rank(tmp_path: Path) -> None:
    ended = launch("torchrun", small.settings(tmp_path / "run", "data.clients=61"))
    assert ended.returncode != 0
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ended.stderr
    assert "data.clients" in errors[0]
    assert not (tmp_path / "run").exists()
