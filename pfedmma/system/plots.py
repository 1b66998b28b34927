"""Figures of the commands that draw one: matplotlib, where it is, and the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pfedmma.system.errors import UserError


def new_figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches. Raises a `UserError` where matplotlib is not there."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--plot needs matplotlib; install it with: pip install 'pfedmma[plots]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write it in the format that the name of the file asks for. Raises a `UserError` where that cannot be done."""
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--plot: cannot write {path}: {error}") from None
