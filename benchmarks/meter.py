"""One rank of a metered run: its interface is read after every collective.

    python benchmarks/meter.py '{"settings": [...], "settle": 0.25, "readings": "FILE"}'

Runs ``pfedmma.train`` with the settings, and writes a `Reading` for each collective to FILE.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from namespaces import COUNTERS, INTERFACE
from torch import Tensor

from pfedmma import train
from pfedmma.comm.world import World
from pfedmma.engine.evaluation import Evaluation
from pfedmma.engine.rounds import Engine
from pfedmma.run.recorder import Recorder
from pfedmma.system.errors import run_main
from pfedmma.system.files import write_atomically

PHASES = ("startup", "rounds", "evaluation", "checkpoint", "shutdown")


@dataclass(frozen=True)
class Reading:
    """What passed a rank's interface from the collective before up to and with this one. ``payload``: the bytes handed to it."""

    phase: str
    purpose: str
    payload: int
    rx_bytes: int
    tx_bytes: int
    rx_packets: int


@dataclass
class Meter:
    """Reads the interface of this rank after every collective."""

    settle: float
    folder: Path = Path("/sys/class/net") / INTERFACE / "statistics"
    phase: str = "startup"
    readings: list[Reading] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))

    def attach(self) -> None:
        """Count every `World.sum` of this process, by the part of the run that it is in."""
        plain = World.sum

        def counted(world: World, flat: Tensor, purpose: str, *more: Any, **options: Any) -> Tensor:
            total = plain(world, flat, purpose, *more, **options)
            self.read(purpose, flat.nbytes)
            return total

        setattr(World, "sum", counted)  # noqa: B010, a type checker refuses the plain form
        self.within(Engine, "run", "rounds")
        self.within(Evaluation, "measured", "evaluation")
        self.within(Recorder, "save", "checkpoint")

    def within(self, owner: type, method: str, phase: str) -> None:
        """What is summed while ``method`` of the class ``owner`` runs belongs to ``phase``."""
        plain = getattr(owner, method)

        @functools.wraps(plain)
        def named(*args: Any, **options: Any) -> Any:
            outer, self.phase = self.phase, phase
            try:
                return plain(*args, **options)
            finally:
                self.phase = outer

        setattr(owner, method, named)

    def read(self, purpose: str, payload: int) -> None:
        """Book what has come since the reading before, within a pause that all ranks make."""
        time.sleep(self.settle)
        now = {name: int((self.folder / name).read_text()) for name in COUNTERS}
        self.readings.append(Reading(self.phase, purpose, payload, **{name: now[name] - self.before[name] for name in COUNTERS}))
        self.before = now
        time.sleep(self.settle)


def main() -> None:
    job = json.loads(sys.argv[1])
    meter = Meter(job["settle"])
    meter.attach()
    train.main(job["settings"])
    write_atomically(Path(job["readings"]), json.dumps([asdict(reading) for reading in meter.readings]).encode())


if __name__ == "__main__":
    run_main(main)
