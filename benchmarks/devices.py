"""Devices as a few numbers, and the time that operators and exchanges would take on one: a model, not a measurement.

An operator keeps a GPU busy for the longer of its operations at the achievable rate and its bytes at the achievable bandwidth, and for
the smallest kernel's time at least. The host hands over one launch after another and runs ahead of the GPU, so a step takes as long as
the slower of the two. A CPU is its own host. Nothing is found in a cache, and nothing runs beside anything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from operators import ATTENTION, Operator
from torch.nn import functional as F

from pfedmma.clip.backbone import PRECISIONS
from pfedmma.clip.towers import VisualTower

NODE = 8  # GPUs of a machine


@dataclass(frozen=True)
class Device:
    """``peak``: operations/s of dense products by precision; ``bandwidth``: bytes/s of memory; ``source``: where these two come from.

    ``efficiency`` of products, attention and memory: what of that a kernel reaches. ``host``: seconds of a launch on the host;
    ``smallest``: seconds of the smallest kernel. ``link`` and ``network``: bytes/s between two ranks of a machine and of two machines;
    ``hop``: seconds of a step of a ring, within a machine and between machines.
    """

    name: str
    source: str
    peak: dict[str, float]
    bandwidth: float
    efficiency: dict[str, float]
    host: float
    smallest: float = 0.0
    link: float = 0.0
    network: float = 0.0
    hop: tuple[float, float] = (0.0, 0.0)
    own_host: bool = False  # a CPU

    def busy(self, operator: Operator) -> float:
        """Seconds that the operator takes, without its launch on the host."""
        kind = "attention" if operator.group == ATTENTION else "products"
        rate = self.efficiency[kind] * self.peak.get(operator.precision, 0.0)
        moving = operator.bytes / (self.efficiency["memory"] * self.bandwidth)
        return max(operator.flops / rate if operator.flops else 0.0, moving, self.smallest * operator.launches)

    def issuing(self, operator: Operator) -> float:
        """Seconds on the host."""
        return self.host * operator.launches

    def seconds(self, operators: Sequence[Operator]) -> float:
        """From one step to the next, where these operators are a step and the host waits for none of them."""
        if self.own_host:
            return sum(self.busy(each) + self.issuing(each) for each in operators)
        once = self._end(operators)
        return self._end([*operators, *operators]) - once

    def _end(self, operators: Iterable[Operator]) -> float:
        issued = done = 0.0
        for each in operators:
            issued += self.issuing(each)
            done = max(done, issued) + self.busy(each)
        return done

    def exchange(self, payload: int, ranks: int) -> float:
        """Seconds of a ring all-reduce of ``payload`` bytes: 2(n-1) steps, each of a n-th of it over the slowest link."""
        within = ranks <= NODE
        rate, hop = (self.link if within else self.network), self.hop[not within]
        return 0.0 if ranks == 1 else 2 * (ranks - 1) * (hop + payload / ranks / rate)


# What a kernel reaches was measured on one H200 with torch 2.11 (results/gpu-nvidia-h200/gpu_profile.json): the products of a step of ten
# clients, and torch's FlashAttention-2 on 197 tokens, which it does in blocks of 64 by 128. Host: a step of one client by the clock over
# its launches, on the virtual machine of that GPU; another host takes another time. For other GPUs the same shares are assumed.
_GPU = {
    "efficiency": {"products": 0.66, "attention": 0.075, "memory": 0.9},
    "host": 36e-6,
    "smallest": 2.5e-6,
    "network": 50e9,  # one 400 Gb/s adapter a GPU, as in NVIDIA's DGX H100 data sheet
    "hop": (5e-6, 15e-6),
}
_HOPPER = {"fp32": 67e12, "tf32": 494.5e12, "bf16": 989.5e12, "fp16": 989.5e12}
GPUS = {
    device.name: device
    for device in (
        Device("h100", "NVIDIA H100 data sheet, SXM, without sparsity", _HOPPER, 3.35e12, link=450e9, **_GPU),
        Device("h200", "NVIDIA H200 data sheet, SXM, without sparsity", _HOPPER, 4.8e12, link=450e9, **_GPU),
        Device(
            "a100",
            "NVIDIA A100 data sheet, 80 GB SXM, without sparsity",
            {"fp32": 19.5e12, "tf32": 156e12, "bf16": 312e12, "fp16": 312e12},
            2.039e12,
            link=300e9,
            **_GPU,
        ),
    )
}


def measured_cpu(precision: str, images: int, tower: VisualTower) -> Device:
    """This machine's CPU, its numbers measured now, each the best of a few runs.

    Products: an MLP's on the tokens of so many ``images``; attention: that of a block of ``tower``; memory: tensors larger than caches;
    and the smallest operator.
    """
    dtype, tokens, width, heads = PRECISIONS[precision], len(tower.positions), tower.width, tower.blocks[0].heads
    a, b = torch.randn(images * tokens, width).to(dtype), torch.randn(width, 4 * width).to(dtype)
    products = 2 * a.numel() * 4 * width / best(lambda: a @ b)
    q = torch.randn(images, heads, tokens, width // heads).to(dtype)
    attention = 4 * q.numel() * tokens / best(lambda: F.scaled_dot_product_attention(q, q, q))
    x, out = torch.randn(2, 1 << 26).unbind()  # 256 MB each, more than caches hold
    memory = 2 * x.nbytes / best(lambda: torch.mul(x, 2.0, out=out))
    one = torch.zeros(1)
    times = 10_000
    smallest = best(lambda: [one.add_(1.0) for _ in range(times)]) / times
    efficiency = {"products": 1.0, "attention": attention / products, "memory": 1.0}
    return Device("cpu", "measured in this run", {precision: products}, memory, efficiency, smallest, own_host=True)


def now() -> float:
    """A clock [s]: of this process's CPU time where it has one thread, so that others on the machine do not count; else the wall's."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def timed(work: Callable[[], object], times: int) -> list[float]:
    """Seconds of each of ``times`` runs, after one without a clock."""
    work()
    found = []
    for _ in range(times):
        begin = now()
        work()
        found.append(now() - begin)
    return found


def best(work: Callable[[], object], times: int = 5) -> float:
    """The shortest of a few runs [s]."""
    return min(timed(work, times))
