"""Uploads that did not count, and simulated seconds: of a round as in ``metrics.jsonl``, of a whole run as in ``summary.json``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pfedmma.system.fields import Fields


@dataclass(frozen=True)
class Lost:
    """Ids of a round's participants who ``failed`` after their training, and of those who came too ``late``; each ascending."""

    failed: tuple[int, ...] = ()
    late: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return len(self.failed) + len(self.late)

    @property
    def numbers(self) -> dict[str, int]:
        """How many of either kind."""
        return {"failed": len(self.failed), "late": len(self.late)}

    def to_json(self) -> dict[str, list[int]]:
        return {"failed": list(self.failed), "late": list(self.late)}

    @classmethod
    def from_fields(cls, fields: Fields) -> Lost:
        return cls(fields.wholes("failed"), fields.wholes("late"))


def together(rounds: Iterable[Lost | None]) -> dict[str, int] | None:
    """How many of either kind all rounds lost; None where no upload could be lost."""
    known = [lost.numbers for lost in rounds if lost is not None]
    return {name: sum(numbers[name] for numbers in known) for name in Lost().numbers} if known else None
