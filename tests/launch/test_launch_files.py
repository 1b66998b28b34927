"""The files in ``launch/``: what they start, what they pass on, and when a batch job is queued again.

``tests/slurm/check.py`` tries the batch file on a real SLURM; here `srun`, `scontrol` and the launchers are stand-ins.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import small

pytestmark = pytest.mark.timeout(1800)
ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
BATCH = LAUNCH / "slurm.sbatch"
LAUNCHERS = {"torchrun": "torchrun_nodes.sh", "accelerate": "accelerate.sh"}  # LAUNCHER of the batch file, and what it starts on each node
PATIENCE = 600  # seconds that anything may take on a crowded machine; nothing waits so long unless something is wrong
AWKWARD = ["data.root=two words/here", "a='b' \"c\"", "*", "$HOME", ""]  # what a shell would change if it read it once more

SRUN = """#!/usr/bin/env bash
printf '%s\\0' "$@" >"$SEEN/srun"
env >"$SEEN/environment"
while [[ -n ${UNTIL:-} && ! -e $SEEN/$UNTIL ]]; do sleep 0.05; done
for argument in "$@"; do [[ $argument != run_dir=* ]] || run_dir=${argument#*=}; done
[[ -z ${LEAVES:-} ]] || mkdir -p "$run_dir/$LEAVES"
touch "$SEEN/srun-ended"
exit "${STATUS:-0}"
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
show) printf 'node%s\\n' 7 8 ;;
*) echo "$@" >>"$SEEN/scontrol" ;;
esac
"""
SHOW = """#!/usr/bin/env bash
printf '%s\\n' "$@"
"""


@dataclass
class StandIns:
    """Programs that take the places of SLURM's and the launchers', first in PATH; they write down in ``folder`` what they see."""

    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        job = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_SUBMIT_DIR": str(ROOT)}
        return {**os.environ, "PATH": path, "SEEN": str(self.folder), **job, **more}

    def run(self, script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(script), *arguments]
        environment = self.environment(**environment)
        return subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE)

    def batch(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run(Path("bash"), str(BATCH), *arguments, **environment)

    def requeued(self) -> list[str]:
        file = self.folder / "scontrol"
        return file.read_text().splitlines() if file.exists() else []

    def srun(self) -> list[str]:
        return (self.folder / "srun").read_text().split("\0")[:-1]


@pytest.fixture
def stand_ins(tmp_path: Path) -> StandIns:
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "torchrun": SHOW, "accelerate": SHOW}.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    return StandIns(tmp_path)


@pytest.mark.parametrize("script", [*LAUNCH.glob("*.sh"), BATCH], ids=lambda path: path.name)
def test_bash_can_read_it(script: Path) -> None:
    ended = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr


def one_sentence(ended: subprocess.CompletedProcess[str], *words: str) -> None:
    assert ended.returncode == 2, ended
    lines = ended.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and all(word in lines[0] for word in words), ended.stderr


# One machine and several.


def test_ranks_are_counted_or_given(stand_ins: StandIns) -> None:
    given = stand_ins.run(LAUNCH / "torchrun.sh", *AWKWARD, RANKS_PER_NODE="3")
    assert given.stdout.splitlines() == ["--standalone", "--nproc_per_node=3", "-m", "pfedmma.train", *AWKWARD]
    counted = stand_ins.run(LAUNCH / "torchrun.sh", CUDA_VISIBLE_DEVICES="", RANKS_PER_NODE="")
    assert "--nproc_per_node=1" in counted.stdout.splitlines(), counted
    one_sentence(stand_ins.run(LAUNCH / "torchrun.sh", RANKS_PER_NODE="two"), "RANKS_PER_NODE", "'two'")
    one_sentence(stand_ins.run(LAUNCH / "torchrun.sh", VENV="/nowhere"), "VENV", "/nowhere")


def test_nodes_meet_at_the_head_node(stand_ins: StandIns) -> None:
    meeting = {"NNODES": "2", "HEAD_NODE": "node7", "HEAD_PORT": "1234", "RDZV_ID": "word", "RANKS_PER_NODE": "4", "MAX_RESTARTS": "5"}
    torchrun = stand_ins.run(LAUNCH / "torchrun_nodes.sh", *AWKWARD, **meeting).stdout.splitlines()
    assert {"--nnodes=2", "--nproc_per_node=4", "--rdzv-endpoint=node7:1234", "--rdzv-id=word", "--max-restarts=5"} < set(torchrun)
    assert torchrun[-len(AWKWARD) - 2 :] == ["-m", "pfedmma.train", *AWKWARD]
    assert not any("is_host" in option for option in torchrun), "without a number, the machine finds out itself"
    for number, is_host in (("0", "1"), ("3", "0")):
        torchrun = stand_ins.run(LAUNCH / "torchrun_nodes.sh", **meeting, NODE_RANK=number).stdout.splitlines()
        assert f"--rdzv-conf=is_host={is_host}" in torchrun
        accelerate = stand_ins.run(LAUNCH / "accelerate.sh", *AWKWARD, **meeting, NODE_RANK=number).stdout
        options = " ".join(accelerate.splitlines())
        assert "--num_machines 2 --num_processes 8 " in options and f"--machine_rank {number} --main_process_ip node7" in options
        assert "--main_process_port 1234" in options and f"is_host={is_host}" in options and "--max_restarts 5" in options
        assert accelerate.splitlines()[-len(AWKWARD) - 2 :] == ["-m", "pfedmma.train", *AWKWARD]
    for script, missing in (("torchrun_nodes.sh", "NNODES"), ("torchrun_nodes.sh", "HEAD_NODE"), ("accelerate.sh", "HEAD_NODE")):
        one_sentence(stand_ins.run(LAUNCH / script, **meeting | {missing: ""}), missing)
    one_sentence(stand_ins.run(LAUNCH / "accelerate.sh", **meeting), "NODE_RANK")


# The batch file.


def told(stand_ins: StandIns) -> dict[str, str]:
    """The environment of srun."""
    lines = (stand_ins.folder / "environment").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_what_the_nodes_are_told(stand_ins: StandIns, launcher: str) -> None:
    """Arguments arrive as they were given; how many ranks there are and which node it is, each node finds out itself."""
    node = {"SLURM_NODEID": "0", "SLURM_GPUS_ON_NODE": "8"}
    ended = stand_ins.batch(*AWKWARD, "run_dir=old", "run_dir=a run", LAUNCHER=launcher, LEAVES="checkpoints", **node)
    assert ended.returncode == 0, ended.stderr
    words = stand_ins.srun()
    first = words.index(str(LAUNCH / "slurm_node.sh"))
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1"} < set(words[:first])
    started = str(LAUNCH / LAUNCHERS[launcher])
    assert words[first + 1 :] == [started, *AWKWARD, "run_dir=old", "run_dir=a run", "run_dir=a run", "resume=auto"]
    environment = told(stand_ins)
    assert (environment["NNODES"], environment["HEAD_NODE"], environment["HEAD_PORT"]) == ("2", "node7", "23456")
    assert "NODE_RANK" not in environment and not environment.get("RANKS_PER_NODE")


def test_places_for_what_a_site_needs(stand_ins: StandIns, tmp_path: Path) -> None:
    """With the signs of comments taken away: interface names reach the nodes, and a container stands before what runs there."""
    text = BATCH.read_text()
    for place in ("export GLOO_SOCKET_IFNAME", "CONTAINER_OPTIONS=", "CONTAINER_PROGRAM="):
        assert text.count(f"\n# {place}") == 1
        text = text.replace(f"\n# {place}", f"\n{place}")
    (tmp_path / "own.sbatch").write_text(text)
    ended = stand_ins.run(Path("bash"), str(tmp_path / "own.sbatch"), *AWKWARD, REPOSITORY=str(ROOT), LEAVES="checkpoints")
    assert ended.returncode == 0, ended.stderr
    words = stand_ins.srun()
    first = words.index(str(LAUNCH / "slurm_node.sh"))
    mounts = f"--container-mounts={stand_ins.folder}:{stand_ins.folder},DATA:DATA"
    assert {"--container-image=IMAGE", mounts, f"--container-workdir={stand_ins.folder}"} < set(words[:first])
    assert words[first - 6 : first] == ["apptainer", "exec", "--nv", "--bind", f"{stand_ins.folder},DATA", "IMAGE.sif"]
    assert words[first + 2 :][: len(AWKWARD)] == AWKWARD
    assert told(stand_ins)["GLOO_SOCKET_IFNAME"] == told(stand_ins)["NCCL_SOCKET_IFNAME"] == "NAME"


def test_torchrun_starts_the_ranks_unless_another_launcher_is_named(stand_ins: StandIns) -> None:
    assert stand_ins.batch(LAUNCHER="", LEAVES="checkpoints").returncode == 0
    assert str(LAUNCH / "torchrun_nodes.sh") in stand_ins.srun()
    one_sentence(stand_ins.batch(LAUNCHER="mpirun"), "torchrun or accelerate", "'mpirun'")


def test_queued_again_only_if_the_run_is_unfinished(stand_ins: StandIns) -> None:
    failed = stand_ins.batch("run_dir=failed", LEAVES="checkpoints", STATUS="7")
    assert failed.returncode == 7 and not stand_ins.requeued(), "a failure would fail for ever"
    finished = stand_ins.batch("run_dir=finished", LEAVES="summary.json")
    assert finished.returncode == 0 and not stand_ins.requeued() and "finished, see finished/summary.json" in finished.stdout
    one_sentence(stand_ins.batch("run_dir=elsewhere"), "elsewhere", "no run")
    assert not stand_ins.requeued(), "it would begin again for ever"
    interrupted = stand_ins.batch(LEAVES="checkpoints")
    assert interrupted.returncode == 0 and stand_ins.requeued() == ["requeue 123456"] and "to be continued" in interrupted.stdout
    assert (stand_ins.folder / "runs" / "slurm-123456" / "checkpoints").exists(), "a run folder for each job that names none"


def test_a_batch_job_that_cannot_run(stand_ins: StandIns) -> None:
    one_sentence(stand_ins.batch(SLURM_SUBMIT_DIR=str(stand_ins.folder)), "submit from the root", "REPOSITORY")
    one_sentence(stand_ins.batch("resume=runs/a"), "give run_dir=runs/a")
    assert not (stand_ins.folder / "srun").exists()
    assert stand_ins.batch(SLURM_SUBMIT_DIR="/", REPOSITORY=str(ROOT), LEAVES="summary.json").returncode == 0


def test_a_cancelled_job_leaves_the_ranks_their_time_and_is_not_queued_again(stand_ins: StandIns) -> None:
    environment = stand_ins.environment(LEAVES="checkpoints", UNTIL="the ranks are done")
    job = subprocess.Popen(["bash", str(BATCH)], env=environment, cwd=stand_ins.folder)
    until(lambda: (stand_ins.folder / "srun").exists())
    job.terminate()
    (stand_ins.folder / "the ranks are done").touch()
    assert job.wait(timeout=PATIENCE) == 128 + signal.SIGTERM
    assert (stand_ins.folder / "srun-ended").exists() and not stand_ins.requeued()


# On a node.


def test_a_node_counts_its_gpus_and_passes_the_status_on(stand_ins: StandIns) -> None:
    show = ["bash", "-c", 'echo "$NODE_RANK $RANKS_PER_NODE"; exit 7']
    ended = stand_ins.run(LAUNCH / "slurm_node.sh", *show, SLURM_NODEID="3", SLURM_GPUS_ON_NODE="4", RANKS_PER_NODE="")
    assert (ended.stdout, ended.returncode) == ("3 4\n", 7)
    given = stand_ins.run(LAUNCH / "slurm_node.sh", *show, SLURM_NODEID="0", SLURM_GPUS_ON_NODE="4", RANKS_PER_NODE="2")
    assert given.stdout == "0 2\n"
    without = stand_ins.run(LAUNCH / "slurm_node.sh", *show, SLURM_NODEID="0", SLURM_GPUS_ON_NODE="0", RANKS_PER_NODE="")
    assert without.stdout == "0 \n", "no GPU: one rank on the CPU, as everywhere"


def until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "number"), [("torchrun", signal.SIGUSR1), ("accelerate", signal.SIGTERM)])
def test_a_signal_to_the_first_process_alone_reaches_the_ranks(tmp_path: Path, launcher: str, number: signal.Signals) -> None:
    """As SLURM with cgroups sends it: two ranks finish their round, keep it, and all end well."""
    images = tmp_path / "two words"
    small.write_caltech(images, classes=6)
    run_dir = tmp_path / "a run"
    data = ["data.name=caltech101", f"data.root={images}", "data.clients=3", "distributed.device=cpu"]
    settings = small.settings(run_dir, *data, "federation.rounds=100000", "checkpoint.every=0")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SLURM_NODEID": "0", "RANKS_PER_NODE": "2", "OMP_NUM_THREADS": "1"}
    command = [str(LAUNCH / "slurm_node.sh"), str(LAUNCH / f"{launcher}.sh"), *settings]
    node = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: node.poll() is not None or ((run_dir / "metrics.jsonl").exists() and small.metrics(run_dir) != []))
    node.send_signal(number)
    out, err = node.communicate(timeout=PATIENCE)
    assert node.returncode == 0, err
    assert "on 2 ranks" in out and f"interrupted by {number.name} after round {len(small.metrics(run_dir))} of 100000" in out
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [f"round-{len(small.metrics(run_dir)):06d}"]
