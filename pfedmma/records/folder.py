"""A run's folder: ``config.yaml``, ``metrics.jsonl`` (one object a round), ``summary.json`` and ``checkpoints/``."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from pfedmma.system import untrusted
from pfedmma.system.errors import UserError
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

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every complete line of ``metrics.jsonl``; a line cut off by a crash is left out.

        Raises:
            UserError: it cannot be read, or a line is of something else than a round.
        """
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
            rows.append(row)
        return rows

    def keep_rounds(self, last: int) -> None:
        """Drop what was recorded after round ``last``: a resumed run records those rounds again."""
        rows = [row for row in self.read_metrics() if row.get("round", 0) <= last]
        _write(self.metrics, "".join(to_json(row) + "\n" for row in rows).encode())
        self.summary.unlink(missing_ok=True)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one round; a reader sees whole lines only."""
        before = self.metrics.stat().st_size if self.metrics.exists() else 0
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(to_json(row) + "\n")
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

    def write_summary(self, summary: dict[str, Any]) -> None:
        _write(self.summary, (to_json(summary, indent=2) + "\n").encode())

    def read_summary(self) -> dict[str, Any]:
        """The summary of a finished run; a `UserError` if there is none or it is broken."""
        self.require_run()
        try:
            summary = untrusted.read_json(self.summary)
        except FileNotFoundError:
            raise UserError(f"the run in {self.path} is not finished (no summary.json); go on with it by resume={self.path}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.summary} is not valid JSON: {error}") from None
        if not isinstance(summary, dict):
            raise UserError(f"{self.summary} must hold an object, as training writes it")
        return summary


def _write(path: Path, content: bytes) -> None:
    """Write a file that one process writes at a time: drafts of it are of processes that were killed."""
    for draft in path.parent.glob(f".{path.name}.*.draft"):
        with contextlib.suppress(OSError):
            draft.unlink()
    write_atomically(path, content)
