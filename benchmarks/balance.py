"""How evenly the participants of a round are dealt to ranks: by local steps, the longest first, beside dealing client i to rank i % ranks.

    python benchmarks/balance.py [--rounds 100]                        # counted
    torchrun --standalone --nproc_per_node=2 benchmarks/balance.py     # and measured

Counted: the partitions of the files in ``configs/``, of labels alone, and the cohorts of ``--rounds`` rounds. A round takes as long as its
longest rank, and a client as long as its local steps; nodes have up to 8 ranks. The speed-up is all steps over those of the longest ranks.
Measured: the same rounds of the tiny backbone, 10 of 100 clients that hold Dirichlet shares of drawn images, dealt in both ways and all to
rank 0; each round once to draw its images, and once to be timed. Besides the time until the last rank is done, that of the processor in the
rank that used most of it, which other programs on the machine disturb less. A table each, and JSON on the last line.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import machine, publish
from programs import ROOT, require_at_least
from rich.table import Table
from torch import Tensor

from pfedmma.comm.assignment import Assignment
from pfedmma.comm.node import Nodes
from pfedmma.comm.world import DistributedConfig, World, open_world
from pfedmma.config import schema as configuration
from pfedmma.config.schema import Config
from pfedmma.data.loading import divide
from pfedmma.data.sources.base import Source, Split
from pfedmma.engine import participation
from pfedmma.engine.batches import steps
from pfedmma.engine.rounds import Engine
from pfedmma.records.rows import RoundRow
from pfedmma.run.assembly import assemble, work_of
from pfedmma.system.console import show
from pfedmma.system.errors import run_main

RANKS = (2, 4, 8, 64)
OF_A_NODE = 8
DOMAINNET = {"clipart": 33_525, "infograph": 36_023, "painting": 50_416, "quickdraw": 120_750, "real": 120_906, "sketch": 48_212}
# Of a file in configs/: the classes, and the training images of each class or of each domain.
SHAPES: dict[str, tuple[int, int | dict[str, int]]] = {
    "caltech101": (100, 16),
    "dtd": (47, 16),
    "sun397": (397, 16),
    "cifar10_dirichlet": (10, 5_000),
    "cifar100_dirichlet": (100, 500),
    "domainnet": (345, DOMAINNET),
}
COUNTED = "counted in local steps, not measured; steps: of a client in a round; most: a rank for each participant"
Deal = Callable[[Assignment, Sequence[int]], list[int]]  # a rank's part of the cohort


def in_turn(assignment: Assignment, cohort: Sequence[int]) -> list[int]:
    return [i for i in cohort if i % assignment.world.size == assignment.world.rank]


def all_to_one(assignment: Assignment, cohort: Sequence[int]) -> list[int]:
    return list(cohort) if assignment.world.is_main else []


DEALS: dict[str, Deal] = {"one rank": all_to_one, "in turn": in_turn, "longest first": Assignment.training}


# Counted ---------------------------------------------------------------------------------------------------------------------------------


def source_of(name: str, classes: int, images: int | dict[str, int]) -> Source:
    """Labels, and no images: as many of each class, and of a domain's classes, as equal ones have."""

    def read(index: int) -> Tensor:
        raise NotImplementedError

    if isinstance(images, int):
        labels, domains = torch.arange(classes).repeat_interleave(images), None
    else:
        labels = torch.cat([torch.arange(count) % classes for count in images.values()])
        domains = torch.arange(len(images)).repeat_interleave(torch.tensor(list(images.values())))
    split, names = Split(labels, read, domains), tuple(map(str, range(classes)))
    return Source(name, names, {"train": split, "test": split}, domains=() if domains is None else tuple(DOMAINNET))


def work_by_client(config: Config, source: Source) -> dict[int, int]:
    """Local steps of each client in a round."""
    work = work_of(config)
    return {client.id: steps(client, work) for client in divide(source, config.data, config.seed, "test").clients}


def everywhere(work: dict[int, int], ranks: int) -> list[Assignment]:
    """What each of so many ranks works out."""
    nodes = tuple(tuple(range(first, min(first + OF_A_NODE, ranks))) for first in range(0, ranks, OF_A_NODE))
    first = Assignment.from_work(Nodes(World(0, ranks, torch.device("cpu")), nodes), work)
    worlds = [World(rank, ranks, torch.device("cpu")) for rank in range(ranks)]
    return [dataclasses.replace(first, nodes=Nodes(world, nodes)) for world in worlds]


def longest(work: dict[int, int], cohort: Sequence[int], ranks: Sequence[Assignment], deal: Deal) -> int:
    """Local steps of the rank that has the most."""
    return max(sum(work[i] for i in deal(rank, cohort)) for rank in ranks)


def counted(name: str, rounds: int) -> dict[str, Any]:
    """Mean speed-up of a setting by number of ranks and way to deal."""
    # Where an image lies does not matter here, so any folder serves as the data's.
    config = configuration.load([ROOT / "configs" / f"{name}.yaml"], [f"data.root={ROOT}"])
    work = work_by_client(config, source_of(config.data.name, *SHAPES[name]))
    share = config.federation.participation
    cohorts = [
        participation.sample(sorted(work), config.federation, config.seed, round_) for round_ in range(1, 1 + (rounds if share < 1 else 1))
    ]
    total = sum(work[i] for cohort in cohorts for i in cohort)
    found: dict[str, dict[str, float]] = {}
    for size in RANKS:
        ranks = everywhere(work, size)
        found[str(size)] = {
            way: total / sum(longest(work, cohort, ranks, DEALS[way]) for cohort in cohorts) for way in ("in turn", "longest first")
        }
    return {
        "setting": name,
        "clients": len(work),
        "participants": len(cohorts[0]),
        "rounds": len(cohorts),
        "steps": [min(work.values()), max(work.values())],
        "most": total / sum(max(work[i] for i in cohort) for cohort in cohorts),
        "speedup": found,
    }


def counted_table(settings: Sequence[dict[str, Any]]) -> Table:
    out = Table(title="mean speed-up of local training, in turn / longest first", caption=COUNTED, caption_justify="left")
    for name in ("setting", "clients", "steps", *(f"{size} ranks" for size in RANKS), "most"):
        out.add_column(name, justify="left" if name == "setting" else "right", no_wrap=True)
    for one in settings:
        ways = (f"{both['in turn']:.1f} / {both['longest first']:.1f}" for both in one["speedup"].values())
        clients, least, most = f"{one['participants']} of {one['clients']}", *one["steps"]
        out.add_row(one["setting"], clients, f"{least}-{most}", *ways, f"{one['most']:.1f}")
    return out


# Measured --------------------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Dealt(Assignment):
    """An assignment that deals a cohort in another way."""

    deal: Deal = in_turn

    def training(self, cohort: Sequence[int]) -> list[int]:
        return self.deal(self, cohort)


class Seconds:
    """Seconds from the start of a round to the end of its longest rank's training."""

    last = 0.0

    def round_done(self, row: RoundRow) -> None:
        self.last = row.seconds["train"] + row.seconds["wait"]

    def checkpoint_due(self, round_: int) -> bool:
        return False

    def save(self, round_: int) -> None:
        raise NotImplementedError


def small_run(world: World) -> Engine:
    settings = [
        "data.protocol=dirichlet",
        "data.clients=100",
        "data.shots=0",
        "federation.participation=0.1",
        "federation.local_epochs=1",
        "federation.batch_size=8",
        "evaluation.every=0",
        "distributed.device=cpu",
        f"run_dir={Path(tempfile.gettempdir()) / 'pfedmma-balance'}",  # which is never made
    ]
    return assemble(configuration.load(None, settings), world).engine


def measured(world: World, rounds: int) -> dict[str, Any]:
    """Of the same rounds under each way to deal: seconds by the clock and of the busiest processor, steps of the longest rank."""
    engine, watch = small_run(world), Seconds()
    own, work = engine.assignment, dict(engine.assignment.work)
    ranks = everywhere(work, world.size)
    clock, busy, counts = dict.fromkeys(DEALS, 0.0), dict.fromkeys(DEALS, 0.0), dict.fromkeys(DEALS, 0)
    for round_ in range(1, 1 + rounds):
        cohort = participation.sample(engine.participants, engine.federation, engine.seed, round_)
        engine.federation = dataclasses.replace(engine.federation, rounds=round_)
        for way, deal in DEALS.items():
            engine.assignment = Dealt(own.nodes, own.work, own.home, deal)
            for _ in range(2):  # the first time it draws the images that this rank has not seen
                begin = time.process_time()
                engine.run(round_, watch)
                used = time.process_time() - begin
            clock[way] += watch.last
            busy[way] += largest(world, used)
            counts[way] += longest(work, cohort, ranks, deal)
    return {"rounds": rounds, "seconds": clock, "processor_seconds_of_the_busiest_rank": busy, "steps_of_the_longest_rank": counts}


def largest(world: World, value: float) -> float:
    """Of all ranks. All enter."""
    values = torch.zeros(world.size, dtype=torch.float64)
    values[world.rank] = value
    return float(world.sum(values, "largest").max())


def measured_table(found: dict[str, Any], ranks: int) -> Table:
    kinds = [found[name] for name in ("seconds", "processor_seconds_of_the_busiest_rank", "steps_of_the_longest_rank")]
    out = Table(title=f"local training of {found['rounds']} rounds, 10 of 100 clients, tiny, {ranks} ranks", caption_justify="left")
    for name in ("dealt", "seconds", "speed-up", "processor s", "speed-up", "steps", "speed-up"):
        out.add_column(name, justify="left" if name == "dealt" else "right")
    for way in DEALS:
        out.add_row(way, *(cell for kind in kinds for cell in (f"{kind[way]:.4g}", f"{kind['one rank'] / kind[way]:.2f}")))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="whose cohorts are counted, where not all clients take part")
    parser.add_argument("--measured-rounds", type=int, default=8)
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda"), help="on which rounds are measured")
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    args = parser.parse_args()
    require_at_least(args, rounds=1, measured_rounds=1)
    world = open_world(DistributedConfig(device=args.device))
    found = measured(world, args.measured_rounds) if world.size > 1 else None
    if world.is_main:
        settings = [counted(name, args.rounds) for name in SHAPES]
        show(counted_table(settings))
        if found:
            show(measured_table(found, world.size))
        report = {
            "benchmark": "balance",
            "date": datetime.date.today().isoformat(),
            **machine(world.device, "accelerate"),
            "world_size": world.size,
            "counted": settings,
            "measured": found,
        }
        publish(report, args.json)
    world.close()


if __name__ == "__main__":
    run_main(main)
