"""How the cost of a round grows: with its work, with the clients that are registered, with rounds and with ranks.

    python benchmarks/scaling.py [overhead] [linear] [registered] [long] [ranks] [--ranks 1,2] [--rounds N] [--device cpu]

Without a name all but ``long`` are measured, which takes minutes.

- ``overhead``: a round whose local training returns at once: 10 participants of 100, 8,448 exchanged parameters, and 666,112 private ones a
  client that are fetched and kept in every round.
- ``linear``: seconds against participants x images, with a fixed number of clients a pass; the fixed part is where the fitted line begins.
- ``registered``: seconds and memory with ever more registered clients, of which equally many take part.
- ``long``: 100 of 100,000 clients a round; the memory of every rank over the rounds, with the clients' state on disk beyond 0.05 GB.
- ``ranks``: the same round on 1, 2, 4, ... ranks, and what the exchange takes of it.

Rounds are those of `Engine.run` on the tiny backbone; a round lasts from the end of the one before to its own. Registered clients hold
images of the ``shapes`` source, drawn with replacement. Every measurement has processes of its own, with ``--threads`` threads a rank.
Stems of training images, which would be kept up to ``federation.stems_gb``, are made anew. A table for each, JSON on the last line.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import publish
from programs import ROOT, child_environment, require_at_least
from rich.table import Table
from scaling_rounds import EXCHANGED, PRIVATE

from pfedmma.system.console import show
from pfedmma.system.errors import UserError, run_main

TARGET_MS = 5.0
MEASURED = "from the end of one round to the end of the next, on rank 0; medians"


@dataclasses.dataclass
class Bench:
    """Starts measurements; ``here``: what they ran on."""

    device: str
    threads: int
    here: dict[str, Any] = dataclasses.field(default_factory=dict)

    def run(self, measure: str, ranks: int, **args: Any) -> dict[str, Any]:
        """What ``measure_<measure>`` of scaling_rounds.py finds on ``ranks`` ranks."""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
        job = json.dumps({"measure": measure, "args": {"device": self.device, **args}})
        command = [sys.executable, *launcher, str(ROOT / "benchmarks" / "scaling_rounds.py"), job]
        done = subprocess.run(command, env=child_environment(OMP_NUM_THREADS=str(self.threads)), capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"found"')]
        if done.returncode != 0 or not lines:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            why = next((line for line in said if line.startswith("error: ")), said[-1] if said else f"exit status {done.returncode}")
            raise UserError(f"{measure} on {ranks} ranks: {why}")
        report = json.loads(lines[-1])
        self.here = report["machine"]
        return report["found"]


def overhead(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    rounds = args.rounds or 100
    setting = {"registered": 100, "participants": 10, "warmup": min(20, rounds), "rounds": rounds}
    rows = [{"ranks": ranks} | bench.run("overhead", ranks, **setting) for ranks in args.ranks]
    out = new_table("a round without local training: 10 participants of 100\n8,448 exchanged and 666,112 private parameters a client")
    add_columns(out, "ranks", "p50 ms", "p95 ms", "least ms", "of it exchange ms", f"at most {TARGET_MS:g} ms")
    for row in rows:
        numbers = (row["round_ms_p50"], row["round_ms_p95"], row["round_ms_least"], row["exchange_ms_p50"])
        out.add_row(str(row["ranks"]), *(f"{x:.2f}" for x in numbers), "yes" if row["round_ms_p50"] <= TARGET_MS else "no")
    show(out)
    return setting | {"exchanged": EXCHANGED, "private": PRIVATE, "target_ms": TARGET_MS, "rows": rows}


def linear(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    width, most = 4, args.participants or 32
    counts = [count for count in (4, 8, 16, 32, 64, 128) if count <= most] or [most]
    points = [[count, 16] for count in counts] + [[counts[min(1, len(counts) - 1)], images] for images in (32, 64) if len(counts) > 1]
    setting = {"points": points, "width": width, "turns": args.rounds or 5}
    seconds = [statistics.median(times) for times in bench.run("linear", 1, **setting)["seconds"]]
    samples = [count * images for count, images in points]
    fit = line(samples, seconds)
    share = fit["begin"] / max(seconds)
    out = new_table(f"a round against its work: {width} clients a pass, batches of 16")
    out.caption = (
        f"fitted line: {1e3 * fit['begin']:.1f} ms + {1e3 * fit['slope']:.3f} ms an image; fixed part {100 * share:.1f} % of the largest"
    )
    add_columns(out, "participants", "images each", "images", "s", "s on the line")
    for (count, images), x, y in zip(points, samples, seconds, strict=True):
        out.add_row(str(count), str(images), str(x), f"{y:.3f}", f"{fit['begin'] + fit['slope'] * x:.3f}")
    show(out)
    rows = [{"participants": p, "images": i, "round_s": s} for (p, i), s in zip(points, seconds, strict=True)]
    return setting | {"rows": rows, "fixed_s": fit["begin"], "s_an_image": fit["slope"], "fixed_share_of_largest": share}


def registered(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    most = args.clients or 100_000
    counts = [10**power for power in range(1, 7) if 10**power <= most]
    setting = {"participants": 10, "rounds": args.rounds or 20}
    rows = [{"registered": count} | bench.run("registered", 1, registered=count, **setting) for count in counts]
    out = new_table("a round against the registered clients: 10 participants with 8 images each")
    out.caption = "memory: of the process, besides the state of the clients that have trained"
    add_columns(out, "registered", "round s", "without local\ntraining ms", "memory MB", "state MB", "of it on disk MB")
    for row in rows:
        kept = row["state_bytes"]
        numbers = [f"{(row['resident_bytes'] - kept['cpu']) / 1e6:.0f}", f"{sum(kept.values()) / 1e6:.1f}", f"{kept['disk'] / 1e6:.1f}"]
        out.add_row(f"{row['registered']:,}", f"{row['round_s']:.3f}", f"{row['round_without_training_ms']:.2f}", *numbers)
    show(out)
    return setting | {"rows": rows}


def long(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    rounds, clients = args.rounds or 200, args.clients or 100_000
    setting = {
        "registered": clients,
        "participants": min(clients, args.participants or 100),
        "rounds": rounds,
        "every": max(1, rounds // 100),
    }
    ranks = max(args.ranks)
    found = bench.run("long", ranks, **setting)
    quarter, times = max(1, rounds // 4), found["round_s"]
    speed = {"first_quarter_round_s": statistics.median(times[:quarter]), "last_quarter_round_s": statistics.median(times[-quarter:])}
    after = [setting["every"] * (i + 1) for i in range(len(found["resident_bytes"][0]))]
    half = len(after) // 2
    slopes = [line(after[half:], memory[half:])["slope"] / 1e3 for memory in found["resident_bytes"]]
    out = new_table(f"{rounds} rounds, {setting['participants']} of {clients:,} clients each, {ranks} ranks")
    kept = {memory: round(size / 1e6) for memory, size in found["state_bytes_rank_0"].items()}
    out.caption = (
        f"memory grows by {', '.join(f'{s:.1f}' for s in slopes)} kB a round in the second half\n"
        f"a round takes {speed['first_quarter_round_s']:.3f} s in the first quarter, {speed['last_quarter_round_s']:.3f} s in the last\n"
        f"MB of client state on rank 0 at the end: {kept}"
    )
    add_columns(out, "after round", *(f"rank {rank} MB" for rank in range(ranks)))
    shown = list(zip(after, zip(*found["resident_bytes"], strict=True), strict=True))
    for number, row in shown[-1 :: -max(1, len(shown) // 20)][::-1]:
        out.add_row(str(number), *(f"{memory / 1e6:.1f}" for memory in row))
    show(out)
    return setting | {"ranks": ranks, "kb_a_round_second_half": slopes, **speed, **found}


def ranks(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    setting = {"registered": 1000, "participants": args.participants or 40, "rounds": args.rounds or 10}
    rows = [{"ranks": count} | bench.run("ranks", count, **setting) for count in args.ranks]
    out = new_table(f"the same round on more ranks: {setting['participants']} participants with 8 images each")
    add_columns(out, "ranks", "round s", "faster", "exchange ms", "exchange share")
    for row in rows:
        cells = [f"{row['round_s']:.3f}", f"{rows[0]['round_s'] / row['round_s']:.2f}", f"{row['exchange_ms']:.2f}"]
        out.add_row(str(row["ranks"]), *cells, f"{100 * row['exchange_share']:.2f} %")
    show(out)
    return setting | {"rows": rows}


MEASURES: dict[str, Callable[[Bench, argparse.Namespace], dict[str, Any]]] = {
    "overhead": overhead,
    "linear": linear,
    "registered": registered,
    "long": long,
    "ranks": ranks,
}


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The line of least squares through points; level where there is only one."""
    if len(x) < 2:
        return {"slope": 0.0, "begin": float(y[0])}
    slope, begin = np.polyfit(x, y, 1).tolist()
    return {"slope": slope, "begin": begin}


def new_table(title: str) -> Table:
    return Table(title=title, caption_justify="left", min_width=80)


def add_columns(out: Table, *names: str) -> None:
    for name in names:
        out.add_column(name, justify="right")


def default_ranks(device: str) -> list[int]:
    """1, 2, 4, 8: as many as there are GPUs, or cores."""
    gpu = device != "cpu" and torch.cuda.is_available()
    units = torch.cuda.device_count() if gpu else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [count for count in (1, 2, 4, 8) if count <= units]


def counts_of(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--ranks: '{text}' is no list of numbers from 1 on, such as 1,2")
    return sorted({int(part) for part in parts})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", help=f"of {', '.join(MEASURES)}; without one, all but long")
    parser.add_argument("--ranks", default="", help="for example 1,2; long takes the largest; default: up to the GPUs or cores, 8 at most")
    parser.add_argument("--rounds", type=int, default=0, help="rounds (linear: turns) of every measurement; 0: 100, 5, 20, 200, 10")
    parser.add_argument("--clients", type=int, default=0, help="registered ones at most in registered and long; 0: 100,000")
    parser.add_argument(
        "--participants", type=int, default=0, help="a round, the most in linear; 0: 32 in linear, 100 in long, 40 in ranks"
    )
    parser.add_argument("--threads", type=int, default=1, help="of every rank")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    args = parser.parse_args()
    require_at_least(args, threads=1, rounds=0, clients=0, participants=0)
    if unknown := [name for name in args.measures if name not in MEASURES]:
        raise UserError(f"there is no measure '{unknown[0]}'; there are {', '.join(MEASURES)}")
    args.ranks = counts_of(args.ranks) if args.ranks else default_ranks(args.device)
    return args


def main() -> None:
    args = arguments()
    bench = Bench(args.device, args.threads)
    found = {name: MEASURES[name](bench, args) for name in args.measures or [name for name in MEASURES if name != "long"]}
    report = {"benchmark": "scaling", "date": datetime.date.today().isoformat(), **bench.here, "measured": MEASURED, **found}
    publish(report, args.json)


if __name__ == "__main__":
    run_main(main)
