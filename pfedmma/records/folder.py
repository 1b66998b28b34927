"""A run's folder: ``config.yaml``, ``metrics.jsonl`` (one object a round), ``summary.json`` and ``checkpoints/``."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfedmma.records.rows import RoundRow, RunSummary, require_known_format
from pfedmma.system import untrusted
from pfedmma.system.console import warn
from pfedmma.system.errors import UserError
from pfedmma.system.fields import Fields
from pfedmma.system.files import to_json, write_atomically


class RunFolder:
    """Paths and files of one run. Only rank 0 writes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.expanduser(path))  # leaves ~nobody as it is
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.checkpoints = self.path / "checkpoints"

    @property
    def holds_a_run(self) -> bool:
        return os.path.exists(self.config) or os.path.exists(self.metrics)  # unlike Path's, no error on a name that cannot be

    def refuse_overwriting(self) -> None:
        """Raise a `UserError` if a new run here would mix with an earlier one."""
        if self.holds_a_run:
            raise UserError(f"run_dir: {self.path} already holds a run; set resume=auto to go on with it, or choose another run_dir")
        if os.path.exists(self.path) and not os.path.isdir(self.path):
            raise UserError(f"run_dir: {self.path} is a file; choose a folder")

    def require_writable(self) -> None:
        """Raise a `UserError` now rather than after the first round if nothing can be written here."""
        existing = next(p for p in (self.path, *self.path.absolute().parents) if os.path.exists(p))
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"run_dir: cannot write to {existing}; choose a run_dir below a folder of your own")

    def require_run(self) -> None:
        """Raise a `UserError` unless a run lives here."""
        if not self.holds_a_run:
            raise UserError(f"{self.path} holds no run (no config.yaml); give the run_dir of a run")

    def create(self, config_yaml: str) -> None:
        """Make the folder and keep the resolved configuration in it."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run_dir: cannot create {self.path}: {error.strerror}") from None
        _write(self.config, config_yaml.encode())

    def keep_split(self, split: dict[str, Any]) -> None:
        """Keep a split that was made up because the data came without one, in the form of CoOp's JSON."""
        _write(self.path / "split.json", (to_json(split) + "\n").encode())

    def read_metrics(self) -> list[RoundRow]:
        """Every complete line of ``metrics.jsonl``; a line cut off by a crash is left out.

        Raises:
            UserError: it cannot be read, a line is not as training writes it, or a later version wrote it in another format.
        """
        rows = [RoundRow.from_fields(fields) for fields in self._rounds()]
        if odd := odd_rounds([row.round for row in rows]):
            warn(f"{self.metrics} {odd}; another run may have written there")
        return rows

    def new_rounds(self, offset: int) -> tuple[list[RoundRow], int]:
        """Rounds of a run that is going on: those from byte ``offset`` of ``metrics.jsonl`` on, and where the next one will begin.

        A file that has become shorter is read from its beginning. What cannot be read is left out.
        """
        try:
            with open(self.metrics, "rb") as file:
                offset = offset if offset <= file.seek(0, os.SEEK_END) else 0
                file.seek(offset)
                whole, _, _ = file.read().rpartition(b"\n")
        except OSError:
            return [], 0
        rows = []
        for line in whole.decode(errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # a UserError is one
                rows.append(RoundRow.from_fields(Fields(untrusted.parse_json(line), str(self.metrics))))
        return rows, offset + len(whole) + bool(whole)

    def _rounds(self) -> list[Fields]:
        if not self.metrics.exists():
            return []
        try:
            lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise UserError(f"cannot read {self.metrics}: {error.strerror}") from None
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = untrusted.parse_json(line)
            except ValueError:
                continue
            if not isinstance(row, dict) or type(row.get("round")) is not int:
                raise UserError(f"{self.metrics}: line {number} is not of a round; it must be an object with a whole number as its 'round'")
            rows.append(Fields(row, f"{self.metrics}: round {row['round']}"))
        return rows

    def keep_rounds(self, last: int) -> None:
        """Drop what was recorded after round ``last``: a resumed run records those rounds again.

        Raises:
            UserError: a later version recorded rounds here; nothing is changed then.
        """
        rounds = self._rounds()
        for fields in rounds:
            require_known_format(fields)
        kept = [fields.values for fields in rounds if fields.values["round"] <= last]  # as they were written
        _write(self.metrics, "".join(to_json(row) + "\n" for row in kept).encode())
        self.summary.unlink(missing_ok=True)

    def append_metrics(self, row: RoundRow) -> None:
        """Add one round; a reader sees whole lines only."""
        before = self.metrics.stat().st_size if self.metrics.exists() else 0
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(to_json(row.to_json()) + "\n")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.metrics, before)
            raise UserError(f"cannot write {self.metrics}: {error.strerror}") from error

    def sync_metrics(self) -> None:
        """Make the rounds recorded so far survive a power cut, before a checkpoint says that they are done."""
        try:
            with open(self.metrics, "rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.metrics}: {error.strerror}") from error

    def write_summary(self, summary: RunSummary) -> None:
        _write(self.summary, (to_json(summary.to_json(), indent=2) + "\n").encode())

    def read_summary(self) -> RunSummary:
        """The summary of a finished run.

        Raises:
            UserError: there is none, it is not as training writes it, or a later version wrote it in another format.
        """
        self.require_run()
        if not os.path.lexists(self.summary):
            raise UserError(f"the run in {self.path} is not finished (no summary.json); go on with it by resume={self.path}")
        return RunSummary.from_fields(Fields.from_file(self.summary))


def odd_rounds(rounds: Sequence[int]) -> str:
    """What is wrong with the rounds of a file that should stand in it in order, each once, from 1 on; empty if nothing is."""
    twice = [number for number, count in Counter(rounds).items() if count > 1]
    if twice:
        return f"has round {twice[0]} more than once"
    missing = sorted(set(range(1, max(rounds, default=0) + 1)) - set(rounds))
    if missing:
        return f"lacks round {missing[0]}"
    return "" if list(rounds) == sorted(rounds) else "has its rounds out of order"


def _write(path: Path, content: bytes) -> None:
    """Write a file that one process writes at a time: drafts of it are of processes that were killed."""
    for draft in path.parent.glob(f".{path.name}.*.draft"):
        with contextlib.suppress(OSError):
            draft.unlink()
    write_atomically(path, content)
