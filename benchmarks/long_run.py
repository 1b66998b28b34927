"""A long run as a user starts it, watched from outside: memory, open files, time a round, and whether its metrics can be read meanwhile.

    python benchmarks/long_run.py [--rounds 1000] [--ranks 2] [key=value ...]

The run is ``torchrun -m pfedmma.train`` on the embedded default (20 clients, half of which train a round) with a test every 100 rounds,
a checkpoint every 20 and the tensorboard tracker where it is installed. Every second the resident memory and the open files of each rank
are read from /proc, and ``metrics.jsonl`` is read as a user would: every line must be a whole round, in order.

Slopes are lines of least squares over the second half of the run; times are those that the run itself records.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, publish
from rich.table import Table

from pfedmma.system.console import show
from pfedmma.system.errors import UserError, run_main

SETTINGS = (
    "data.clients=20",
    "data.shots=4",
    "data.camera=0",
    "data.medium=0",
    "federation.participation=0.5",
    "federation.local_epochs=1",
    "evaluation.every=100",
    "checkpoint.every=20",
    "distributed.device=cpu",
)
EVERY = 1.0  # seconds between two looks


@dataclass
class Watch:
    """What was seen of a run: by rank, (finished rounds, resident bytes, open files)."""

    folder: Path
    rounds: int
    seen: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    looks: int = 0
    read: int = 0  # bytes of the metrics
    done: int = 0  # rounds in them

    def look(self, ranks: dict[int, int]) -> None:
        """One look at the processes {rank: pid} and at the metrics."""
        rows = self.read_metrics()
        self.looks += 1
        for rank, pid in ranks.items():
            try:
                resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                files = len(os.listdir(f"/proc/{pid}/fd"))
            except OSError:
                continue  # it has just ended
            if 0 < rows < self.rounds:  # neither the start nor the end
                self.seen.setdefault(rank, []).append((rows, resident, files))

    def read_metrics(self) -> int:
        """How many rounds the file has. Raises a `UserError` where a reader would have met half a line.

        Only what is new is read: to read all of it each time would slow the run down more and more.
        """
        file = self.folder / "metrics.jsonl"
        if not file.exists():
            return 0
        with open(file, "rb") as content:
            content.seek(self.read)
            new = content.read()
        self.read += len(new)
        try:
            rounds = [json.loads(line)["round"] for line in new.splitlines()]
        except ValueError:
            raise UserError(f"after {self.done} rounds a line of metrics.jsonl was read half-written") from None
        if rounds != list(range(self.done + 1, self.done + len(rounds) + 1)):
            raise UserError(f"the rounds in metrics.jsonl are not in order after round {self.done}")
        self.done += len(rounds)
        return self.done


def ranks_of(launcher: int) -> dict[int, int]:
    """{rank: pid} of the processes that a launcher has started."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == launcher:
                environment = dict(item.partition("=")[::2] for item in (entry / "environ").read_text().split("\0"))
                found[int(environment["RANK"])] = int(entry.name)
        except (OSError, KeyError, ValueError):
            continue
    return found


def run(folder: Path, rounds: int, ranks: int, more: Sequence[str]) -> Watch:
    """Start the run and look at it until it ends."""
    settings = [*SETTINGS, f"federation.rounds={rounds}", f"run_dir={folder}"]
    if importlib.util.find_spec("tensorboard"):
        settings.append("trackers=tensorboard")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m", "pfedmma.train"]
    env = {"OMP_NUM_THREADS": "1", **os.environ}
    watch = Watch(folder, rounds)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([*command, *settings, *more], env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                watch.look(ranks_of(process.pid))
                time.sleep(EVERY)
        finally:
            process.terminate()
            process.wait()
        if process.returncode != 0:
            output.seek(0)
            raise UserError(f"the run ended with status {process.returncode}: {output.read()[-500:]}")
    return watch


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(x, y, 1)[0]) if len(set(x)) > 1 else 0.0


def summary(watch: Watch) -> dict[str, Any]:
    """Slopes and extremes of what was seen."""
    metrics = [json.loads(line) for line in (watch.folder / "metrics.jsonl").read_text().splitlines()]
    plain = [row["seconds"]["total"] for row in metrics if row["accuracy"] is None]
    quarter = max(1, len(plain) // 4)
    rows = []
    for rank, seen in sorted(watch.seen.items()):
        half = seen[len(seen) // 2 :]
        rounds, resident, files = zip(*half, strict=True)
        rows.append(
            {
                "rank": rank,
                "resident_bytes": [seen[0][1], half[0][1], half[-1][1]],  # first look, half-way, at the end
                "resident_kb_a_round": slope(rounds, resident) / 1e3,
                "open_files": [min(s[2] for s in seen), max(s[2] for s in seen), files[-1]],
                "open_files_a_round": slope(rounds, files),
                "round_and_resident_bytes": [look[:2] for look in seen[:: 1 + len(seen) // 200]],
            }
        )
    return {
        "rounds": len(metrics),
        "looks": watch.looks,
        "ranks": rows,
        "round_s_first_quarter": statistics.median(plain[:quarter]),
        "round_s_last_quarter": statistics.median(plain[-quarter:]),
        "round_s_slope_us_a_round": 1e6 * slope(range(len(plain)), plain),
        "metrics_bytes": (watch.folder / "metrics.jsonl").stat().st_size,
    }


def table(found: dict[str, Any]) -> Table:
    out = Table(title=f"{found['rounds']} rounds on {len(found['ranks'])} ranks, looked at {found['looks']} times", min_width=90)
    for name in ("rank", "MB at first", "half-way", "at the end", "kB a round, second half", "open files, least", "most", "at the end"):
        out.add_column(name, justify="right")
    for row in found["ranks"]:
        sizes = [f"{size / 1e6:.1f}" for size in row["resident_bytes"]]
        out.add_row(str(row["rank"]), *sizes, f"{row['resident_kb_a_round']:.2f}", *map(str, row["open_files"]))
    times = f"{found['round_s_first_quarter']:.3f} s in the first quarter, {found['round_s_last_quarter']:.3f} s in the last"
    out.caption = f"a round takes {times} (medians, rounds without a test); metrics.jsonl could be read at every look"
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="further settings of the run")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    args = parser.parse_args()
    if not Path("/proc/self/statm").exists():
        raise UserError("benchmarks/long_run.py reads memory from /proc, which this system does not have; run it on Linux")
    with tempfile.TemporaryDirectory(prefix="pfedmma-") as scratch:
        found = summary(run(Path(scratch) / "run", args.rounds, args.ranks, args.settings))
    show(table(found))
    setting = {"settings": [*SETTINGS, *args.settings]}
    report = {"benchmark": "long_run", "date": datetime.date.today().isoformat(), **machine(torch.device("cpu")), **setting, **found}
    publish(report, args.json)


if __name__ == "__main__":
    run_main(main)
