"""What a GPU does during a local step, an evaluation and a whole round: kernels by group, launches, and how much of the time it is busy.

    python benchmarks/gpu_profile.py [--model ViT-B-16-quickgelu] [--precision bf16] [--clients 2,10] [KEY=VALUE ...]

Measured by torch's profiler (Kineto): begin and end of each kernel. The seconds of a step are those of a clock without the profiler,
which slows the host down; "busy" is the time in which some kernel runs, over these. Kernels are told apart by their names (`GROUPS`).
Settings are those of `local_training.py`.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import local_training
import torch
from machine import machine, publish
from programs import device_from
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from variants import Variant, in_turn

from pfedmma.system.console import show
from pfedmma.system.errors import UserError, run_main

# Parts of kernels' names, the first that fits: of cuBLAS, cuDNN, FlashAttention, torch and pfedmma.clip.kernels.
GROUPS = {
    "attention": ("flash", "fmha", "attention", "sdpa", "cudnn_generated"),
    "products": ("nvjet", "gemm", "gemv", "xmma", "cutlass", "wgrad", "splitk", "dot_kernel", "convolve"),
    "norms": ("norm",),
    "activations": ("gelu", "sigmoid", "tanh"),
    "compiled": ("triton_",),
    "copies": ("memcpy", "copy", "cat", "nchw", "nhwc", "index", "gather", "scatter"),
    "fills": ("memset", "fill"),
    "reductions": ("reduce", "softmax"),
}
OTHER = "element-wise"
MEASURED = "begin and end of each kernel by torch's profiler; seconds by the clock, without it, medians"


@dataclass(frozen=True)
class Kernel:
    name: str
    start: float  # microseconds, of the profiler's clock
    end: float


def group_of(name: str) -> str:
    """The group of a kernel."""
    low = name.lower()
    return next((group for group, parts in GROUPS.items() if any(part in low for part in parts)), OTHER)


def covered(kernels: Iterable[Kernel]) -> float:
    """Microseconds in which at least one of the kernels runs."""
    total, until = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda each: each.start):
        total += max(0.0, kernel.end - max(kernel.start, until))
        until = max(until, kernel.end)
    return total


def kernels_of(work: Callable[[], object], times: int) -> list[Kernel]:
    """All that the GPU does while ``work`` is done so many times."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(times):
            work()
        torch.cuda.synchronize()
    events = (event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    return [Kernel(event.name, event.time_range.start, event.time_range.end) for event in events]


def account(kernels: Sequence[Kernel], times: int, seconds: float) -> dict[str, Any]:
    """Of kernels seen in so many runs that take ``seconds`` each without the profiler; all numbers are of one run."""
    spent, launched = Counter[str](), Counter[str]()
    for kernel in kernels:
        spent[group_of(kernel.name)] += kernel.end - kernel.start
        launched[group_of(kernel.name)] += 1
    busy = covered(kernels) / times / 1e6
    groups = {name: {"seconds": us / times / 1e6, "launches": launched[name] / times} for name, us in spent.most_common()}
    longest = Counter[str]()
    for kernel in kernels:
        longest[kernel.name] += kernel.end - kernel.start
    top = [{"kernel": name[:160], "seconds": us / times / 1e6} for name, us in longest.most_common(12)]
    return {"seconds": seconds, "busy_s": busy, "busy": busy / seconds, "launches": len(kernels) / times, "groups": groups, "longest": top}


def table(found: dict[str, dict[str, Any]]) -> Table:
    """A column for each piece of work: milliseconds by group."""
    out = Table(title="milliseconds of a GPU", caption=f"measured: {MEASURED}", caption_justify="left")
    out.add_column("", no_wrap=True)
    for name in found:
        out.add_column(name.replace(", ", "\n"), justify="right", no_wrap=True)
    for group in (*GROUPS, OTHER):
        cells = [1e3 * each["groups"].get(group, {"seconds": 0.0})["seconds"] for each in found.values()]
        if any(cells):
            out.add_row(group, *(f"{cell:.2f}" for cell in cells))
    out.add_section()
    out.add_row("all kernels", *(f"{1e3 * each['busy_s']:.2f}" for each in found.values()))
    out.add_row("by the clock", *(f"{1e3 * each['seconds']:.2f}" for each in found.values()))
    out.add_row("busy", *(f"{100 * each['busy']:.0f} %" for each in found.values()))
    out.add_row("launches", *(f"{each['launches']:.0f}" for each in found.values()))
    return out


def works(bench: local_training.Bench, widths: Sequence[int]) -> dict[str, Callable[[], object]]:
    """What is looked at, by name: steps of each width, plain and as graphs, and the evaluation of the widest."""
    steps = {f"{width} clients{way}": bench.step_of(width, way) for width in widths for way in ("", local_training.GRAPH)}
    return {**steps, f"evaluation, {widths[-1]} clients": bench.evaluate}


def measure(bench: local_training.Bench, widths: Sequence[int], repeats: int) -> dict[str, dict[str, Any]]:
    """`account` of each of `works`."""
    found = {}
    for name, work in works(bench, widths).items():
        times = 1 if "evaluation" in name else 5
        clock = in_turn([Variant(name, work, 0, 0)], bench.device, repeats, times, warmup=2)[name]
        found[name] = account(kernels_of(work, times), times, statistics.median(clock))
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16-quickgelu", help="tiny, or an open_clip ViT; its weights are random")
    parser.add_argument("--precision", default="bf16", choices=tuple(local_training.TOLERANCE))
    parser.add_argument("--clients", default="2,10", help="clients in one pass")
    parser.add_argument("--images", type=int, default=512, help="images of each test set")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the backbone, the method or the optimizer")
    return parser.parse_intermixed_args()


def main() -> None:
    args = arguments()
    device = device_from("auto")
    if device.type != "cuda":
        raise UserError("gpu_profile looks at the kernels of a GPU, and torch sees none here")
    widths = [int(width) for width in args.clients.split(",")]
    config = local_training.config_of(args)
    bench = local_training.Bench(local_training.Setting(config, widths[-1], 32, 51, args.images, device))
    found = measure(bench, widths, args.repeats)
    show(table(found))
    about = {"benchmark": "gpu_profile", "date": datetime.date.today().isoformat(), **machine(device, "open_clip")}
    about |= {"model": args.model, "precision": args.precision, "settings": args.settings, "measured": MEASURED}
    publish({**about, "works": found}, args.json)


if __name__ == "__main__":
    run_main(main)
