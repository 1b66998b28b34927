"""Experiment trackers (TensorBoard, Weights & Biases, MLflow), through accelerate's tracker classes. Only rank 0 has any.

A resumed run goes on with the same series. Each round stands in it once: rounds that are done again are taken back, or not given a
second time, and rounds that a tracker lacks (it was added later, it was out of order) are given to it from ``metrics.jsonl``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfedmma.records.folder import RunFolder
from pfedmma.records.rows import RoundRow, RunSummary
from pfedmma.system import untrusted
from pfedmma.system.console import warn
from pfedmma.system.errors import UserError
from pfedmma.system.files import to_json, write_atomically
from pfedmma.system.lazy import Library

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

tracking = Library("accelerate.tracking")

NAMES = ("tensorboard", "wandb", "mlflow")
PROJECT = "pfedmma"  # of Weights & Biases, and experiment of MLflow
EACH = "comm/uplink_bytes"  # is there in every round, as a loss is not
FINAL = "final/base"  # is there wherever a run was evaluated


def require(names: Sequence[str]) -> None:
    """Raise a `UserError` if a tracker's package is not installed."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.has_location:  # a folder of that name, as wandb leaves them behind, is no package
            raise UserError(f"trackers: {name} is not installed here; pip install {name}, or leave it out of trackers")


@dataclass
class Series:
    """What one tracker has of the run: figures up to round ``held``, and final accuracies of round ``final`` (0: none).

    ``id``: by which it is found again; ``settled``: it knows the settings.
    """

    tracker: GeneralTracker
    id: str
    held: int
    final: int = 0
    settled: bool = False


class Trackers:
    """The trackers of a run. One that fails is left out with a warning: training goes on."""

    def __init__(self, names: Sequence[str], folder: RunFolder, settings: Mapping[str, Any]) -> None:
        self.names, self.folder, self.settings = tuple(dict.fromkeys(names)), folder, settings
        self.home = folder.path / "trackers"
        self.series: dict[str, Series] | None = None  # None before the start
        self.sent = 0.0  # bytes up, of all rounds so far

    def start(self, done: int) -> None:
        """Begin, or go on after round ``done``; the run folder must be there."""
        self.series = {}
        if not self.names:
            return
        rows = [row for row in self.folder.read_metrics() if row.round <= done]
        ids = self._read_ids()
        for name in self.names:
            with self._spared(name):
                self.home.mkdir(exist_ok=True)
                series = self.series[name] = _OPEN[name](self.home, self.folder.path.absolute().name, ids.get(name, ""), done)
                ids[name] = series.id
                write_atomically(self.home / "ids.json", to_json(ids).encode())
                if not series.settled:
                    series.tracker.store_init_configuration(_plain(self.settings))
        for row in rows:
            self.round_done(row)

    def round_done(self, row: RoundRow) -> None:
        """Give a round's figures to the trackers that have not got them."""
        self.sent += row.comm.uplink_bytes
        self._log(curves(row, self.sent), row.round, "held")

    def run_done(self, done: int, summary: RunSummary) -> None:
        """Give the final accuracies, and the zero-shot reference, to the trackers. ``done``: as for `start`."""
        if self.series is None:  # nothing was left to train
            self.start(done)
        if summary.accuracy:
            zero_shot = summary.zero_shot.to_json() if summary.zero_shot else {}
            self._log(flat({"final": summary.accuracy.to_json(), "zero_shot": zero_shot}), summary.rounds, "final")

    def close(self) -> None:
        """Let the trackers finish. Not for a run that fails: that ends at once."""
        for name, series in list((self.series or {}).items()):
            with self._spared(name):
                series.tracker.finish()

    def _log(self, values: dict[str, float], round_: int, mark: str) -> None:
        for name, series in list((self.series or {}).items()):
            if getattr(series, mark) < round_:
                with self._spared(name):
                    series.tracker.log(values, step=round_)
                    setattr(series, mark, round_)

    @contextlib.contextmanager
    def _spared(self, name: str) -> Iterator[None]:
        """What goes wrong inside costs no more than this tracker."""
        try:
            yield
        except Exception as error:  # a tracker raises whatever it likes
            (self.series or {}).pop(name, None)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            warn(f"trackers: {name} failed ({reason}); the run goes on without it")

    def _read_ids(self) -> dict[str, str]:
        try:
            ids = untrusted.read_json(self.home / "ids.json")
        except (OSError, ValueError):  # none yet; or broken, and then series begin anew
            return {}
        return {name: value for name, value in ids.items() if isinstance(value, str)} if isinstance(ids, dict) else {}


def curves(row: RoundRow, sent: float) -> dict[str, float]:
    """What is worth a curve of a round's metrics; ``sent``: bytes up, of all rounds so far."""
    comm: dict[str, float | None] = {name: getattr(row.comm, name) for name in ("payload_bytes", "uplink_bytes", "downlink_bytes")}
    comm |= {"uplink_bytes_total": sent, "wasted_bytes": row.comm.wasted_bytes}
    parts = {"accuracy": row.accuracy, "privacy": row.privacy}
    told = {"loss": row.loss, "seconds": row.seconds, "comm": comm} | {name: part.to_json() for name, part in parts.items() if part}
    told |= {"lost": row.lost.numbers if row.lost else {}, "simulated_seconds": row.simulated_seconds, "shared_norm": row.shared_norm}
    return flat(told)


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """{"seconds/train": 0.5, ...}: the finite numbers in nested mappings; trackers group by what stands before a slash."""
    result: dict[str, float] = {}
    for name, value in tree.items():
        tag = above + re.sub(r"[^\w\-. ]", "_", str(name))  # MLflow takes no other characters
        if isinstance(value, Mapping):
            result |= flat(value, f"{tag}/")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            result[tag] = value
    return result


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as trackers take them: text, numbers, truth values."""
    return {name: value if isinstance(value, (str, int, float)) else json.dumps(value) for name, value in settings.items()}


# How each tracker is opened: (folder of all trackers, name of the run, id of an earlier part or "", rounds done) -> its series.


def _tensorboard(home: Path, name: str, id_: str, done: int) -> Series:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(home / "tensorboard"), size_guidance={"scalars": 0})
    known = any((home / "tensorboard").glob("events.out.tfevents.*"))
    scalars = events.Reload().Tags()["scalars"] if known else ()
    # Whatever it has after round `done` is done again: the reader of the files forgets it.
    tracker = tracking.TensorBoardTracker("tensorboard", home, purge_step=done + 1)
    last = {tag: max(e.step for e in events.Scalars(tag)) if tag in scalars else 0 for tag in (EACH, FINAL)}
    return Series(_started(tracker), "tensorboard", min(done, last[EACH]), last[FINAL] if last[FINAL] <= done else 0, settled=bool(id_))


def _wandb(home: Path, name: str, id_: str, done: int) -> Series:
    ours = {"dir": str(home), "name": name, "id": id_ or secrets.token_hex(6), "resume": "allow"}
    theirs = {"dir": "WANDB_DIR", "name": "WANDB_NAME", "id": "WANDB_RUN_ID", "resume": "WANDB_RESUME"}
    options = {option: value for option, value in ours.items() if not os.environ.get(theirs[option])}
    tracker = _started(tracking.WandBTracker(os.environ.get("WANDB_PROJECT") or PROJECT, **options))
    run = tracker.tracker
    # Online, the server knows the step that comes next. Offline nothing is known: each part of the run holds all rounds up to its
    # end, and the last one is all there is to `wandb sync`.
    held = max(0, run.step - 1)
    return Series(tracker, run.id, held, held)


def _mlflow(home: Path, name: str, id_: str, done: int) -> Series:
    # A server that is down may hold up a round for seconds, not for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow

    artifacts = None  # where the server says
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        own = (home / "mlflow").absolute()
        own.mkdir(exist_ok=True)
        artifacts = (own / "artifacts").as_uri()
        mlflow.set_tracking_uri(f"sqlite:///{own / 'mlflow.db'}")
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # where it leaves a copy, which would look like the user's next time
    tracker = _started(tracking.MLflowTracker(PROJECT, artifacts, run_id=id_ or None, run_name=name))
    run, client = tracker.tracker.info.run_id, mlflow.MlflowClient()
    last = {tag: max((metric.step for metric in client.get_metric_history(run, tag)), default=0) for tag in (EACH, FINAL)}
    return Series(tracker, run, last[EACH], last[FINAL], settled=bool(id_))


_OPEN = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


def _started(tracker: GeneralTracker) -> GeneralTracker:
    """Earlier releases of accelerate start a tracker as it is made."""
    if hasattr(tracker, "start"):
        tracker.start()
    return tracker
