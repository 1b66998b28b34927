"""Doing the runs of a comparison: each in processes of its own, several at once if wanted, what is done is not done again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch

from pfedmma.compare import run_log
from pfedmma.compare.board import Board, Durations
from pfedmma.compare.done import Failed
from pfedmma.compare.grid import Plan
from pfedmma.config import schema as configuration
from pfedmma.config.identity import refuse_other_config
from pfedmma.records.folder import RunFolder
from pfedmma.run.finished import finished
from pfedmma.system.console import duration, say
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


def diverged(plan: Plan) -> bool:
    """Whether the plan's run, with just these settings, ended because its training diverged; another try would end the same."""
    try:
        of_plan = _plan_file(plan).read_text(encoding="utf-8") == configuration.dump(plan.config)
    except OSError:
        return False
    return of_plan and any(DIVERGED in line for line in run_log.errors(log_of(plan)))


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


def run_all(plans: Sequence[Plan], slots: Slots, took: Durations) -> list[Failed]:
    """Do what is not done; returns the runs that failed. ``took``: by which estimates are made, and to which these runs are added.

    A candidate that diverges has not failed: that is its result (`pfedmma.compare.selection`), and it is not tried again.

    Raises:
        KeyboardInterrupt: an interruption has ended the running ones; it says that the same command goes on where they were.
    """
    waiting = [plan for plan in plans if not settled(plan)]
    done = len(plans) - len(waiting)
    say(f"{len(plans)} runs, {done} already done")
    with Board(len(plans), slots.jobs, done, waiting, took) as board:
        doing = Doing(waiting, slots, board)
        try:
            while doing.goes_on():
                time.sleep(0.1)
        except KeyboardInterrupt:
            count = len(doing.running)
            say(f"interrupted: ending {count} run{'s' * (count != 1)}")
            raise KeyboardInterrupt("the same command goes on with what is not done") from None
        finally:
            doing.stop()
    return doing.failed


@dataclass
class Doing:
    """The runs that ``waiting`` still has and those in the slots. ``failed``: of those that are over."""

    waiting: list[Plan]
    slots: Slots
    board: Board
    running: dict[int, Job] = field(default_factory=dict)
    failed: list[Failed] = field(default_factory=list)

    def goes_on(self) -> bool:
        """Take out what is over and start what has room; whether there is anything left to wait for."""
        for slot, job in list(self.running.items()):
            if job.process.poll() is not None:
                self._over(slot, job)
        for slot in range(self.slots.jobs):
            if slot not in self.running and self.waiting:
                job = self.running[slot] = Job.start(self.waiting.pop(0), self.slots, slot)
                self.board.started(slot, job)
        self.board.look()
        return bool(self.running)

    def _over(self, slot: int, job: Job) -> None:
        del self.running[slot]
        problem, board = job.problem(), self.board
        if problem and not settled(job.plan):
            self.failed.append(Failed(job.plan, problem, job.log))
            board.failed = len(self.failed)
        board.ended(slot, well=not problem)
        left = board.left() if board.done < board.total else None
        said = f"{problem} (see {job.log})" if problem else job.result()
        say(f"[{board.done}/{board.total}] {job.plan.name}: {said}" + ("" if left is None else f"; {duration(left)} left for all"))

    def stop(self) -> None:
        """End the processes of all runs; nothing is lost but the rounds since their last checkpoints."""
        for job in self.running.values():
            job.process.terminate()
        for job in self.running.values():
            job.stop()


@dataclass
class Job:
    """A run that is going on; its output is added to a file beside its folder."""

    plan: Plan
    process: subprocess.Popen
    output: IO[bytes]
    begun: float

    @classmethod
    def start(cls, plan: Plan, slots: Slots, slot: int) -> Job:
        write_plan(plan)
        started = command(plan, slots.ranks)
        output = run_log.begin(log_of(plan), started)
        # A session of its own: an interruption at the terminal reaches this program alone, which then ends the run in order.
        process = subprocess.Popen(started, stdout=output, stderr=subprocess.STDOUT, env=slots.environment(slot), start_new_session=True)
        return cls(plan, process, output, time.monotonic())

    @property
    def log(self) -> Path:
        return log_of(self.plan)

    def problem(self) -> str:
        """Why the run failed, in a line; empty if it did not."""
        self.output.close()
        if self.process.returncode == 0:
            ended = RunFolder(self.plan.config.run_dir).summary.exists()
            return "" if ended else "interrupted; the same command goes on with it"
        said = [*run_log.errors(self.log), *run_log.last_attempt(self.log)[-1:], "no output"][0]
        return f"failed with status {self.process.returncode}: {said}"

    def result(self) -> str:
        accuracy = RunFolder(self.plan.config.run_dir).read_summary().accuracy
        hm = accuracy.score("hm") if accuracy else None
        return f"{'no evaluation' if hm is None else f'HM {hm:.2f}'}, {time.monotonic() - self.begun:.0f} s"

    def stop(self) -> None:
        """Wait for its processes, which have been asked to end; after a while they are killed."""
        self.output.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait()


def failed_before(plans: Sequence[Plan]) -> list[Failed]:
    """Runs whose last attempt ended in an error, as far as their logs say so."""
    ended = [(plan, run_log.errors(log_of(plan))) for plan in plans if not settled(plan)]
    return [Failed(plan, f"failed: {said[0]}", log_of(plan)) for plan, said in ended if said]


def require_one_setting_a_run(plans: Sequence[Plan]) -> None:
    """Raise a `UserError` if a folder holds a run of other settings than its plan's; it names them."""
    for plan in plans:
        folder = RunFolder(plan.config.run_dir)
        if folder.summary.exists() and finished(plan.config) is None:
            saved = folder.read_summary().config
            if not saved:
                raise UserError(f"{folder.path} holds a run that is no part of a comparison; choose another --out")
            refuse_other_config(plan.config, saved)


def settled(plan: Plan) -> bool:
    """Whether there is nothing left to do for a plan."""
    return finished(plan.config) is not None or (plan.is_candidate and diverged(plan))


def log_of(plan: Plan) -> Path:
    """What the processes of the plan's run say."""
    return _plan_file(plan).with_suffix(".log")


def _plan_file(plan: Plan) -> Path:
    path = Path(plan.config.run_dir)
    return path.with_name("plans") / f"{path.name}.yaml"
