"""What a report reads of a run: its summary and metrics, checked; of a run still going on, what can be known by now."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pfedmma.comm.ledger import percentile
from pfedmma.records import lock, lost
from pfedmma.records.communication import RunComm
from pfedmma.records.folder import RunFolder
from pfedmma.records.origin import Origin
from pfedmma.records.rows import Accuracy, ClientResult, NewClients, RoundRow, RunSummary
from pfedmma.records.selected import Selected
from pfedmma.system import untrusted
from pfedmma.system.errors import UserError
from pfedmma.system.fields import known_sum

FINISHED, GOING_ON, INTERRUPTED = "finished", "going on", "interrupted"
WHEN = "%Y-%m-%d %H:%M UTC"


@dataclass(frozen=True)
class Report:
    """A run as it is reported. ``label`` tells it from the others of the page; ``name`` is its method's, or its label in a comparison.

    ``group``, ``look``: name of the runs that differ in their seed alone, and how their lines look. ``state``: finished, going on or
    interrupted. ``written``: when the newest of its files was, UTC.

    ``up``, ``down``: bytes a client and round, None if unknown; ``comm``: the ledger's totals so far; ``alternatives``: name -> bytes each
    way, a client and round; ``config``: every setting by its dotted name.
    """

    path: Path
    finished: bool
    method: str
    dataset: str
    protocol: str
    backbone: str
    seed: int
    accuracy: Accuracy | None
    up: float | None
    down: float | None
    comm: RunComm
    config: dict[str, str]
    rounds: Sequence[RoundRow]
    label: str = ""
    name: str = ""
    group: str = ""
    look: int = 0
    state: str = FINISHED
    written: str = ""
    origin: Origin | None = None
    version: str = ""
    world_size: int | None = None
    zero_shot: Accuracy | None = None
    clients: Sequence[ClientResult] = ()
    alternatives: dict[str, int] = field(default_factory=dict)
    images_per_second: float | None = None
    selected: Selected | None = None  # which round's accuracy this is; None: that of the last
    environment: dict[str, str] = field(default_factory=dict)
    new_clients: NewClients | None = None
    private: int | None = None  # trained parameters of a client that never travel; None if unknown
    lost: dict[str, int] | None = None  # and the simulated seconds: as in the summary, of all rounds so far
    simulated_seconds: float | None = None

    @property
    def is_reference(self) -> bool:
        """Whether it is zero-shot CLIP, which other runs are compared with."""
        return self.method == "zeroshot"

    @property
    def seconds(self) -> float | None:
        """Of all rounds, evaluation included; None where they are not recorded."""
        parts = ("train", "wait", "exchange", "fine_tune", "evaluate")
        return sum(row.seconds.get("total") or row.spent(*parts) for row in self.rounds) or None


def read_all(paths: Sequence[str | Path]) -> list[Report]:
    """The runs in these folders, each with a label of its own.

    Raises:
        UserError: a folder holds no run, nothing to report yet, or a file that is not as training writes it.
    """
    runs = [read(RunFolder(path)) for path in paths]
    return labelled(runs, [run.method for run in runs])


def labelled(runs: Sequence[Report], names: Sequence[str]) -> list[Report]:
    """The runs, whose methods are called ``names``, with labels that tell them apart."""
    runs = [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    candidates = (
        [run.name for run in runs],
        [f"{run.name}, seed {run.seed}" for run in runs],
        [run.path.resolve().name for run in runs],
        [str(run.path) for run in runs],
    )
    labels = next((labels for labels in candidates if len(set(labels)) == len(labels)), [f"run {i + 1}" for i in range(len(runs))])
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def read(folder: RunFolder) -> Report:
    """One run, finished or not."""
    folder.require_run()
    rounds = folder.read_metrics()
    if rounds and not folder.summary.exists():
        return _unfinished(folder, rounds)
    return of_finished(folder, folder.read_summary(), rounds)


def of_finished(folder: RunFolder, summary: RunSummary, rounds: Sequence[RoundRow]) -> Report:
    """The run in ``folder``, whose summary and rounds are read already."""
    here = {"precision": summary.precision, "device": summary.device}
    return Report(
        path=folder.path,
        finished=True,
        written=_written(folder.summary),
        origin=summary.origin,
        version=summary.version,
        method=summary.method,
        dataset=summary.dataset,
        protocol=summary.protocol,
        backbone=summary.backbone,
        seed=summary.seed,
        world_size=summary.world_size,
        accuracy=summary.accuracy,
        zero_shot=summary.zero_shot,
        clients=summary.per_client,
        up=summary.bytes_per_client_round,
        down=summary.bytes_down_per_client_round,
        comm=summary.comm,
        alternatives=summary.alternatives,
        images_per_second=summary.throughput.train_images_per_second,
        selected=summary.selected,
        environment={name: value for name, value in here.items() if value} | summary.versions,
        new_clients=summary.new_clients,
        private=summary.trained_parameters - summary.shared_parameters,
        lost=summary.lost,
        simulated_seconds=summary.simulated_seconds,
        config=_flat(summary.config) if summary.config else _saved_config(folder),
        rounds=[row.tested_on(summary.split) for row in rounds],
    )


def _unfinished(folder: RunFolder, rounds: Sequence[RoundRow]) -> Report:
    """What configuration and metrics say of a run without a summary: curves, bytes and times, the newest accuracy."""
    config = _saved_config(folder)
    names = {key: config.get(key, "unknown") for key in ("method.name", "data.name", "data.protocol", "backbone.name")}
    last = next((row for row in reversed(rounds) if row.clients), rounds[-1])  # a round may have had nobody
    tested = [row for row in rounds if row.accuracy]
    split = (tested[-1].split if tested else None) or "test"
    return Report(
        path=folder.path,
        finished=False,
        state=GOING_ON if lock.in_use(folder.path) else INTERRUPTED,
        written=_written(folder.metrics),
        method=names["method.name"],
        dataset=names["data.name"],
        protocol=names["data.protocol"],
        backbone=names["backbone.name"],
        seed=int(config["seed"]) if config.get("seed", "").isdecimal() else 0,
        accuracy=tested[-1].accuracy if tested else None,
        up=ratio(last.comm.uplink_bytes, len(last.clients)),
        down=ratio(last.comm.downlink_bytes, len(last.clients)),
        comm=_totals(rounds),
        lost=lost.together(row.lost for row in rounds),
        simulated_seconds=known_sum(row.simulated_seconds for row in rounds),
        config=config,
        rounds=[row.tested_on(split) for row in rounds],
    )


def _written(file: Path) -> str:
    """When a file was; empty where it has been taken away."""
    return time.strftime(WHEN, time.gmtime(file.stat().st_mtime)) if file.exists() else ""


def _totals(rounds: Sequence[RoundRow]) -> RunComm:
    """What the rounds moved together; how fast is not known before the end."""
    times = [row.comm.time_us for row in rounds]
    return RunComm(
        payload_bytes=sum(row.comm.payload_bytes for row in rounds),
        uplink_bytes=sum(row.comm.uplink_bytes for row in rounds),
        downlink_bytes=sum(row.comm.downlink_bytes for row in rounds),
        ring_bytes_per_rank=sum(row.comm.ring_bytes_per_rank for row in rounds),
        collectives=sum(row.comm.collectives for row in rounds),
        time_us_p50=percentile(times, 0.5),
        time_us_p95=percentile(times, 0.95),
        algbw_gb_per_s=None,
        busbw_gb_per_s=None,
        wasted_bytes=known_sum(row.comm.wasted_bytes for row in rounds),
        key_exchange_bytes_modelled=known_sum(row.comm.key_exchange_bytes_modelled for row in rounds),
    )


def _saved_config(folder: RunFolder) -> dict[str, str]:
    """``config.yaml`` by dotted names; empty where there is none."""
    if not folder.config.exists():
        return {}
    try:
        tree = untrusted.read_yaml(folder.config)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder.config}: {error}; the file as training writes it would be right") from None
    flat = _flat(tree) if isinstance(tree, dict) else {}
    own = f"method.{flat.get('method.name')}."
    others = {name for name in flat if name.startswith("method.") and name.count(".") == 2 and not name.startswith(own)}
    return {name: value for name, value in flat.items() if name not in ("run_dir", "resume", *others)}


def _flat(tree: dict[Any, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: _plain(value)}
    return flat


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def same_setting(runs: Sequence[Report]) -> list[list[Report]]:
    """The runs in groups that share a zero-shot reference: data, protocol, backbone and seed."""
    groups: dict[tuple[str | int, ...], list[Report]] = {}
    for run in runs:
        groups.setdefault((run.dataset, run.protocol, run.backbone, run.seed), []).append(run)
    return list(groups.values())


def with_curves(runs: Sequence[Report]) -> list[Report]:
    """Each run that has curves of its own: beside others, a zero-shot run is the reference."""
    return [run for run in runs if run.rounds and (not run.is_reference or len(runs) == 1)]


def folders_below(folder: Path) -> list[Path]:
    """The folders of runs in ``folder`` and below, in order of their names; nothing in a run's own folder is searched."""
    found: list[Path] = []
    for inside, below, files in os.walk(folder):
        if "metrics.jsonl" in files or ("summary.json" in files and "config.yaml" in files):
            found.append(Path(inside))
            below.clear()
        below[:] = sorted(name for name in below if not name.startswith("."))
    return found


def minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b
