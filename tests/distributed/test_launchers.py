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


def started(options: list[str], settings: list[str], **variables: str) -> subprocess.Popen[str]:
    """The training command below ``options`` of a launcher, begun."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", *options, "-m", "pfedmma.train", *settings]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=small.PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def launch(launcher: str, settings: list[str]) -> subprocess.CompletedProcess[str]:
    """Two ranks through a launcher's own command line."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    accelerate = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port())]
    options = {"torchrun": torchrun, "accelerate": accelerate}[launcher]
    return ended(started(options, settings))


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
    run = launch(launcher, small.settings(tmp_path / "run", *settings))
    assert run.returncode == 0, run.stderr
    assert small.summary(tmp_path / "run")["world_size"] == 2
    rows, expected = small.metrics(tmp_path / "run"), small.metrics(plain)
    assert [row["clients"] for row in rows] == [row["clients"] for row in expected]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-5)
    assert rows[-1]["accuracy"] == pytest.approx(expected[-1]["accuracy"], rel=1e-5)
    assert small.summary(tmp_path / "run")["zero_shot"] == pytest.approx(small.summary(plain)["zero_shot"], rel=1e-5)


def test_bad_input_is_said_once_and_stops_every_rank(tmp_path: Path) -> None:
    run = launch("torchrun", small.settings(tmp_path / "run", "data.clients=61"))
    assert run.returncode != 0
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, run.stderr
    assert "data.clients" in errors[0]
    assert not (tmp_path / "run").exists()


def test_two_nodes_that_share_the_folder_for_temporary_files(settings: list[str], plain: Path, tmp_path: Path) -> None:
    """Each node's ranks share the decoded test images among themselves alone, and nothing of them is left."""
    shared = tmp_path / "temporary"
    shared.mkdir()
    where = ["--nnodes=2", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    mine = small.settings(tmp_path / "run", *settings)
    nodes = [started(["torch.distributed.run", f"--node_rank={node}", *where], mine, TMPDIR=str(shared)) for node in (0, 1)]
    for run in map(ended, nodes):
        assert run.returncode == 0, run.stderr
    assert small.summary(tmp_path / "run")["world_size"] == 4
    rows, expected = small.metrics(tmp_path / "run"), small.metrics(plain)
    assert [row["clients"] for row in rows] == [row["clients"] for row in expected]
    assert rows[-1]["accuracy"] == pytest.approx(expected[-1]["accuracy"], rel=1e-5)
    assert not list(shared.rglob("*pfedmma*"))


def test_two_launchers_with_one_run_folder(settings: list[str], tmp_path: Path) -> None:
    """One of them has the folder; the other is told so and leaves nothing there."""
    folder = tmp_path / "run"
    both = [small.settings(folder, *settings, f"seed={seed}", "federation.rounds=30", "resume=auto") for seed in (1, 2)]
    runs = [ended(process) for process in [started(["torch.distributed.run", "--standalone", "--nproc_per_node=2"], own) for own in both]]
    refused = [run for run in runs if run.returncode != 0]
    assert len(refused) == 1, [run.stderr for run in runs]
    assert f"{folder}" in refused[0].stderr and "Traceback" not in refused[0].stderr.split("error: ")[0]
    assert [row["round"] for row in small.metrics(folder)] == list(range(1, 31))
    assert small.summary(folder)["seed"] == (2 if runs[0] is refused[0] else 1)
