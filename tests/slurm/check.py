"""``launch/slurm.sbatch`` on a real SLURM: jobs that were requeued, interrupted and robbed of a rank end as an unbroken run does.

``python -m tests.slurm.check`` installs SLURM from the distribution's packages if it is missing, starts a cluster whose nodes are both this
machine, and takes everything down again. It needs root; where SLURM cannot be had it says so and ends with 0. pytest does not collect it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.slurm.cluster import NODES, CannotStart, Cluster, missing
from tests.support import small

ROOT = Path(__file__).resolve().parents[2]

ROUNDS = 90
PATIENCE = 900.0  # seconds for anything to happen, on a crowded machine too; nothing waits so long unless something is wrong
# Time enough for a slow machine; when the signal before the time limit is wanted, the limit comes closer. SLURM looks every 30 s.
OPTIONS = ("--time=60", "--signal=USR1@45", "--cpus-per-task=2", f"--nodelist={NODES[0]}")
SLOW, FAST = "2", "0"  # seconds that a round lasts longer: no job may be done before the signal comes
CASES = (("torchrun", 2), ("accelerate", 1))
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": f"{Path(__file__).parent / 'site'}:{ROOT}",
    "OMP_NUM_THREADS": "1",
}


def main() -> None:
    if why := missing():
        print(f"skipped: {why}")
        return
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="slurm-check-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)
        try:
            with Cluster(folder / "cluster") as cluster, ThreadPoolExecutor() as pool:
                others = pool.submit(reference_and_bad_ends, cluster, folder)
                runs = list(pool.map(lambda case: interrupted_run(cluster, folder, *case), CASES))
                reference = others.result()
            for run in runs:
                compare(run, reference)
            assert not cluster.left, f"processes that outlived their jobs: {cluster.left}"
        except CannotStart as error:
            print(f"skipped: SLURM is installed and does not start here: {error}")
            return
        except BaseException:
            for log in folder.glob("*.log"):
                print(f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-40:], sep="\n", file=sys.stderr)
            raise
    seconds = time.monotonic() - start
    print(f"both launchers: requeued, interrupted before the time limit, a rank killed; same results. {seconds:.0f} s")


def interrupted_run(cluster: Cluster, folder: Path, launcher: str, nodes: int) -> Path:
    """A job with two ranks on one node, or one on each of two, that is stopped in three ways and finishes."""
    options = [f"--nodes={nodes}", f"--gpus-per-node={2 // nodes}"]
    job = Job(cluster, folder, launcher, launcher, options, MAX_RESTARTS="1")
    job.wait("its first rounds", lambda: job.rounds() >= 3)
    job.command("scontrol", "requeue")
    job.wait("being requeued", lambda: job.state("Restarts") == "1" and job.state("JobState") == "RUNNING")
    job.say("requeued")
    done = job.rounds()
    job.wait("going on", lambda: job.rounds() > done)
    job.command("scontrol", "update", f"TimeLimit={job.minutes() + 2}")
    job.wait("the signal before the time limit", lambda: "interrupted by SIGUSR1" in job.log.read_text())
    job.say("interrupted by SIGUSR1")
    job.command("scontrol", "update", "TimeLimit=60")
    done = job.rounds()
    job.wait("going on", lambda: int(job.state("Restarts")) >= 2 and job.rounds() > done)
    job.say(f"goes on after round {done}")
    os.kill(job.ranks()[-1], signal.SIGKILL)
    job.pace.write_text(FAST)
    job.wait("its end", lambda: job.state("JobState") not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"))
    job.say(job.state("JobState"))
    assert job.state("JobState") == "COMPLETED", job.state("JobState")
    text = job.log.read_text()
    assert "SIGKILL" in text or "exitcode: -9" in text, "no rank was killed"
    assert text.count(": finished, see") == 1 and "to be continued, the same job waits again" in text
    return job.run_dir


def reference_and_bad_ends(cluster: Cluster, folder: Path) -> Path:
    """The unbroken run, without SLURM; a job that fails; a job that is cancelled. Neither may be queued again."""
    reference = folder / "reference"
    command = [str(ROOT / "launch" / "torchrun.sh"), *settings(reference)]
    (folder / "pace").write_text(FAST)
    environment = {**os.environ, **ENVIRONMENT, "RANKS_PER_NODE": "2", "PACE": str(folder / "pace")}
    with open(folder / "reference.log", "w") as log:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=PATIENCE, check=True)

    failing = Job(cluster, folder, "failing", "torchrun", ["--gpus-per-node=0"], "data.clients=61", RANKS_PER_NODE="2")
    failing.wait("its end", lambda: failing.state("JobState") not in ("PENDING", "RUNNING", "COMPLETING"))
    failing.say(failing.state("JobState"))
    assert (failing.state("JobState"), failing.state("Restarts")) == ("FAILED", "0"), failing.state("JobState")
    assert "data.clients" in failing.log.read_text()

    cancelled = Job(cluster, folder, "cancelled", "accelerate", ["--nodes=2", "--gpus-per-node=0"], RANKS_PER_NODE="1")
    cancelled.wait("its first rounds", lambda: cancelled.rounds() >= 2)
    cancelled.command("scancel")
    cancelled.wait("its end", lambda: not cancelled.ranks() and cancelled.state("JobState") != "COMPLETING")
    cancelled.say(cancelled.state("JobState"))
    assert (cancelled.state("JobState"), cancelled.state("Restarts")) == ("CANCELLED", "0"), cancelled.state("JobState")
    assert "interrupted by SIGTERM" in cancelled.log.read_text(), "the ranks had no time to keep their round"
    assert list((cancelled.run_dir / "checkpoints").iterdir()) and not (cancelled.run_dir / "summary.json").exists()
    return reference


def settings(run_dir: Path, *more: str) -> list[str]:
    fixed = [f"federation.rounds={ROUNDS}", f"evaluation.every={ROUNDS}", "checkpoint.every=10", "distributed.device=cpu"]
    return small.settings(run_dir, *fixed, *more)


def compare(run: Path, reference: Path) -> None:
    """The same rounds, each once, and the same result."""
    rows, wanted = small.metrics(run), small.metrics(reference)
    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1)), f"{run}: {[row['round'] for row in rows]}"
    for row, expected in zip(rows, wanted, strict=True):
        assert small.timeless(row) == small.timeless(expected), f"{run}: {row} is not {expected}"
    ours, theirs = small.summary(run), small.summary(reference)
    for key in ("accuracy", "zero_shot", "per_client", "world_size"):
        assert ours[key] == theirs[key], f"{run}: {key}"
    assert ours["accuracy"] is not None and ours["world_size"] == 2
    small.assert_same_tensors(run, reference)


class Job:
    """A batch job on the cluster. A blank in its run folder's name must survive all shells."""

    def __init__(self, cluster: Cluster, folder: Path, name: str, launcher: str, options: list[str], *more: str, **variables: str) -> None:
        self.cluster, self.name = cluster, name
        self.run_dir, self.log, self.pace = folder / f"run of {name}", folder / f"{name}.log", folder / f"{name}.pace"
        self.pace.write_text(SLOW)
        batch = str(ROOT / "launch" / "slurm.sbatch")
        command = ["sbatch", "--parsable", f"--output={self.log}", *OPTIONS, *options, batch, *settings(self.run_dir, *more)]
        environment = {**cluster.environment, **ENVIRONMENT, "PACE": str(self.pace), "LAUNCHER": launcher, **variables}
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        self.number = ended.stdout.strip()

    def command(self, *command: str) -> None:
        number = f"JobId={self.number}" if "update" in command else self.number
        ended = self.cluster.run(*command, number)
        assert ended.returncode == 0, ended.stderr

    def state(self, key: str) -> str:
        return self.cluster.job(self.number).get(key, "")

    def minutes(self) -> int:
        """Whole minutes since the job has started, this time."""
        *hours, minutes, _ = self.state("RunTime").split(":")
        assert hours in (["00"], []), "a job of this check takes no hour"
        return int(minutes)

    def rounds(self) -> int:
        return len(small.metrics(self.run_dir)) if (self.run_dir / "metrics.jsonl").exists() else 0

    def ranks(self) -> list[int]:
        """Process ids."""
        found = []
        for process in self.cluster.processes():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{process}/cmdline").read_bytes()
                if b"\0-u\0-m\0pfedmma.train\0" in command and f"\0run_dir={self.run_dir}\0".encode() in command:
                    found.append(process)
        return found

    def wait(self, what: str, there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not there():
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name}: waited {PATIENCE:.0f} s for {what}; {self.cluster.job(self.number)}")
            time.sleep(0.3)

    def say(self, what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self.name}: {what}", flush=True)


if __name__ == "__main__":
    main()
