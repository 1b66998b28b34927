"""By which command and code a run was made, when, and how fast: what its summary says beside the results."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pfedmma
from pfedmma.system.fields import Fields

_PATIENCE = 10.0  # seconds for git


@dataclass(frozen=True)
class Origin:
    """``command``: that of the run's last part; ``revision``: of the code by git, empty where it is not known, with a + where files differ.

    ``started`` (of the last part) and ``finished``: UTC, as 2026-11-26T10:40:00Z.
    """

    command: str
    revision: str
    started: str
    finished: str = ""

    @classmethod
    def now(cls, module: str, arguments: Sequence[str]) -> Origin:
        """That of ``python -m module arguments``, which begins now."""
        return cls(shlex.join(["python", "-m", module, *arguments]), revision(Path(pfedmma.__file__).parents[1]), utc())

    def ended(self) -> Origin:
        """The same, of a run that has just come to its end."""
        return replace(self, finished=utc())

    @classmethod
    def from_fields(cls, fields: Fields) -> Origin:
        return cls(*(fields.text(name) for name in ("command", "revision", "started", "finished")))

    @classmethod
    def below(cls, fields: Fields, key: str) -> Origin | None:
        """What stands below ``key``; None where an earlier version wrote nothing."""
        return cls.from_fields(fields.part(key)) if fields.has(key) else None


@dataclass(frozen=True)
class Throughput:
    """How fast a run was."""

    train_images_per_second: float | None
    seconds_per_round: float | None

    @classmethod
    def from_fields(cls, fields: Fields) -> Throughput:
        return cls(fields.score("train_images_per_second"), fields.score("seconds_per_round"))


def utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def revision(folder: Path) -> str:
    """The commit that a checkout stands at, with a + where files differ from it; empty where ``folder`` is none (an installed package)."""
    if not (folder / ".git").exists():  # git would find a repository further up, which is another one
        return ""
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    return commit + "+" * bool(commit and _git(folder, "status", "--porcelain", "--untracked-files=no"))


def _git(folder: Path, *words: str) -> str:
    command: list[Any] = ["git", "-C", folder, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
