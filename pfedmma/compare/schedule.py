"""Doing the runs of a comparison: each in processes of its own, several at once if wanted, what is done is not done again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from pfedmma.compare.grid import Plan
from pfedmma.config import schema as configuration
from pfedmma.config.identity import refuse_other_config, relevant, settings
from pfedmma.records.folder import RunFolder
from pfedmma.records.rows import RunSummary
from pfedmma.system.errors import UserError
from pfedmma.system.files import write_atomically

DIVERGED = "lower optimizer.lr"  # what a run advises whose numbers are not finite


@dataclass(frozen=True)
class Slots:
    """``jobs`` runs at once, each of ``ranks`` processes."""

    jobs: int
    ranks: int

    def environment(self, slot: int) -> dict[str, str]:
        """Variables of the processes of a run in ``slot``: its share of the cores, and of the GPUs where there are some."""
        env = dict(os.environ)
        env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // (self.jobs * self.ranks))))
        if self.jobs > 1 and (gpus := visible_gpus()):
            own = gpus[slot :: self.jobs] or [gpus[slot % len(gpus)]]
            env["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        return env


def visible_gpus() -> list[str]:
    """The GPUs that a program started here would see, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [gpu for gpu in named.split(",") if gpu] if named is not None else [str(i) for i in range(torch.cuda.device_count())]


def finished(plan: Plan) -> RunSummary | None:
    """The summary of the plan's run, if it has been done with just these settings."""
    folder = RunFolder(plan.config.run_dir)
    if not folder.summary.exists():
        return None
    summary = folder.read_summary()
    return summary if relevant(summary.config) == relevant(settings(plan.config)) else None


def diverged(plan: Plan) -> bool:
    """Whether the plan's run, with just these settings, ended because its training diverged; another try would end the same."""
    file, log = _plan_file(plan), _plan_file(plan).with_suffix(".log")
    try:
        of_plan = file.read_text(encoding="utf-8") == configuration.dump(plan.config)
        return of_plan and any(DIVERGED in line for line in _errors(log))
    except OSError:
        return False


def command(plan: Plan, ranks: int) -> list[str]:
    """What starts, or goes on with, the plan's run."""
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*launch, "-m", "pfedmma.train", "--config", str(_plan_file(plan)), "resume=auto"]


def write_plan(plan: Plan) -> None:
    """Write the settings that `command` reads, beside the run's folder."""
    file = _plan_file(plan)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, configuration.dump(plan.config).encode())


def run_all(plans: Sequence[Plan], slots: Slots) -> list[str]:
    """Do what is not done; returns one line about each run that failed.

    A candidate that diverges has not failed: that is its result (`pfedmma.compare.selection`), and it is not tried again. An
    interruption ends the running ones, and the same command goes on where they were.
    """
    waiting = [plan for plan in plans if not settled(plan)]
    print(f"{len(plans)} runs, {len(plans) - len(waiting)} already done", flush=True)
    running: dict[int, Job] = {}
    failed: list[str] = []
    done = len(plans) - len(waiting)
    try:
        while waiting or running:
            for slot in range(slots.jobs):
                if slot not in running and waiting:
                    running[slot] = Job.start(waiting.pop(0), slots, slot)
            time.sleep(0.1)
            for slot, job in list(running.items()):
                if job.process.poll() is None:
                    continue
                del running[slot]
                done += 1
                problem = job.problem()
                print(f"[{done}/{len(plans)}] {job.plan.name}: {problem or job.result()}", flush=True)
                if problem and not settled(job.plan):
                    failed.append(f"{job.plan.name}: {problem}")
    finally:
        for job in running.values():
            job.stop()
    return failed


@dataclass
class Job:
    """A run that is going on; its output goes to a file beside its folder."""

    plan: Plan
    process: subprocess.Popen
    log: IO[bytes]
    begun: float

    @classmethod
    def start(cls, plan: Plan, slots: Slots, slot: int) -> Job:
        write_plan(plan)
        log = open(_plan_file(plan).with_suffix(".log"), "wb")  # noqa: SIM115, closed when the run ends
        # A session of its own: an interruption at the terminal reaches this program alone, which then ends the run in order.
        process = subprocess.Popen(
            command(plan, slots.ranks), stdout=log, stderr=subprocess.STDOUT, env=slots.environment(slot), start_new_session=True
        )
        return cls(plan, process, log, time.monotonic())

    def problem(self) -> str:
        """Why the run failed, in a line; empty if it did not."""
        self.log.close()
        if self.process.returncode == 0:
            ended = RunFolder(self.plan.config.run_dir).summary.exists()
            return "" if ended else "interrupted; the same command goes on with it"
        log = Path(self.log.name)
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        said = [*_errors(log), *lines[-1:], "no output"][0]
        return f"failed with status {self.process.returncode}: {said} (see {log})"

    def result(self) -> str:
        accuracy = RunFolder(self.plan.config.run_dir).read_summary().accuracy
        hm = accuracy.score("hm") if accuracy else None
        return f"{'no evaluation' if hm is None else f'HM {hm:.2f}'}, {time.monotonic() - self.begun:.0f} s"

    def stop(self) -> None:
        """End the run's processes; nothing is lost but the rounds since its last checkpoint."""
        self.log.close()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait()


def require_one_setting_a_run(plans: Sequence[Plan]) -> None:
    """Raise a `UserError` if a folder holds a run of other settings than its plan's; it names them."""
    for plan in plans:
        folder = RunFolder(plan.config.run_dir)
        if folder.summary.exists() and finished(plan) is None:
            saved = folder.read_summary().config
            if not saved:
                raise UserError(f"{folder.path} holds a run that is no part of a comparison; choose another --out")
            refuse_other_config(plan.config, saved)


def settled(plan: Plan) -> bool:
    """Whether there is nothing left to do for a plan."""
    return finished(plan) is not None or (plan.is_candidate and diverged(plan))


def _errors(log: Path) -> list[str]:
    """The lines in which a run's processes say what is wrong."""
    return [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]


def _plan_file(plan: Plan) -> Path:
    path = Path(plan.config.run_dir)
    return path.with_name("plans") / f"{path.name}.yaml"
