"""Bytes that were measured on the wire, as ``benchmarks/wire.py`` writes them: ``report --wire FILE``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pfedmma.report.document import Table
from pfedmma.system.fields import Fields


@dataclass(frozen=True)
class Measured:
    """One run of the benchmark; ``received``: bytes that reached each rank in a round; ``phases``: bytes of the parts besides, by rank."""

    name: str
    world_size: int
    rounds: int
    payload: float
    ring: float
    received: Sequence[float]
    ratio: float | None
    phases: dict[str, list[float]]

    @classmethod
    def from_fields(cls, fields: Fields) -> Measured:
        phases = fields.part("phases")
        return cls(
            fields.text("name"),
            fields.whole("world_size"),
            fields.whole("rounds"),
            fields.number("payload_bytes_per_round"),
            fields.number("ring_bytes_per_rank"),
            fields.numbers("measured_received_per_rank_per_round"),
            fields.score("ratio"),
            {name: phases.numbers(name, alone=True) for name in phases.values if name != "rounds"},
        )


@dataclass(frozen=True)
class Wire:
    """The result of the benchmark."""

    runs: Sequence[Measured]

    @classmethod
    def from_file(cls, path: Path) -> Wire:
        """The file's runs; a `UserError` where it is not as the benchmark writes it."""
        return cls([Measured.from_fields(fields) for fields in Fields.from_file(path).parts("runs")])

    def table(self) -> Table:
        phases = list(dict.fromkeys(name for run in self.runs for name in run.phases))
        rows = []
        for run in self.runs:
            counts = [str(run.world_size), str(run.rounds), _exact([run.payload]), _exact([run.ring]), _exact(run.received)]
            others = [_exact(run.phases.get(name, [])) for name in phases]
            rows.append([run.name, *counts, "-" if run.ratio is None else f"{run.ratio:.4f}", *others])
        columns = (
            "run",
            "ranks",
            "rounds",
            "payload / round",
            "ring model / rank / round",
            "received / rank / round",
            "ratio, farthest rank",
        )
        caption = "Bytes received as measured on the wire (benchmarks/wire.py), mean over ranks, beside the ring model"
        caption += f"; of the whole run: {', '.join(phases)}" if phases else ""
        return Table(caption, (*columns, *phases), rows)


def _exact(counts: Sequence[float]) -> str:
    return f"{statistics.fmean(counts):,.0f} B" if counts else "-"
