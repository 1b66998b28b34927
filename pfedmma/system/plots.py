"""Figures that matplotlib draws, where it is: their size in print, how a series looks in them, and their files."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfedmma.system.console import printable
from pfedmma.system.errors import UserError
from pfedmma.system.series import look

# Inches: a figure stands in a paper as large as it is drawn, so that its letters have the size that is asked for here.
COLUMN, PAGE = 3.3, 6.9
DOTS = 300  # an inch
MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "triangle down": "v"}
PAPER = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 8, "legend.fontsize": 8,
    "figure.titlesize": 8, "axes.linewidth": 0.6, "grid.linewidth": 0.5, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "lines.linewidth": 1.1, "lines.markersize": 3.2, "axes.spines.top": False, "axes.spines.right": False,
    "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "pfedmma",
}  # fmt: skip


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
        figure.savefig(path, dpi=DOTS)
    except (OSError, ValueError) as error:
        raise UserError(f"--plot: cannot write {path}: {error}") from None


def paper() -> contextlib.AbstractContextManager[None]:
    """While it lasts, what is drawn and saved has letters of 8 points and thin lines, as a column of a paper asks for."""
    from matplotlib import rc_context

    return rc_context(PAPER)  # type: ignore[arg-type]


def style(label: str, position: int) -> dict[str, Any]:
    """What matplotlib needs to draw the series at this position, see `pfedmma.system.series.positions`."""
    own = look(position)
    return {"label": plain(label), "color": own.on_white, "linestyle": (0, own.dashes) if own.dashes else "-", "marker": MARKERS[own.mark]}


def plain(text: str) -> str:
    """Text in which a dollar sign begins no formula."""
    return printable(text).replace("$", r"\$")


def panels(figure: Any, rows: int, columns: int) -> list[list[Any]]:
    """Axes [rows, columns]; those of one row stand in two columns, to fit in a `COLUMN`."""
    if rows > 1 or columns == 1:
        return [list(line) for line in figure.subplots(rows, columns, squeeze=False)]
    grid = figure.subplots(-(-columns // 2), 2, squeeze=False).ravel()
    for empty in grid[columns:]:
        empty.remove()
    return [list(grid[:columns])]


def legend(figure: Any, handles: Sequence[Any]) -> None:
    """Below the panels, in as many columns as have room."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.45 + 0.062 * longest))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.6, columnspacing=1.2)


def write_all(figures: Sequence[Any], out: Path, name: str) -> None:
    """``name``.png and .svg, the following ones numbered from 2, and all of them as pages of ``name``.pdf."""
    from matplotlib.backends.backend_pdf import PdfPages

    for number, figure in enumerate(figures, start=1):
        for kind, dated in (("png", {}), ("svg", {"Date": None})):
            path = out / f"{name}{f'_{number}' if number > 1 else ''}.{kind}"
            draft = path.with_name(f".{path.name}")
            figure.savefig(draft, dpi=DOTS, format=kind, metadata=dated)
            draft.replace(path)
    draft = out / f".{name}.pdf"
    with PdfPages(draft, metadata={"CreationDate": None}) as pages:  # the same figures are the same file
        for figure in figures:
            pages.savefig(figure)
    draft.replace(out / f"{name}.pdf")
