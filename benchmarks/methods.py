"""Local step, evaluation and bytes of every method in one run, beside pFedMMA's and beside its own plain path.

    python benchmarks/methods.py [--model ViT-B-32] [--methods NAME,NAME] [--clients 4] [--precision fp32|bf16] [--parts step,evaluation]

Measured: one local step (both towers, loss, gradients, the method's published optimizer) of a stack of clients on images that lie on the
device, with prompts encoded once and augmented images, of which nothing is kept; and the first evaluation of as many clients on base and
novel classes. The plain path of a method (plain_rank.py) is its own code on towers without shortcuts, one client at a time, everything
computed anew; first its logits are compared with those of the system. Counted: the operations of matrix products and attention that
the stack executes, in one run before the clock; the same number a client stands for the plain path, whatever that executes. By
arithmetic: bytes of a client and round under full participation.

All variants take turns, repeat by repeat, so that a drift of the machine meets all of them; times are medians, ratios are medians of the
ratios within a repeat. "slower than its arithmetic": the time beside pFedMMA's, divided by the operations beside pFedMMA's.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from machine import machine, publish
from one_rank import OneRank, Setting
from operators import record
from plain_rank import PlainRank, plain
from programs import device_from, require_at_least
from rich.table import Table
from torch import Tensor
from variants import MEASURED, Variant, Work, in_turn, products, summary

from pfedmma import rng
from pfedmma.clip.backbone import PRECISIONS, Backbone
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.clip.stems import StemCache
from pfedmma.cost.exchange import Exchange, Rounds
from pfedmma.methods import registry
from pfedmma.methods.forward import Forward
from pfedmma.methods.registry import NAMES
from pfedmma.system import checks
from pfedmma.system.console import show
from pfedmma.system.errors import UserError, run_main
from pfedmma.system.memory import keep_freed_memory

FIRST = "pfedmma"  # what all are compared with
STEP, EVALUATION = PARTS = ("step", "evaluation")
COUNTED = "matrix products and attention that the stack executes, an image (benchmarks/operators.py)"
TOLERANCE = {"fp32": 1e-3, "bf16": 0.2}  # of logits, which are cosines times 14 with random weights
ROUNDS = Rounds(10, 10, 10, 50)  # of the bytes: ten clients, all of whom take part in each round
WIRE = "fp32"
SETTING = ("model", "precision", "clients", "batch", "classes", "images", "text_gb", "repeats")  # what the report says of the arguments


@dataclass(frozen=True)
class Measured:
    """A method: the system's ``rank`` of so many ``clients`` in a pass, and its ``plain`` path."""

    name: str
    rank: OneRank
    plain: PlainRank
    clients: int

    def variants(self, part: str) -> list[Variant]:
        """The plain path of one client, and the stack, of a part of `PARTS`."""
        works = self.works(part)
        flops = sum(each.flops for each in record(works[1])) // self.clients
        images = self.rank.batch if part == STEP else 2 * self.rank.setting.images
        widths = 1, self.clients
        names = plain_name(part, self.name), stack_name(part, self.name)
        return [Variant(name, work, n * images, n * flops) for name, work, n in zip(names, works, widths, strict=True)]

    def works(self, part: str) -> tuple[Work, Work]:
        """On the plain path, and on the system's."""
        if part == STEP:
            return self.plain.step(), self.rank.step(self.clients)
        return self.plain.evaluation_of_one(), self.rank.evaluation(self.clients, self.clients, StemCache(0.0))

    @property
    def exchanged(self) -> dict[str, int]:
        """Numbers that a client trains, and bytes that it sends and is sent in a round."""
        exchange = Exchange(self.rank.method, ROUNDS, WIRE)
        return {"trained_parameters": self.rank.layout.trained_count, "up_bytes": exchange.up, "down_bytes": exchange.down}

    @torch.no_grad()
    def refuse_difference(self, tolerance: float) -> None:
        """Raise a `UserError` if the plain path's logits of one client are not the system's."""
        rank = self.rank
        pixels = torch.randn(2, 3, *2 * (rank.backbone.preprocess.size,), generator=rng.generator(0, "images")).to(rank.device)
        params, given = rank.noise(1, rank.layout.size), rank.given(1)
        found: list[Tensor] = []
        for each in (rank, self.plain):
            forward = Forward.from_prompts(each.method, rank.template, rank.base)
            state = {**rank.layout.views(params)}
            state |= forward.fixed(state, given)
            found.append(forward.logits(state, forward.image_stem(pixels), forward.text_features(state)))
        apart = float((found[0] - found[1]).abs().max())
        if not apart <= tolerance:
            raise UserError(f"{self.name}: logits are {apart:.2g} from those of its plain path; times of unequal work mean nothing")


class Bench:
    """All methods on one frozen CLIP."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, args.device
        clip = create_model(BackboneConfig(args.model, "none"), seed=0).to(self.device)
        self.backbone = Backbone.freeze(clip, args.model, args.precision, text_gb=args.text_gb)
        self.plain = plain(self.backbone, clip)

    @cached_property
    def measured(self) -> list[Measured]:
        found = [self._of(name) for name in self.args.methods]
        for each in found:
            each.refuse_difference(TOLERANCE[self.args.precision])
        return found

    def _of(self, name: str) -> Measured:
        args = self.args
        setting = Setting(args.model, name, args.precision, args.batch, args.classes, args.images)
        ranks = OneRank(setting, self.device, self.backbone), PlainRank(setting, self.device, self.plain)
        return Measured(name, *ranks, args.clients)

    def peaks(self) -> list[Variant]:
        """Large products, those of an MLP for a stack's images among them."""
        tower, together = self.backbone.visual, self.args.batch * self.args.clients
        return products(self.device, PRECISIONS[self.args.precision], together * len(tower.positions), tower.width)


def plain_name(part: str, method: str) -> str:
    return f"{part} of {method}, plain path"


def stack_name(part: str, method: str) -> str:
    return f"{part} of {method}"


def measure(bench: Bench) -> dict[str, Any]:
    """Time everything in turn; a row for each method."""
    args, peaks = bench.args, bench.peaks()
    variants = {(each.name, part): each.variants(part) for each in bench.measured for part in args.parts}
    together = [variant for own in variants.values() for variant in own]
    times = in_turn(peaks + together, args.device, args.repeats, 1, warmup=int(args.device.type == "cuda"))
    rows = []
    for each in bench.measured:
        own: dict[str, Any] = {"method": each.name, **each.exchanged}
        for part in args.parts:
            own[part] = compared(part, each.name, variants[each.name, part], variants[FIRST, part][1], (peaks, times))
        rows.append(own)
    found = summary([], peaks, times, {})
    return {"peak_flop_per_s": found["peak_flop_per_s"], "products_flop_per_s": found["products_flop_per_s"], "methods": rows}


def compared(
    part: str, method: str, own: Sequence[Variant], first: Variant, timed: tuple[Sequence[Variant], dict[str, list[float]]]
) -> dict[str, Any]:
    """One method's part: seconds of both paths, and ratios of the stack to pFedMMA's and to the plain path."""
    peaks, times = timed
    anchors = {"plain": plain_name(part, method), "first": first.name}
    rows = {row["name"]: row for row in summary(list(dict.fromkeys([*own, first])), peaks, times, anchors)["variants"]}
    slow, stack, beside = (rows[name] for name in (plain_name(part, method), stack_name(part, method), first.name))
    operations = stack["necessary_flop"] / stack["images"] / (beside["necessary_flop"] / beside["images"])
    over = 1.0 / stack["speedup_over_first"]
    return {
        "clients": round(stack["images"] / slow["images"]),
        "images_of_a_client": slow["images"],
        "seconds": stack["seconds"],
        "plain_seconds": slow["seconds"],
        "flop": stack["necessary_flop"],
        "images_per_s": stack["images_per_s"],
        "flop_per_s": stack["flop_per_s"],
        "utilisation": stack["utilisation"],
        f"time_over_{FIRST}": over,
        f"flop_over_{FIRST}": operations,
        "slower_than_its_arithmetic": over / operations,
        "speedup_over_plain": stack["speedup_over_plain"],
    }


def table(found: dict[str, Any], part: str, title: str) -> Table:
    """For a person."""
    caption = f"peak of large products in the same run: {found['peak_flop_per_s'] / 1e9:,.0f} GFLOP/s\nmeasured: {MEASURED}\n"
    out = Table(title=title, caption=f"{caption}counted: {COUNTED}", caption_justify="left")
    out.add_column("", no_wrap=True)
    for name in (
        "bytes\nup",
        "bytes\ndown",
        "ms a\nclient",
        f"time over\n{FIRST}",
        f"operations\nover {FIRST}",
        "slower than\nits arithmetic",
    ):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("over its\nplain path", justify="right", no_wrap=True)
    for row in found["methods"]:
        own = row[part]
        cells = [f"{row['up_bytes']:,}", f"{row['down_bytes']:,}", f"{1e3 * own['images_of_a_client'] / own['images_per_s']:,.0f}"]
        keys = (f"time_over_{FIRST}", f"flop_over_{FIRST}", "slower_than_its_arithmetic", "speedup_over_plain")
        out.add_row(row["method"], *cells, *(f"{own[key]:.2f}" for key in keys))
    return out


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32", help="tiny, or an open_clip ViT; its weights are random")
    parser.add_argument("--methods", default=",".join(NAMES), help=f"those that are measured, beside {FIRST}")
    parser.add_argument("--parts", default=",".join(PARTS), help="what is measured: step, evaluation")
    parser.add_argument("--precision", default="fp32", choices=tuple(TOLERANCE))
    parser.add_argument("--clients", type=int, default=4, help="clients in one pass, and of an evaluation")
    parser.add_argument("--batch", type=int, default=32, help="images a client and step")
    parser.add_argument("--classes", type=int, default=51, help="base classes, and as many novel ones")
    parser.add_argument("--images", type=int, default=40, help="images of each test set")
    parser.add_argument("--text-gb", type=float, default=4.0, help="backbone.text_gb: what is more is computed again, and counted again")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    args = parser.parse_args()
    require_at_least(args, clients=1, batch=1, classes=2, images=1, repeats=1, text_gb=0.1)
    args.device = device_from(args.device)
    args.methods = list(dict.fromkeys([FIRST, *args.methods.split(",")]))
    args.parts = args.parts.split(",")
    for part in args.parts:
        checks.one_of("--parts", part, PARTS)
    for name in args.methods:
        registry.entry_of(name)
    return args


def main() -> None:
    args = arguments()
    if args.device.type == "cpu":
        keep_freed_memory()  # as the main job does; the plain path has the same
    found = measure(Bench(args))
    setting = {name: getattr(args, name) for name in SETTING}
    for part in args.parts:
        what = f"local step, {args.batch} images" if part == STEP else f"evaluation, {args.images} + {args.images} images"
        about = f"{args.model} {args.precision}, {args.clients} clients, {args.classes} classes, {torch.get_num_threads()} threads"
        show(table(found, part, f"{what} a client\n{about}"))
    today = datetime.date.today().isoformat()
    words = {"measured": MEASURED, "counted": COUNTED}
    publish({"benchmark": "methods", "date": today, **machine(args.device, "open_clip"), **setting, **words, **found}, args.json)


if __name__ == "__main__":
    run_main(main)
