"""What a run leaves behind while it goes on: its folder, metrics, trackers, a line for the person, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pfedmma.accuracy.zero_shot import Reference
from pfedmma.config import schema
from pfedmma.config.identity import comparable
from pfedmma.engine.rounds import due
from pfedmma.records.checkpoint.manifest import Progress
from pfedmma.records.checkpoint.write import Snapshot, save_checkpoint
from pfedmma.records.folder import RunFolder
from pfedmma.records.rows import RoundRow
from pfedmma.records.trackers import Trackers
from pfedmma.run import display
from pfedmma.run.assembly import Run
from pfedmma.run.progress import Pace
from pfedmma.system.console import ProgressBar


@dataclass
class Recorder:
    """Listens to the engine. ``done``: rounds that stand before this part of the run. Rank 0 alone writes, but for checkpoints."""

    run: Run
    folder: RunFolder
    bar: ProgressBar
    trackers: Trackers
    zero_shot: Reference
    done: int
    started: bool = False

    def __post_init__(self) -> None:
        self.pace = Pace(self.run.config.federation.rounds, self.run.config.evaluation.every)

    def round_done(self, row: RoundRow) -> None:
        """Record a round; the folder is made with the first, so that a run that ends before leaves none behind."""
        if self.run.engine.world.is_main:
            if not self.started:
                self._start()
            self.folder.append_metrics(row)
            self.trackers.round_done(row)
        self.pace.add([row])
        display.round_done(self.bar, row, self.pace.left)

    def _start(self) -> None:
        self.folder.keep_rounds(self.done)  # refuses those of a later version, before anything is written
        self.folder.create(schema.dump(self.run.config))
        if (made := self.run.made_split) is not None:
            self.folder.keep_split(made)
        self.trackers.start(self.done)
        self.started = True

    def checkpoint_due(self, round_: int) -> bool:
        return due(self.run.config.checkpoint.every, round_, self.run.config.federation.rounds)

    def save(self, round_: int) -> None:
        """Write a checkpoint. All ranks enter."""
        engine = self.run.engine
        self.bar.state(f"keeping round {round_}/{self.bar.total}")
        progress = Progress(
            config=comparable(self.run.config),
            ledger=engine.world.ledger.state(),
            template=self.run.federated.template,
            reads=engine.training.method.reads,
            answers=engine.states.answers,
            zero_shot=self.zero_shot.accuracy,
            zero_shot_table=self.zero_shot.table,
            tested_on=self.run.config.evaluation.tested_on,
            data=self.run.fingerprint,
            torch_version=torch.__version__,
            classes=self.run.classes,
            backbone=self.run.weights.to_json(),
            select=self.run.config.evaluation.select,
            selected=None if engine.evaluation.best is None else engine.evaluation.best.selected,
            selected_table=None if engine.evaluation.best is None else engine.evaluation.best.table,
        )
        if engine.world.is_main:
            self.folder.sync_metrics()
        texts = engine.evaluation.texts.flat()
        snapshot = Snapshot(round_, engine.states, engine.server.state_dict(), progress, texts, engine.assignment.keeps)
        save_checkpoint(self.folder.checkpoints, snapshot, engine.world, self.run.config.checkpoint.keep)
        display.next_round(self.bar, round_)
