"""What an evaluation leaves behind beside averages of accuracies: diagnostics of the models, and the accuracy of each client.

Both are optional in ``metrics.jsonl`` and ``summary.json``; they are left out where there are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pfedmma.system.console import percent
from pfedmma.system.errors import UserError
from pfedmma.system.fields import Fields

DIAGNOSTICS = {  # name -> title
    "alignment_margin": "alignment margin",
    "modality_gap": "modality gap",
    "ece": "ECE, percent",
    "shared_cka": "CKA of S between clients",
}


def written(name: str, value: float | None) -> str:
    """A diagnostic for reading: percent to two digits, what lies between -2 and 2 to four."""
    return percent(value) if name == "ece" or value is None else f"{value:.4f}"


@dataclass(frozen=True)
class Diagnostics:
    """Means over the tested clients, as `pfedmma.accuracy.diagnostics` defines them; None where a method has no such thing."""

    alignment_margin: float | None
    modality_gap: float | None
    ece: float | None
    shared_cka: float | None

    def to_json(self) -> dict[str, float | None]:
        return {name: getattr(self, name) for name in DIAGNOSTICS}

    @classmethod
    def from_fields(cls, fields: Fields) -> Diagnostics:
        return cls(**{name: fields.score(name) for name in DIAGNOSTICS})


@dataclass(frozen=True)
class ClientScores:
    """Accuracies of single clients after a round.

    ``clients``: their ids, ascending. ``columns``: column -> percent of each of them, None where there is nothing to test.
    """

    clients: tuple[int, ...]
    columns: Mapping[str, tuple[float | None, ...]]

    def to_json(self) -> dict[str, Any]:
        return {"clients": list(self.clients)} | {name: list(values) for name, values in self.columns.items()}

    @classmethod
    def from_fields(cls, fields: Fields) -> ClientScores:
        clients = fields.wholes("clients")
        columns = {name: fields.scores_in(name) for name in fields.values if name != "clients"}
        if odd := next((name for name, values in columns.items() if len(values) != len(clients)), None):
            raise UserError(f"{fields.where}: {odd} must hold {len(clients)} numbers, one of each of its clients, not {len(columns[odd])}")
        return cls(clients, columns)
