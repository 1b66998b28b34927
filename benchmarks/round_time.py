"""Where the time of a whole round goes: input, training, waiting for other ranks, exchange, evaluation and the rest.

    python benchmarks/round_time.py [--model ViT-B-32] [--precision fp32|bf16|fp16] [--clients 10] [--images-per-class 16] [--rounds 3]

The rounds are those of `Engine.run`, with the method's settings and an evaluation of all clients after every round. The images are JPEG
files in CoOp's layout of Caltech-101: pictures of noise, drawn for the measurement, half of their classes base and half novel; or the
real data set below ``--root``. The first round decodes every file, later ones find most of it kept, so it is told apart. Under torchrun
every rank takes part; ``--root`` is needed then. A table, and JSON on the last line.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from drawn_files import SIZE, write_files
from machine import machine, publish
from programs import require_at_least
from rich.table import Table

from pfedmma.clip.backbone import PRECISIONS
from pfedmma.comm.world import DistributedConfig, World, open_world
from pfedmma.config import schema as configuration
from pfedmma.records.rows import RoundRow
from pfedmma.run.assembly import Run, assemble
from pfedmma.system.console import show
from pfedmma.system.errors import UserError, run_main

PARTS = {
    "input": "training waited for images",
    "train": "local training besides",
    "wait": "for the slowest rank",
    "exchange": "mean of the shared tensors",
    "evaluate": "all clients, base and novel",
    "rest": "everything between rounds",
}
MEASURED = "seconds of rank 0 as the engine counts them; a round lasts from the end of the one before to its own; medians of later rounds"


class Watch:
    """The parts of every round."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, float]] = []
        self.last = time.perf_counter()

    def round_done(self, row: RoundRow) -> None:
        now = time.perf_counter()
        parts = {name: seconds or 0.0 for name, seconds in row.seconds.items()}
        parts["total"] = now - self.last
        parts["train"] -= parts["input"]
        parts["rest"] = parts["total"] - sum(parts[name] for name in PARTS if name != "rest")
        self.rounds.append({name: parts[name] for name in (*PARTS, "total")} | {"images": row.samples})
        self.last = now

    def checkpoint_due(self, round_: int) -> bool:
        return False

    def save(self, round_: int) -> None:
        raise NotImplementedError


def settings(args: argparse.Namespace, root: Path, run_dir: Path) -> list[str]:
    return [
        f"backbone.name={args.model}",
        "backbone.pretrained=none",
        f"backbone.precision={args.precision}",
        "data.name=caltech101",
        f"data.root={root}",
        f"data.clients={args.clients}",
        f"data.shots={args.images_per_class}",
        f"federation.rounds={args.rounds}",
        f"federation.clients_per_pass={args.clients_per_pass}",
        "evaluation.every=1",
        f"distributed.device={args.device}",
        f"run_dir={run_dir}",
    ]


def later(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Medians of the rounds after the first; of the only one."""
    return {name: statistics.median(parts[name] for parts in rounds[1:] or rounds) for name in rounds[0]}


def table(title: str, rounds: list[dict[str, float]], epochs: int) -> Table:
    first, usual = rounds[0], later(rounds)
    rates = [f"{epochs * parts['images'] / (parts['input'] + parts['train']):,.1f}" for parts in (first, usual)]
    out = Table(title=title, caption=f"training images/s: {rates[0]} and {rates[1]}\nmeasured: {MEASURED}", caption_justify="left")
    out.add_column("part", no_wrap=True)
    out.add_column("", no_wrap=True)
    for name in ("first round s", "later s", "share"):
        out.add_column(name, justify="right", no_wrap=True)
    for name in (*PARTS, "total"):
        out.add_row(name, PARTS.get(name, ""), f"{first[name]:.4f}", f"{usual[name]:.4f}", f"{100 * usual[name] / usual['total']:.1f} %")
    return out


def described(run: Run) -> dict[str, Any]:
    """What the rounds go over."""
    federated, engine = run.federated, run.engine
    return {
        "clients": len(federated.clients),
        "classes": {name: len(images.classes) for name, images in federated.sets().items()},
        "training_images": sum(len(client.train) for client in federated.clients),
        "test_images": {name: len(images.indices) for name, images in federated.sets().items()},
        "exchanged_parameters": engine.training.layout.exchanged_size,
        "private_parameters": engine.states.own.width,
        "epochs": run.config.federation.local_epochs,
        "batch": run.config.federation.batch_size,
        "clients_per_pass": engine.width.now,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32", help="tiny, or an open_clip ViT; its weights are random")
    parser.add_argument("--precision", default="fp32", choices=tuple(PRECISIONS))
    parser.add_argument("--clients", type=int, default=10, help="all of them take part in every round")
    parser.add_argument("--clients-per-pass", default="auto", help="as federation.clients_per_pass; 1: one client at a time")
    parser.add_argument("--classes", type=int, default=102, help="of the drawn files; the first half are base classes")
    parser.add_argument("--images-per-class", type=int, default=16, help="for training")
    parser.add_argument("--test-images-per-class", type=int, default=8, help="of the drawn files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--root", type=Path, help="the folder of the real Caltech-101, instead of drawn files")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    args = parser.parse_args()
    require_at_least(args, clients=1, classes=2, images_per_class=1, test_images_per_class=1, rounds=1)
    return args


def measure(args: argparse.Namespace, world: World) -> tuple[Run, Watch, dict[str, Any]]:
    """The rounds: of which run, their parts, and what the report says of files and preparation."""
    with tempfile.TemporaryDirectory(prefix="pfedmma-round-") as folder:
        root, files = args.root, "real"
        if not root:
            root = Path(folder)
            size = write_files(root, args.classes, args.images_per_class, args.test_images_per_class)
            files = f"drawn, {SIZE[0]} x {SIZE[1]}, {size} bytes each"
        begin = time.perf_counter()
        # All ranks name the same folder, which is never made.
        run = assemble(configuration.load(None, settings(args, root, Path(tempfile.gettempdir()) / "pfedmma-round-time")), world)
        assembled = time.perf_counter() - begin
        watch = Watch()
        run.engine.run(1, watch)
    return run, watch, {"files": files, "assemble_s": assembled}


def main() -> None:
    args = arguments()
    world = open_world(DistributedConfig(device=args.device))
    if world.size > 1 and not args.root:
        raise UserError("--root: several ranks need files that all of them see")
    run, watch, about = measure(args, world)
    if world.is_main:
        title = f"a round: {len(run.federated.clients)} clients, {args.model}, {args.precision}, "
        show(table(f"{title}{world.device.type}, {world.size} ranks", watch.rounds, run.config.federation.local_epochs))
        report = {
            "benchmark": "round_time",
            "date": datetime.date.today().isoformat(),
            **machine(world.device, "open_clip", "accelerate"),
            "world_size": world.size,
            "model": args.model,
            "precision": args.precision,
            "files": about["files"],
            **described(run),
            "measured": MEASURED,
            "assemble_s": about["assemble_s"],
            "rounds": watch.rounds,
            "later": later(watch.rounds),
        }
        publish(report, args.json)
    world.close()


if __name__ == "__main__":
    run_main(main)
