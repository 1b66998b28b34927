"""A comparison from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pfedmma.api.keywords import as_settings
from pfedmma.api.table import Table
from pfedmma.compare import __main__ as command
from pfedmma.compare import grid, schedule, written
from pfedmma.config import shipped
from pfedmma.system.errors import UserError
from pfedmma.system.files import write_atomically

ASKED = "compare.yaml"  # what a mapping becomes, in the folder of the comparison


@dataclass(frozen=True)
class Comparison:
    """``runs``: one row a run; ``table``: one row a method and setting, mean and standard deviation over seeds. See configs/README.md.

    ``folder`` holds the tables as files, figures, and a folder for each run, which ``runs["run"]`` names.
    """

    folder: Path
    runs: Table
    table: Table

    def __repr__(self) -> str:
        return f"<comparison of {self.runs.rows} runs: {self.folder}>"


def compare(
    what: str | Path | Mapping[str, Any], *, out: str | Path | None = None, jobs: int = 1, ranks: int = 1, **settings: Any
) -> Comparison:
    """Do the runs of a comparison, as ``python -m pfedmma.compare`` does, and read its tables.

    Args:
        what: a compare file, the name of one of the package such as "embedded", or what would stand in one: ``{"methods": ["pfedmma",
            "local"], "seeds": [0, 1]}``. Such a mapping is kept in ``out``, for the same comparison by the command.
        out: folder of the runs and tables; by default ``runs/compare/<name of the file>``, which a mapping has not.
        jobs: runs at once. ranks: processes of each run.
        settings: for every run, see `pfedmma.api.keywords`; a list of values, such as ``seed=[0, 1]``, makes or extends the grid.

    Raises:
        UserError: a file or setting that cannot be; or a run failed: the tables of the others are written then.
    """
    file = _written(what, out) if isinstance(what, Mapping) else shipped.located(what, comparisons=True)
    folder = Path(out) if out is not None else grid.ROOT / file.stem
    plans = grid.read(file, as_settings(settings), folder)
    done = command.carry_out(plans, schedule.Slots(jobs, ranks), folder)
    return Comparison(folder, Table.from_lines(written.run_lines(done)), Table.from_lines(written.table_lines(done)))


def _written(asked: Mapping[str, Any], out: str | Path | None) -> Path:
    if out is None:
        raise UserError("out: a comparison that is no file needs a folder; write for example out='runs/compare/mine'")
    Path(out).mkdir(parents=True, exist_ok=True)
    write_atomically(Path(out) / ASKED, yaml.safe_dump(dict(asked), sort_keys=False).encode())
    return Path(out) / ASKED
