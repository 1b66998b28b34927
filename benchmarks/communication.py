"""What one federated exchange costs on this machine: the all-reduce of `pfedmma.comm.world.World`, by default for four payload sizes.

    torchrun --standalone --nproc_per_node=8 benchmarks/communication.py [--wire fp32,bf16] [--payload 8448,1e6] [--csv FILE]

Measured: the time of `World.sum`, the call that a round makes (copy to the carrier, all-reduce, copy back). Ranks meet before each
repeat, outside the clock, and the slowest rank's time counts. algbw and busbw follow from the median time as nccl-tests define them.
A model: the bytes that each rank of a ring all-reduce would send, 2(n-1)/n x payload; nothing here looks at the wire.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from machine import machine
from programs import require_at_least
from rich.table import Table

from pfedmma.clip.loading import create_shapes
from pfedmma.comm.ledger import EXCHANGE, bandwidths, percentile, ring_bytes
from pfedmma.comm.world import WIRE_DTYPES, DistributedConfig, World, open_world
from pfedmma.methods.adapters.multimodal import AdapterSpec
from pfedmma.records.columns import RING
from pfedmma.system.arguments import counts, one_of, positive
from pfedmma.system.console import room, show, table_that_fits
from pfedmma.system.csv_text import as_csv
from pfedmma.system.errors import ArgumentParser, UserError, run_main
from pfedmma.system.files import write_atomically

VIT_B_16 = AdapterSpec(tuple((block, block) for block in range(5, 13)), visual_width=768, text_width=512)
LARGE = 10**8  # numbers
WIDE = 120  # characters of a line where there is no terminal
PROMPT = (16, 512)  # context tokens x width of the text tower
MEASURED = "time of World.sum, slowest rank of each repeat; ranks meet before each repeat, outside the clock"
MODEL = "ring_bytes_per_rank = 2(n-1)/n x payload, what a ring all-reduce would send; not measured"


@dataclass(frozen=True)
class Result:
    """One payload in the dtype ``wire``: bytes, the ring model, and measured times in microseconds (GB/s None with one rank)."""

    name: str
    wire: str
    parameters: int
    payload_bytes: int
    ring_bytes_per_rank: float
    repeats: int
    time_us_p50: float
    time_us_p95: float
    algbw_gb_per_s: float | None
    busbw_gb_per_s: float | None


class Payload(NamedTuple):
    """So many numbers in the dtype ``wire``."""

    name: str
    wire: str
    parameters: int


def named(whole_model: bool) -> dict[str, int]:
    """Parameters of what methods exchange, and of what they do not, counted on ViT-B/16."""
    sizes = {name: torch.Size(shape).numel() for name, shape in VIT_B_16.shapes().items()}
    found = {
        "S (pFedMMA)": sum(size for name, size in sizes.items() if name.startswith("shared.")),
        "one prompt": PROMPT[0] * PROMPT[1],
        "all adapters": sum(sizes.values()),
    }
    if whole_model:
        found["whole ViT-B/16"] = sum(p.numel() for p in create_shapes("ViT-B-16").parameters())
    return found


def payloads(args: argparse.Namespace) -> list[Payload]:
    """What is asked for: each payload in each dtype."""
    wanted = {f"{count:,} numbers": count for count in args.payload} if args.payload else named(whole_model=not args.skip_model)
    return [Payload(name, wire, count) for wire in args.wire for name, count in wanted.items()]


def measure(world: World, payload: Payload, repeats: int, warmup: int) -> Result:
    """Time ``repeats`` all-reduces of a payload. Every rank must enter."""
    flat = torch.ones(payload.parameters, dtype=WIRE_DTYPES[payload.wire], device=world.device)
    for repeat in range(warmup + repeats):
        world.wait("align")
        total = world.sum(flat, EXCHANGE)
        if repeat == 0 and not bool((total == world.size).all()):
            raise UserError(f"rank {world.rank}: the all-reduce of {payload.name} gave a wrong sum; check the {world.backend} installation")
    times = torch.zeros(world.size, repeats, dtype=torch.float64)
    times[world.rank] = torch.tensor(world.ledger.exchange_us[-repeats:], dtype=torch.float64)
    slowest = world.sum(times, "times").max(dim=0).values.tolist()
    size, middle = flat.numel() * flat.element_size(), percentile(slowest, 0.5)
    rates = bandwidths(size, middle / 1e6, world.size) if world.size > 1 else (None, None)
    return Result(*payload, size, ring_bytes(size, world.size), repeats, middle, percentile(slowest, 0.95), *rates)


def ranks(world: World) -> dict[str, object]:
    """How the ranks of this run talk to each other."""
    return {
        "world_size": world.size,
        "ranks_per_node": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "backend": world.backend if world.size > 1 else "none",
    }


def table(results: list[Result], world: World, width: int) -> Table:
    title = f"all-reduce, {world.size} ranks, {world.backend}, {world.device.type}"
    if world.size == 1:
        title = "1 rank: nothing is communicated"
    caption = f"measured: {MEASURED}; bandwidths from p50\nmodel: {MODEL}"
    columns = "payload\nbytes", "ring bytes\nmodel", "p50 us\nmeasured", "p95 us\nmeasured", "algbw GB/s\nmeasured", "busbw GB/s\nmeasured"
    rows = []
    for r in results:
        rates = ["-" if rate is None else f"{rate:.3f}" for rate in (r.algbw_gb_per_s, r.busbw_gb_per_s)]
        times = [f"{time:,.1f}" for time in (r.time_us_p50, r.time_us_p95)]
        rows.append([r.name, r.wire, f"{r.payload_bytes:,}", f"{r.ring_bytes_per_rank:,.0f}", *times, *rates])
    return table_that_fits(title, ["exchanged", "wire", *columns], rows, width, caption)


def as_lines(results: list[Result], world: World) -> list[list[object]]:
    """Of the CSV file: one for each payload and dtype, under a head."""
    head = ["exchanged", "wire", "ranks", "backend", "device", "parameters", "payload_bytes", RING, "repeats"]
    times = ["exchange_seconds_p50", "exchange_seconds_p95"]
    lines: list[list[object]] = [[*head, *times, "algbw_gigabytes_per_second", "busbw_gigabytes_per_second"]]
    for r in results:
        own = [r.parameters, r.payload_bytes, r.ring_bytes_per_rank, r.repeats]
        measured = [r.time_us_p50 / 1e6, r.time_us_p95 / 1e6, r.algbw_gb_per_s, r.busbw_gb_per_s]
        lines.append([r.name, r.wire, world.size, ranks(world)["backend"], world.device.type, *own, *measured])
    return lines


def arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive, default=50, help="timed all-reduces a payload; a tenth for more than 10^8 numbers")
    parser.add_argument("--warmup", type=int, default=5, help="all-reduces before the clock counts")
    parser.add_argument("--wire", type=one_of(WIRE_DTYPES), default=["fp32"], help=f"dtypes, of {', '.join(WIRE_DTYPES)}; default fp32")
    parser.add_argument("--payload", type=counts, help="numbers to exchange, such as 8448,1e6, in place of what methods exchange")
    parser.add_argument("--skip-model", action="store_true", help="leave out the whole ViT-B/16 (600 MB a rank, three times)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--backend", default="auto", choices=("auto", "nccl", "gloo"))
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a line for each payload and dtype")
    args = parser.parse_args()
    require_at_least(args, warmup=0)
    return args


def main() -> None:
    args = arguments()
    wanted = payloads(args)
    world = open_world(DistributedConfig(backend=args.backend, device=args.device))
    results = []
    for payload in wanted:
        large = payload.parameters > LARGE
        repeats, warmup = (max(1, args.repeats // 10), min(1, args.warmup)) if large else (args.repeats, args.warmup)
        results.append(measure(world, payload, repeats, warmup))
    if world.is_main:
        show(table(results, world, room(WIDE)), WIDE)
        if args.csv:
            write_atomically(args.csv, as_csv(as_lines(results, world)).encode())
        rows = [dataclasses.asdict(r) for r in results]
        here = ranks(world) | machine(world.device, "accelerate")
        report = {"benchmark": "communication", **here, "measured": MEASURED, "model": MODEL, "payloads": rows}
        print(json.dumps(report), flush=True)
    world.close()


if __name__ == "__main__":
    run_main(main)
