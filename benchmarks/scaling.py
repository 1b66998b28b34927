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
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, publish
from rich.table import Table
from torch import Tensor

from pfedmma import rng
from pfedmma.comm.world import DistributedConfig, World, open_world
from pfedmma.config import schema as configuration
from pfedmma.data.partition.federated import Client
from pfedmma.engine.local import Trainer
from pfedmma.engine.rounds import Engine
from pfedmma.records.rows import RoundRow
from pfedmma.run.assembly import assemble
from pfedmma.stack.client_state import ClientStore
from pfedmma.stack.layout import Layout
from pfedmma.system.console import show
from pfedmma.system.errors import UserError, run_main

ROOT = Path(__file__).resolve().parents[1]
EXCHANGED, PRIVATE = 8_448, 666_112  # parameters of pFedMMA on ViT-B/16: 8 blocks of 32 x 32 + 32, and the projections around them
TARGET_MS = 5.0
IMAGES = 8  # of a client, one batch, where nothing else is said
MEASURED = "from the end of one round to the end of the next, on rank 0; medians"


class Registered(Sequence[Client]):
    """``count`` clients, each with ``images`` training images drawn with replacement; a client is made when it is asked for."""

    def __init__(self, count: int, images: int, labels: Tensor) -> None:
        self.labels = labels
        self.rows = torch.randint(len(labels), (count, images), generator=rng.generator(0, "registered", count, images))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Client:
        rows = self.rows[index]
        return Client(index, (), rows, self.labels[rows], rows[:0])


class Idle(Trainer):
    """A trainer whose local training returns at once."""

    def train(self, clients: Sequence[Client], params: Tensor, *rest: Any) -> Tensor:
        return torch.ones(len(clients), device=params.device)


class Watch:
    """Seconds of every round and of its exchange; memory of this process after every ``every`` rounds."""

    def __init__(self, every: int = 0) -> None:
        self.every = every
        self.rounds: list[float] = []
        self.exchanges: list[float] = []
        self.memory: list[int] = []
        self.last = time.perf_counter()

    def round_done(self, row: RoundRow) -> None:
        self.rounds.append(time.perf_counter() - self.last)
        self.exchanges.append(row.spent("exchange"))
        if self.every and row.round % self.every == 0:
            self.memory.append(resident())
        self.last = time.perf_counter()

    def checkpoint_due(self, round_: int) -> bool:
        return False

    def save(self, round_: int) -> None:
        raise NotImplementedError


def resident() -> int:
    """Bytes of this process in memory."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        raise UserError(
            "memory is read from /proc/self/statm, which this system does not have; measure overhead, linear or ranks"
        ) from None
    return pages * os.sysconf("SC_PAGE_SIZE")


def new_engine(world: World, device: str, registered: int, participants: int, images: int = IMAGES, width: str = "auto") -> Engine:
    """The engine of a run of pFedMMA on the tiny backbone, with ``registered`` clients in place of the source's own."""
    settings = [
        "data.clients=2",
        "data.protocol=iid",
        "data.camera=0",
        "federation.local_epochs=1",
        f"federation.batch_size={min(images, 16)}",
        f"federation.clients_per_pass={width}",
        "federation.stems_gb=0",
        "federation.host_gb=0.05",
        "evaluation.every=0",
        f"distributed.device={device}",
    ]
    engine = assemble(configuration.load(None, settings), world).engine
    take_part(engine, registered, participants, images)
    return engine


def take_part(engine: Engine, registered: int, participants: int, images: int = IMAGES) -> None:
    """From now on ``participants`` of ``registered`` clients train in a round."""
    engine.clients = Registered(registered, images, engine.trainer.pixels.source.splits["train"].labels)
    engine.federation = dataclasses.replace(engine.federation, participation=participants / registered)


def work(engine: Engine, first: int, rounds: int, every: int = 0) -> Watch:
    """Rounds ``first`` and on."""
    engine.federation = dataclasses.replace(engine.federation, rounds=first + rounds - 1)
    watch = Watch(every)
    engine.run(first, watch)
    return watch


def idle(engine: Engine) -> None:
    """Take the local training out of the engine's rounds."""
    trainer = engine.trainer
    engine.trainer = Idle(**{field.name: getattr(trainer, field.name) for field in dataclasses.fields(trainer)})


def measure_overhead(world: World, device: str, registered: int, participants: int, warmup: int, rounds: int) -> dict[str, Any]:
    engine = new_engine(world, device, registered, participants)
    idle(engine)
    layout = Layout({"shared": (EXCHANGED,), "own": (PRIVATE,)}, {"shared": "mean"})
    engine.trainer = dataclasses.replace(engine.trainer, layout=layout)
    engine.store = ClientStore(layout, torch.zeros(layout.size), engine.trainer.work.optimizer, world.device)
    work(engine, 1, warmup)
    watch = work(engine, warmup + 1, rounds)
    times = np.array(watch.rounds) * 1e3
    found = {"round_ms_p50": float(np.median(times)), "round_ms_p95": float(np.quantile(times, 0.95)), "round_ms_least": float(times.min())}
    return found | {"exchange_ms_p50": 1e3 * statistics.median(watch.exchanges), "clients_with_state": len(engine.store.private)}


def measure_linear(world: World, device: str, points: list[list[int]], width: int, turns: int) -> dict[str, Any]:
    most = max(participants for participants, _ in points)
    engine = new_engine(world, device, most, most, max(images for _, images in points), str(width))
    times: list[list[float]] = [[] for _ in points]
    for turn in range(turns + 1):
        for (participants, images), found in zip(points, times, strict=True):
            take_part(engine, most, participants, images)
            took = work(engine, 1 + turn, 1).rounds[0]
            if turn > 0:  # the first turn draws images and asks for memory
                found.append(took)
    return {"seconds": times}


def measure_registered(world: World, device: str, registered: int, participants: int, rounds: int) -> dict[str, Any]:
    engine = new_engine(world, device, registered, participants)
    warmup = 3
    work(engine, 1, warmup)
    watch = work(engine, warmup + 1, rounds)
    memory, kept = resident(), engine.store.private.bytes_by_place()
    idle(engine)
    without = work(engine, warmup + rounds + 1, 5 * rounds)
    return {
        "round_s": statistics.median(watch.rounds),
        "round_without_training_ms": 1e3 * statistics.median(without.rounds),
        "resident_bytes": memory,
        "state_bytes": kept,
    }


def measure_long(world: World, device: str, registered: int, participants: int, rounds: int, every: int) -> dict[str, Any]:
    engine = new_engine(world, device, registered, participants)
    watch = work(engine, 1, rounds, every)
    memory = torch.zeros(world.size, len(watch.memory), dtype=torch.float64)
    memory[world.rank] = torch.tensor(watch.memory, dtype=torch.float64)
    kept = engine.store.private.bytes_by_place()
    return {"round_s": watch.rounds, "resident_bytes": world.sum(memory, "memory").tolist(), "state_bytes_rank_0": kept}


def measure_ranks(world: World, device: str, registered: int, participants: int, rounds: int) -> dict[str, Any]:
    engine = new_engine(world, device, registered, participants)
    work(engine, 1, 2)
    watch = work(engine, 3, rounds)
    share = statistics.median(a / b for a, b in zip(watch.exchanges, watch.rounds, strict=True))
    return {
        "round_s": statistics.median(watch.rounds),
        "exchange_ms": 1e3 * statistics.median(watch.exchanges),
        "exchange_share": share,
    }


def worker(job: dict[str, Any]) -> None:
    """One measurement, in the processes made for it."""
    world = open_world(DistributedConfig(device=job["args"]["device"]))
    found = globals()[f"measure_{job['measure']}"](world, **job["args"])
    if world.is_main:
        print(json.dumps({"found": found, "machine": machine(world.device, "open_clip", "accelerate")}), flush=True)
    world.close()


@dataclasses.dataclass
class Bench:
    """Starts measurements; ``here``: what they ran on."""

    device: str
    threads: int
    here: dict[str, Any] = dataclasses.field(default_factory=dict)

    def run(self, measure: str, ranks: int, **args: Any) -> dict[str, Any]:
        """What ``measure_<measure>`` finds on ``ranks`` ranks."""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
        job = json.dumps({"measure": measure, "args": {"device": self.device, **args}})
        env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
        env |= {
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": str(self.threads),
        }
        command = [sys.executable, *launcher, str(Path(__file__).resolve()), "--worker", job]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
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
        held = sum(size for place, size in kept.items() if place == "cpu")
        numbers = [f"{(row['resident_bytes'] - held) / 1e6:.0f}", f"{sum(kept.values()) / 1e6:.1f}", f"{kept['disk'] / 1e6:.1f}"]
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
    kept = {place: round(size / 1e6) for place, size in found["state_bytes_rank_0"].items()}
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


def main() -> None:
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
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(json.loads(args.worker))
    for name, least in {"threads": 1, "rounds": 0, "clients": 0, "participants": 0}.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name}: {getattr(args, name)} is too small; {least} is the least")
    if unknown := [name for name in args.measures if name not in MEASURES]:
        raise UserError(f"there is no measure '{unknown[0]}'; there are {', '.join(MEASURES)}")
    args.ranks = counts_of(args.ranks) if args.ranks else default_ranks(args.device)
    bench = Bench(args.device, args.threads)
    found = {name: MEASURES[name](bench, args) for name in args.measures or [name for name in MEASURES if name != "long"]}
    report = {"benchmark": "scaling", "date": datetime.date.today().isoformat(), **bench.here, "measured": MEASURED, **found}
    publish(report, args.json)


if __name__ == "__main__":
    run_main(main)
