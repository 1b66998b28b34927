"""What the programs here share: checks of their options, and the environment of the processes that they start."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from pfedmma.system.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def require_at_least(args: argparse.Namespace, **least: float) -> None:
    """Raise a `UserError` that names an option below its ``least`` value."""
    for name, smallest in least.items():
        if getattr(args, name) < smallest:
            raise UserError(f"--{name.replace('_', '-')}: {getattr(args, name)} is too small; {smallest} is the least")


def device_from(name: str) -> torch.device:
    """The device that ``--device`` asks for: auto, cpu or cuda. Raises a `UserError` where there is no such device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: 'cuda' is asked for, but torch sees no GPU here; use 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def child_environment(**more: str) -> dict[str, str]:
    """This environment with ``more`` variables, in which pfedmma is found; without what a launcher around this process has set."""
    env = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    return env | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])} | more
