"""A run from Python: trained here, or read from its folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedmma.api.keywords import as_settings
from pfedmma.api.table import Table
from pfedmma.config import schema
from pfedmma.config.identity import settings as settings_of
from pfedmma.records.columns import DOWN_OF_ROUND, IMAGES, IMAGES_OF_ROUND, PARTICIPANTS, UP_OF_ROUND, percent, seconds
from pfedmma.records.folder import RunFolder
from pfedmma.records.rows import COLUMNS, RoundRow, RunSummary, Scores
from pfedmma.system.errors import UserError


@dataclass(frozen=True, repr=False)
class FinishedRun:
    """What stands in a run's ``folder``.

    Args:
        settings: by their dotted names. summary: None while the run is not finished. rounds: `RoundRow`, one a round.
    """

    folder: Path
    settings: dict[str, Any]
    summary: RunSummary | None
    rounds: tuple[RoundRow, ...]

    def __repr__(self) -> str:
        what = f"{self.settings['method.name']} on {self.settings['data.name']}, {len(self.rounds)} rounds"
        score = self.accuracy.get("hm")
        return f"<{what}{'' if score is None else f', HM {score:.2f} %'}: {self.folder}>"

    @property
    def accuracy(self) -> Scores:
        """The final scores in percent: local, base, novel, hm and others; empty where nothing was tested, or before the end."""
        found = self.summary and self.summary.accuracy
        return dict(found.scores) if found else {}

    @property
    def zero_shot(self) -> Scores:
        """As `accuracy`, of CLIP as it is."""
        found = self.summary and self.summary.zero_shot
        return dict(found.scores) if found else {}

    @property
    def metrics(self) -> Table:
        """One row a round; scores are NaN in rounds that were not tested."""
        rounds = self.rounds
        scored = dict.fromkeys(name for row in rounds if row.accuracy for name in row.accuracy.scores)
        timed = dict.fromkeys(name for row in rounds for name in row.seconds)
        columns: dict[str, Sequence[Any]] = {
            "round": [row.round for row in rounds],
            PARTICIPANTS: [len(row.clients) for row in rounds],
            IMAGES_OF_ROUND: [row.samples for row in rounds],
            "loss": [row.loss for row in rounds],
        }
        columns |= {percent(name): [row.accuracy and row.accuracy.score(name) for row in rounds] for name in scored}
        columns |= {UP_OF_ROUND: [row.comm.uplink_bytes for row in rounds], DOWN_OF_ROUND: [row.comm.downlink_bytes for row in rounds]}
        return Table(columns | {seconds(name): [row.seconds.get(name) for row in rounds] for name in timed})

    @property
    def clients(self) -> Table:
        """One row a client: the classes that it holds, its images, its scores and those of zero-shot; no rows before the end."""
        clients = self.summary.per_client if self.summary else ()
        columns: dict[str, Sequence[Any]] = {
            "client": [client.id for client in clients],
            "domain": [client.domain for client in clients],
            "classes": [client.classes for client in clients],
            IMAGES: [client.train_samples for client in clients],
            "test_images": [client.test_samples for client in clients],
        }
        columns |= {percent(name): [client.scores.get(name) for client in clients] for name in COLUMNS}
        return Table(
            columns | {percent(f"zero_shot_{name}"): [(client.zero_shot or {}).get(name) for client in clients] for name in COLUMNS}
        )

    def export(self, client: int, out: str | Path) -> Path:
        """Write the model of a client, as ``python -m pfedmma.export`` does; returns ``out``, a file for `pfedmma.load_client`."""
        from pfedmma.export import export

        export(RunFolder(self.folder), client, Path(out))
        return Path(out)

    def export_all(self, out: str | Path) -> list[Path]:
        """As `export`, of all clients: files in the folder ``out``, by client."""
        from pfedmma.export import export_all

        return export_all(RunFolder(self.folder), Path(out))[0]


def run(
    data: str | None = None,
    method: str | None = None,
    *,
    config: str | Path | Sequence[str | Path] = (),
    resume: str = "auto",
    **settings: Any,
) -> FinishedRun:
    """Train and test a federation in this process, as ``python -m pfedmma.train`` does, and read what it came to.

    Args:
        data: name of the data set; by default that of ``config``, or the drawn images.
        method: likewise; by default pfedmma.
        config: files of settings, or names of those of the package, such as "demo".
        resume: as the setting. "auto": a run that is there already with these settings goes on where it is, or is read.
        settings: see `pfedmma.api.keywords`; a run's folder is ``run_dir``.

    Raises:
        UserError: a setting that cannot be, a folder that holds another run, or this is one of several ranks.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UserError("pfedmma.run is for one process; with several ranks, start torchrun -m pfedmma.train and read it with load_run")
    named = {section: value for section, value in (("data", data), ("method", method)) if value is not None}
    files = [config] if isinstance(config, (str, Path)) else config
    given = as_settings({**named, "resume": resume, **settings})
    wanted = schema.load(config, given)

    from pfedmma import train

    train.carry_out(wanted, [*(word for file in files for word in ("--config", str(file))), *given])
    return load_run(wanted.run_dir)


def load_run(folder: str | Path) -> FinishedRun:
    """A run that is finished, or as far as it is.

    Raises:
        UserError: there is no run in ``folder``, or a file that is not as training writes it.
    """
    there = RunFolder(folder)
    there.require_run()
    summary = there.read_summary() if there.summary.exists() else None
    known = dict(summary.config) if summary and summary.config else settings_of(schema.load_run(there.path))
    rounds = there.read_metrics()
    return FinishedRun(there.path, known, summary, tuple(row.tested_on(summary.split) if summary else row for row in rounds))
