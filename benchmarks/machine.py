"""What a report of numbers begins with and how it ends: what they were measured on, and where they go. No names of machines."""

from __future__ import annotations

import importlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from pfedmma.system.files import write_atomically


def cpu_model() -> str:
    """The processor's name; Linux keeps it in /proc/cpuinfo only."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(device: torch.device, *packages: str) -> dict[str, object]:
    """Hardware and threads, and the versions of Python, torch, CUDA where it is in use, and ``packages``."""
    gpu = device.type == "cuda"
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: importlib.import_module(name).__version__ for name in packages}
    if gpu:
        versions |= {"cuda": str(torch.version.cuda), "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    return {
        "device": torch.cuda.get_device_name(device) if gpu else "cpu",
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "threads_per_rank": torch.get_num_threads(),
        "versions": versions,
    }


def publish(report: dict[str, Any], file: Path | None) -> None:
    """Print a report as the last line, and keep it in ``file``."""
    line = json.dumps(report)
    print(line, flush=True)
    if file:
        write_atomically(file, (line + "\n").encode())
