"""What the loss of a rank leads to: one is killed, one hangs, and the run goes on after each.

    python benchmarks/lost_rank.py [--ranks 2] [--device auto] [--backend auto] [--timeout 20] [--ways kill,hang]

The ranks are those of `pfedmma.train` on the embedded default, in two processes or more that meet in a file: no launcher is there to end
them. After two rounds the last one gets SIGKILL, or SIGSTOP. Measured: how long the others take to end, which under NCCL is up to
``distributed.timeout``, and whether each names the lost rank in one sentence and ends with status 2. Then all ranks start again with
``resume=auto``; in the end every round must stand once in ``metrics.jsonl``. The exit status is 1 if anything went otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from machine import machine, publish
from programs import ROOT, child_environment, device_from, require_at_least
from rich.markup import escape
from rich.table import Table

from pfedmma.system.console import show
from pfedmma.system.errors import UserError, run_main

WAYS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP}
ROUNDS = 2  # of each start, before a rank is lost
SLACK = 10.0  # seconds that a process may need to end, after it knows that it has to
SETTINGS = (
    "backbone.compile=off data.shots=2 federation.local_epochs=1 federation.batch_size=8 evaluation.every=0 checkpoint.every=1 resume=auto"
)
MEASURED = "seconds from the signal to the end of the last of the other processes"


@dataclass(frozen=True)
class Loss:
    """What one loss led to. ``said``: the sentences of the others; ``problem`` is empty if all is well."""

    way: str
    seconds: float
    said: tuple[str, ...]
    problem: str


@dataclass(frozen=True)
class Check:
    """How the ranks are started, and in which ``folder`` the run lies."""

    ranks: int
    device: str
    backend: str
    timeout: float
    patience: float
    folder: Path

    @contextlib.contextmanager
    def started(self, rounds: int) -> Iterator[list[subprocess.Popen[bytes]]]:
        """All ranks of a run of so many rounds, of which none is left in the end; what they say is in files."""
        meeting = tempfile.mkdtemp(dir=self.folder)
        where = [f"distributed.{name}={getattr(self, name)}" for name in ("device", "backend", "timeout")]
        own = [f"run_dir={self.folder / 'run'}", f"distributed.init_method=file://{meeting}/ranks", f"data.clients={2 * self.ranks}"]
        command = [sys.executable, "-m", "pfedmma.train", *SETTINGS.split(), *where, *own, f"federation.rounds={rounds}"]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(self.ranks):
                env = child_environment(**{name: str(rank) for name in ("RANK", "LOCAL_RANK")}, **self.sizes)
                with self.said(rank).open("wb") as out:
                    processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out))
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.wait()

    @property
    def sizes(self) -> dict[str, str]:
        return {name: str(self.ranks) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}

    def said(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.txt"

    def rounds(self) -> list[int]:
        """The rounds that stand in ``metrics.jsonl``, without a last line that is being written."""
        file = self.folder / "run" / "metrics.jsonl"
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        return [json.loads(line)["round"] for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def errors(self, ranks: Sequence[int]) -> tuple[str, ...]:
        """What each of the ranks ended with, in a line."""
        lines = [self.said(rank).read_text(errors="replace").strip().splitlines() for rank in ranks]
        return tuple(next((line for line in said if line.startswith("error: ")), said[-1] if said else "nothing") for said in lines)

    def lose(self, way: str) -> Loss:
        """Start all ranks, and lose the last one after `ROUNDS` rounds."""
        before, lost = len(self.rounds()), self.ranks - 1
        with self.started(10**6) as processes:
            others = processes[:lost]
            deadline = time.monotonic() + self.patience
            while len(self.rounds()) < before + ROUNDS:
                if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
                    return Loss(way, 0.0, self.errors(range(self.ranks)), f"no {ROUNDS} rounds were done")
                time.sleep(0.05)
            processes[lost].send_signal(WAYS[way])
            begin = time.monotonic()
            for process in others:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, begin + self.timeout + SLACK - time.monotonic()))
            seconds = time.monotonic() - begin
            said = self.errors(range(lost))
            return Loss(way, seconds, said, problem_of([process.poll() for process in others], said, lost, self.timeout))

    def finish(self) -> str:
        """Start all ranks once more, for the last rounds; what is wrong then."""
        last = len(self.rounds()) + ROUNDS
        with self.started(last) as processes:
            deadline = time.monotonic() + self.patience
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
            if any(process.poll() != 0 for process in processes):
                return f"the resumed run did not end well: {'; '.join(self.errors(range(self.ranks)))}"
        rounds = self.rounds()
        return "" if rounds == list(range(1, last + 1)) else f"not every round stands once in metrics.jsonl: {rounds}"


def problem_of(statuses: Sequence[int | None], said: Sequence[str], lost: int, timeout: float) -> str:
    """What is wrong with how the others ended; empty if nothing."""
    for rank, (status, sentence) in enumerate(zip(statuses, said, strict=True)):
        if status is None:
            return f"rank {rank} was still there after {timeout + SLACK:.0f} s"
        if status != 2:
            return f"rank {rank} ended with status {status}"
        if f"for rank {lost} (" not in sentence:
            return f"rank {rank} did not name rank {lost}"
    return ""


def table(losses: Sequence[Loss], title: str) -> Table:
    out = Table(title=title, caption=f"measured: {MEASURED}", caption_justify="left")
    for name in ("way", "s", "", "said"):
        out.add_column(name)
    for loss in losses:
        out.add_row(loss.way, f"{loss.seconds:.1f}", loss.problem or "well", escape(loss.said[0] if loss.said else ""))
    return out


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--backend", default="auto", choices=("auto", "nccl", "gloo"))
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds, as distributed.timeout; all ranks must have started by then")
    parser.add_argument("--ways", default=",".join(WAYS), help="kill, hang or both")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds for a start and its first rounds")
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    args = parser.parse_args()
    require_at_least(args, ranks=2, timeout=1)
    args.ways = args.ways.split(",")
    if unknown := [way for way in args.ways if way not in WAYS]:
        raise UserError(f"--ways: '{unknown[0]}' is not known; there are {', '.join(WAYS)}")
    return args


def main() -> None:
    args = arguments()
    device = device_from(args.device)
    with tempfile.TemporaryDirectory(prefix="pfedmma-lost-") as folder:
        check = Check(args.ranks, device.type, args.backend, args.timeout, args.patience, Path(folder))
        losses = [check.lose(way) for way in args.ways]
        resumed = check.finish()
    backend = args.backend if args.backend != "auto" else "nccl" if device.type == "cuda" else "gloo"
    show(table(losses, f"a lost rank of {args.ranks}, {backend}, {device.type}"))
    report = {
        "benchmark": "lost_rank",
        "date": datetime.date.today().isoformat(),
        **machine(torch.device(device), "accelerate"),
        "world_size": args.ranks,
        "backend": backend,
        "timeout_s": args.timeout,
        "measured": MEASURED,
        "losses": [asdict(loss) for loss in losses],
        "resumed": resumed or "every round stands once",
    }
    publish(report, args.json)
    if resumed or any(loss.problem for loss in losses):
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
