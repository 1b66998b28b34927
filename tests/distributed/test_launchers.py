"""``python -m``, ``torchrun`` and ``accelerate launch`` start the same run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pfedmma.train import main
from tests.support import small
from tests.support.ranks import Ended, run_ranks, train, values_of

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
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, timeout=small.PATIENCE)


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


def train_on_two_nodes(meeting: list[str], settings: list[str], shared: str) -> None:
    """With the variables that a launcher on each node sets."""
    node, local = divmod(int(os.environ["RANK"]), 2)
    os.environ.update(GROUP_RANK=str(node), LOCAL_RANK=str(local), LOCAL_WORLD_SIZE="2", TMPDIR=shared)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")  # accelerate asks for them; the ranks meet in a file
    tempfile.tempdir = None  # found out anew
    socket.gethostname = lambda: f"node-{node}"
    train(meeting, settings)


def test_two_nodes_that_share_the_folder_for_temporary_files(settings: list[str], plain: Path, tmp_path: Path) -> None:
    """Each node's ranks share the decoded test images among themselves alone, and nothing of them is left."""
    shared = tmp_path / "temporary"
    shared.mkdir()
    values_of(run_ranks(tmp_path / "meet", 4, train_on_two_nodes, small.settings(tmp_path / "run", *settings), str(shared)))
    assert small.summary(tmp_path / "run")["world_size"] == 4
    rows, expected = small.metrics(tmp_path / "run"), small.metrics(plain)
    assert [row["clients"] for row in rows] == [row["clients"] for row in expected]
    assert rows[-1]["accuracy"] == pytest.approx(expected[-1]["accuracy"], rel=1e-5)
    assert not list(shared.rglob("*pfedmma*"))


def test_two_starts_of_two_ranks_with_one_run_folder(settings: list[str], tmp_path: Path) -> None:
    """One of them has the folder; the other is told so and leaves nothing there."""
    folder = tmp_path / "run"

    def start(seed: int) -> list[Ended]:
        own = small.settings(folder, *settings, f"seed={seed}", "federation.rounds=5", "resume=auto")
        return run_ranks(tmp_path / f"meet-{seed}", 2, train, own)

    with ThreadPoolExecutor(2) as both:
        runs = list(both.map(start, (1, 2)))
    refused = [run for run in runs if [rank.status for rank in run] != [0, 0]]
    assert len(refused) == 1, runs
    said = "".join(rank.stderr for rank in refused[0])
    assert [rank.status for rank in refused[0]] == [2, 2] and f"{folder}" in said and "Traceback" not in said
    assert [row["round"] for row in small.metrics(folder)] == list(range(1, 6))
    assert small.summary(folder)["seed"] == (2 if runs[0] is refused[0] else 1)
