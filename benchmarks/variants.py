"""Variants of one piece of work, timed in turn, beside the machine's peak at large matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import arithmetic
import torch
from rich.table import Table
from torch import Tensor

SQUARES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # sides of the square products that the peak is looked for with
MEASURED = "variants in turn, repeat by repeat; medians of times, and of the ratios within a repeat; images already on the device"
COUNTED = "necessary matrix products by formula (benchmarks/arithmetic.py), the same for all variants of a table"

Work = Callable[[], object]


@dataclass(frozen=True)
class Variant:
    """One thing that is timed: ``work`` goes over ``images`` images, for which ``flops`` operations are necessary."""

    name: str
    work: Work
    images: int
    flops: int


def products(device: torch.device, dtype: torch.dtype, rows: int, width: int) -> list[Variant]:
    """Large products [m,k] @ [k,n] in ``dtype``: squares, and an MLP of ``rows`` tokens of ``width``."""
    sizes = [(side, side, side) for side in SQUARES[device.type]]
    sizes += [(rows, width, 4 * width), (rows, 4 * width, width)]
    variants = []
    for m, k, n in sizes:
        a, b = (torch.randn(size, device=device).to(dtype) for size in ((m, k), (n, k)))
        out = torch.empty(m, n, device=device, dtype=dtype)
        times = max(1, 2 * 10**10 // arithmetic.matmul(m, k, n)) if device.type == "cpu" else 20

        def product(a: Tensor = a, b: Tensor = b.T, out: Tensor = out, times: int = times) -> None:
            for _ in range(times):
                torch.mm(a, b, out=out)

        variants.append(Variant(f"{m} x {k} x {n}", product, 0, times * arithmetic.matmul(m, k, n)))
    return variants


def in_turn(variants: Sequence[Variant], device: torch.device, repeats: int, times: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of every variant in every repeat, of ``times`` runs in a row each; after ``warmup`` repeats without a clock."""
    found: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for repeat in range(-warmup, repeats):
        for variant in variants:
            took = _seconds(variant.work, device, times)
            if repeat >= 0:
                found[variant.name].append(took)
    return found


def _seconds(work: Work, device: torch.device, times: int) -> float:
    """Of ``times`` runs in a row, with nothing left to do on the device at either end; per run."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / times


def summary(
    variants: Sequence[Variant], peaks: Sequence[Variant], times: dict[str, list[float]], anchors: dict[str, str]
) -> dict[str, Any]:
    """Rates of ``variants``, and how much faster an image is done than by each of the ``anchors`` {what it is: its variant}."""
    rates = {v.name: [v.flops / t for t in times[v.name]] for v in peaks}
    best = [max(repeat) for repeat in zip(*rates.values(), strict=True)]
    cost = {v.name: [t / v.images for t in times[v.name]] for v in variants}
    rows = [
        _rates(v, times[v.name], best)
        | {f"speedup_over_{what}": _median_ratio(cost[anchor], cost[v.name]) for what, anchor in anchors.items()}
        for v in variants
    ]
    found = {name: statistics.median(each) for name, each in rates.items()}
    return {"peak_flop_per_s": statistics.median(best), "products_flop_per_s": found, "variants": rows}


def _rates(variant: Variant, times: Sequence[float], best: Sequence[float]) -> dict[str, Any]:
    """What a variant's ``times`` come to beside the ``best`` product of each repeat [FLOP/s]."""
    rates = [variant.flops / t for t in times]
    return {
        "name": variant.name,
        "images": variant.images,
        "necessary_flop": variant.flops,
        "seconds": times,
        "images_per_s": variant.images / statistics.median(times),
        "flop_per_s": statistics.median(rates),
        "utilisation": _median_ratio(rates, best),
    }


def _median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """The median of the ratios within a repeat."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def table(title: str, found: dict[str, Any], anchors: dict[str, str]) -> Table:
    """A `summary` for a person."""
    peak = found["peak_flop_per_s"] / 1e9
    caption = f"peak of large products in the same run: {peak:,.0f} GFLOP/s\nmeasured: {MEASURED}\nGFLOP/s: {COUNTED}"
    out = Table(title=title, caption=caption, caption_justify="left")
    out.add_column("", no_wrap=True)
    for name in ["s", "images/s", "GFLOP/s\nnecessary", "of the\npeak", *(f"over\n{name}" for name in anchors.values())]:
        out.add_column(name, justify="right", no_wrap=True)
    for row in found["variants"]:
        cells = [f"{statistics.median(row['seconds']):.3f}", f"{row['images_per_s']:,.1f}", f"{row['flop_per_s'] / 1e9:,.1f}"]
        cells += [f"{100 * row['utilisation']:.1f}%", *(f"{row[f'speedup_over_{what}']:.2f}" for what in anchors)]
        out.add_row(row["name"], *cells)
    return out
