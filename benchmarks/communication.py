"""What one federated exchange costs on this machine: the all-reduce of `pfedmma.comm.world.World`, for four payload sizes.

    torchrun --standalone --nproc_per_node=8 benchmarks/communication.py [--repeats 50] [--backend auto] [--device auto]

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

import torch
from machine import machine
from rich.table import Table

from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.comm.ledger import EXCHANGE, bandwidths, percentile, ring_bytes
from pfedmma.comm.world import DistributedConfig, World, open_world
from pfedmma.methods.adapters.multimodal import AdapterSpec
from pfedmma.system.console import show
from pfedmma.system.errors import UserError, run_main

VIT_B_16 = AdapterSpec(tuple((block, block) for block in range(5, 13)), visual_width=768, text_width=512)
PROMPT = (16, 512)  # context tokens x width of the text tower
MEASURED = "time of World.sum, slowest rank of each repeat; ranks meet before each repeat, outside the clock"
MODEL = "ring_bytes_per_rank = 2(n-1)/n x payload, what a ring all-reduce would send; not measured"


@dataclass(frozen=True)
class Result:
    """One payload: fp32 bytes, the ring model, and measured times in microseconds (bandwidths in GB/s, None with one rank)."""

    name: str
    parameters: int
    payload_bytes: int
    ring_bytes_per_rank: float
    repeats: int
    time_us_p50: float
    time_us_p95: float
    algbw_gb_per_s: float | None
    busbw_gb_per_s: float | None


def payloads(whole_model: bool) -> dict[str, int]:
    """Parameters of each payload, counted on ViT-B/16."""
    sizes = {name: torch.Size(shape).numel() for name, shape in VIT_B_16.shapes().items()}
    counts = {
        "S (pFedMMA)": sum(size for name, size in sizes.items() if name.startswith("shared.")),
        "one prompt": PROMPT[0] * PROMPT[1],
        "all adapters": sum(sizes.values()),
    }
    if whole_model:
        model = create_model(BackboneConfig("ViT-B-16", "none"), seed=0)
        counts["whole ViT-B/16"] = sum(p.numel() for p in model.parameters())
    return counts


def measure(world: World, name: str, parameters: int, repeats: int, warmup: int) -> Result:
    """Time ``repeats`` all-reduces of ``parameters`` fp32 numbers. Every rank must enter."""
    flat = torch.ones(parameters, device=world.device)
    for repeat in range(warmup + repeats):
        world.wait("align")
        total = world.sum(flat, EXCHANGE)
        if repeat == 0 and not bool((total == world.size).all()):
            raise UserError(f"rank {world.rank}: the all-reduce of {name} gave a wrong sum; check the {world.backend} installation")
    times = torch.zeros(world.size, repeats, dtype=torch.float64)
    times[world.rank] = torch.tensor(world.ledger.exchange_us[-repeats:], dtype=torch.float64)
    slowest = world.sum(times, "times").max(dim=0).values.tolist()
    payload, middle = flat.numel() * flat.element_size(), percentile(slowest, 0.5)
    algorithm, bus = bandwidths(payload, middle / 1e6, world.size) if world.size > 1 else (None, None)
    ring = ring_bytes(payload, world.size)
    return Result(name, parameters, payload, ring, repeats, middle, percentile(slowest, 0.95), algorithm, bus)


def ranks(world: World) -> dict[str, object]:
    """How the ranks of this run talk to each other."""
    return {
        "world_size": world.size,
        "ranks_per_node": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "backend": world.backend if world.size > 1 else "none",
    }


def table(results: list[Result], world: World) -> Table:
    title = f"all-reduce of fp32, {world.size} ranks, {world.backend}, {world.device.type}"
    if world.size == 1:
        title = "1 rank: nothing is communicated"
    out = Table(title=title, caption=f"measured: {MEASURED}; bandwidths from p50\nmodel: {MODEL}", caption_justify="left")
    out.add_column("exchanged", no_wrap=True)
    columns = "payload\nbytes", "ring bytes\nmodel", "p50 us\nmeasured", "p95 us\nmeasured", "algbw GB/s\nmeasured", "busbw GB/s\nmeasured"
    for name in columns:
        out.add_column(name, justify="right", no_wrap=True)
    for r in results:
        rates = ["-" if rate is None else f"{rate:.3f}" for rate in (r.algbw_gb_per_s, r.busbw_gb_per_s)]
        times = [f"{time:,.1f}" for time in (r.time_us_p50, r.time_us_p95)]
        out.add_row(r.name, f"{r.payload_bytes:,}", f"{r.ring_bytes_per_rank:,.0f}", *times, *rates)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="timed all-reduces a payload; a tenth for the whole model")
    parser.add_argument("--warmup", type=int, default=5, help="all-reduces before the clock counts")
    parser.add_argument("--skip-model", action="store_true", help="leave out the whole ViT-B/16 (600 MB a rank, three times)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--backend", default="auto", choices=("auto", "nccl", "gloo"))
    args = parser.parse_args()
    if args.repeats < 1 or args.warmup < 0:
        parser.error("--repeats must be at least 1, --warmup at least 0")
    counts = payloads(whole_model=not args.skip_model)
    world = open_world(DistributedConfig(backend=args.backend, device=args.device))
    results = []
    for name, parameters in counts.items():
        large = parameters > 10**8
        repeats, warmup = (max(1, args.repeats // 10), min(1, args.warmup)) if large else (args.repeats, args.warmup)
        results.append(measure(world, name, parameters, repeats, warmup))
    if world.is_main:
        show(table(results, world))
        rows = [dataclasses.asdict(r) for r in results]
        here = ranks(world) | machine(world.device, "accelerate")
        report = {"benchmark": "communication", **here, "dtype": "fp32", "measured": MEASURED, "model": MODEL, "payloads": rows}
        print(json.dumps(report), flush=True)
    world.close()


if __name__ == "__main__":
    run_main(main)
