"""A run of which one rank kills itself, once, at a moment drawn from a seed.

    torchrun --standalone --nproc_per_node=2 --max-restarts=3 tests/support/dying.py SEED MARK key=value ...

MARK is a file that says that it has happened: the ranks that are started again live.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pfedmma.accuracy import evaluator
from pfedmma.comm import world as comm_world
from pfedmma.comm.ledger import EXCHANGE
from pfedmma.data.sources import shapes
from pfedmma.engine import local
from pfedmma.records import folder as records_folder
from pfedmma.records.checkpoint import write
from pfedmma.records.rows import RoundRow
from pfedmma.system import files
from pfedmma.system.errors import run_main
from pfedmma.train import main
from tests.support.small import RANKS_DRAW

# A checkpoint after each round and one alone kept, an evaluation after every second.
SETTINGS = (
    "federation.rounds=4",
    "checkpoint.every=1",
    "checkpoint.keep=1",
    "evaluation.every=2",
    "optimizer.state=persist",
)
# How often each rank comes to a place in a run of `SETTINGS`; 0: never.
CALLS = {
    "training": (12, 12),  # in the middle of a round's training, at a step
    "exchange": (4, 4),
    "metrics": (7, 7),  # sums of losses and accuracies
    "evaluation": (6, 6),  # in the middle of one, at a batch of test images
    "checkpoint": (12, 12),  # waits for the other rank while one is written
    "file": (27, 4),  # half of a file is on disk, whichever it is
    "rename": (19, 4),  # all of a file, and it takes its name; of a checkpoint, too
    "removal": (3, 0),  # the new checkpoint is complete, the old one is there
    "row": (4, 0),  # half a line of metrics.jsonl
}
PLACES = ("training", "exchange", "evaluation", "checkpoint", "file", "rename", "removal", "row", "metrics", "anywhere")


@dataclass(frozen=True)
class Moment:
    """The rank that dies, and where: when it comes to ``place`` for the ``call``-th time, or ``after`` it was there.

    Place ``anywhere``: ``seconds`` after its first collective.
    """

    victim: int
    place: str
    call: int
    after: bool
    seconds: float

    @classmethod
    def from_seed(cls, seed: int) -> Moment:
        """Ten seeds in a row are one of each place; both ranks die."""
        draw = random.Random(seed)
        place = PLACES[seed % len(PLACES)]
        calls = CALLS.get(place, (1, 1))
        victim = draw.choice([rank for rank in (0, 1) if calls[rank]])
        return cls(victim, place, draw.randint(1, calls[victim]), draw.random() < 0.5, draw.uniform(0.0, 3.0))


def arm(moment: Moment, mark: Path) -> None:
    """Let this process die at that moment, if it is the victim and nobody has died yet."""
    torch.set_num_threads(1)
    shapes.PER_CLASS.update(RANKS_DRAW)
    if int(os.environ["RANK"]) != moment.victim or mark.exists():
        return
    Bomb(moment, mark).lay()


def count() -> dict[str, Bomb]:
    """Let nobody die; the bombs at all places of `CALLS` count how often this process comes to them."""
    bombs = {place: Bomb(Moment(0, place, call=0, after=False, seconds=0.0), Path(os.devnull)) for place in CALLS}
    for bomb in bombs.values():
        bomb.lay()
    return bombs


class Bomb:
    """Counts calls, and kills the process at the one of its moment."""

    def __init__(self, moment: Moment, mark: Path) -> None:
        self.moment, self.mark, self.calls = moment, mark, 0

    def lay(self) -> None:
        """At the place of the moment."""
        place, sums = self.moment.place, {"exchange": EXCHANGE, "metrics": "metrics", "checkpoint": "checkpoint"}
        if place in sums:
            self.put(comm_world.World, "sum", lambda world, flat, purpose: purpose == sums[place])
        elif place == "training":
            self.put(local.LocalTraining, "step")
        elif place == "evaluation":
            self.put(evaluator.Evaluator, "_image_stem")
        elif place == "file":
            self.put(files.os, "fsync", first=half)
        elif place == "rename":
            self.put(files.os, "replace")
            self.put(write.Path, "rename")
        elif place == "removal":
            self.put(write.shutil, "rmtree", lambda folder, **_: folder.name.startswith("round-") and folder.exists())
        elif place == "row":
            self.put(records_folder.RunFolder, "append_metrics", first=half_a_row)
        else:
            self.start_with(comm_world.World, "sum")

    def put(
        self, owner: Any, name: str, counts: Callable[..., bool] = lambda *_, **__: True, first: Callable[..., None] | None = None
    ) -> None:
        """Into a function of ``owner``; ``first`` is done before the process dies in it."""
        real = getattr(owner, name)

        def function(*args: Any, **options: Any) -> Any:
            now = False
            if counts(*args, **options):
                self.calls += 1
                now = self.calls == self.moment.call
            if now and (first or not self.moment.after):
                if first:
                    first(*args, **options)
                self.explode()
            result = real(*args, **options)
            if now:
                self.explode()
            return result

        setattr(owner, name, function)

    def start_with(self, owner: Any, name: str) -> None:
        """Die some seconds after the first call, whatever the process does then."""
        real = getattr(owner, name)

        def function(*args: Any, **options: Any) -> Any:
            setattr(owner, name, real)
            timer = threading.Timer(self.moment.seconds, self.explode)
            timer.daemon = True
            timer.start()
            return real(*args, **options)

        setattr(owner, name, function)

    def explode(self) -> None:
        self.mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def half(handle: int) -> None:
    """Of an open file, half is written; of a folder, nothing is known."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle, os.fstat(handle).st_size // 2)


def half_a_row(folder: records_folder.RunFolder, row: RoundRow) -> None:
    line = files.to_json(row.to_json())
    with open(folder.metrics, "a", encoding="utf-8") as file:
        file.write(line[: len(line) // 2])


if __name__ == "__main__":
    where = Path(sys.argv[2])
    with open(where.with_name(f"{where.name}.starts"), "a") as starts:
        starts.write(".")
    arm(Moment.from_seed(int(sys.argv[1])), where)
    run_main(lambda: main(sys.argv[3:]))
