"""What a report reads of a run: its summary and metrics, checked; of a run still going on, what can be known by now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pfedmma.comm.ledger import percentile
from pfedmma.records.folder import RunFolder
from pfedmma.system import untrusted
from pfedmma.system.errors import UserError
from pfedmma.system.fields import Fields

Scores = dict[str, float | None]
SECONDS = ("train", "input", "wait", "exchange", "evaluate", "total")


@dataclass(frozen=True)
class Accuracy:
    """``scores``: every number of `pfedmma.accuracy.metrics.summarise` by its name; ``domains``: Local by domain."""

    scores: Scores
    domains: Scores

    @classmethod
    def of(cls, fields: Fields, key: str) -> Accuracy | None:
        if (part := fields.part_or_none(key)) is None:
            return None
        return cls(part.scores(), part.part("domains").scores() if part.has("domains") else {})


@dataclass(frozen=True)
class Member:
    """One client: what it holds and its final ``scores``; ``zero_shot`` None where they are not recorded."""

    id: int
    domain: str
    classes: tuple[str, ...]
    train: int
    scores: Scores
    zero_shot: Scores | None

    @classmethod
    def of(cls, fields: Fields) -> Member:
        scores = {name: fields.score(name) for name in ("local", "base", "novel")}
        zero_shot = fields.part("zero_shot").scores() if fields.has("zero_shot") else None
        domain = fields.text("domain") if fields.has("domain") else ""
        return cls(int(fields.number("id")), domain, fields.texts("classes"), int(fields.number("train_samples")), scores, zero_shot)

    def gain(self, column: str) -> float | None:
        """Points of percent over zero-shot; None where either is unknown."""
        return minus(self.scores.get(column), (self.zero_shot or {}).get(column))


@dataclass(frozen=True)
class Round:
    """One line of ``metrics.jsonl``; ``comm`` holds its numbers by name."""

    number: int
    participants: int
    samples: float
    loss: float | None
    seconds: Scores
    comm: Scores
    accuracy: Accuracy | None

    @classmethod
    def of(cls, fields: Fields) -> Round:
        return cls(
            int(fields.number("round")),
            len(fields.numbers("clients")),
            fields.number("samples"),
            fields.score("loss"),
            fields.part("seconds").scores(),
            fields.part("comm").scores(),
            Accuracy.of(fields, "accuracy"),
        )


@dataclass(frozen=True)
class Report:
    """A run as it is reported. ``label`` tells it from the others of the page.

    ``up``, ``down``: bytes a client and round, None if unknown; ``comm``: the ledger's totals; ``bookkeeping``: purpose -> payload bytes;
    ``alternatives``: name -> bytes each way, a client and round; ``config``: every setting by its dotted name.
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
    comm: Scores
    config: dict[str, str]
    rounds: Sequence[Round]
    label: str = ""
    world_size: int | None = None
    zero_shot: Accuracy | None = None
    members: Sequence[Member] = ()
    bookkeeping: Scores = field(default_factory=dict)
    alternatives: dict[str, float] = field(default_factory=dict)
    images_per_second: float | None = None
    environment: dict[str, str] = field(default_factory=dict)


def read_all(paths: Sequence[str]) -> list[Report]:
    """The runs in these folders, each with a label of its own.

    Raises:
        UserError: a folder holds no run, nothing to report yet, or a file that is not as training writes it.
    """
    runs = [read(RunFolder(path)) for path in paths]
    candidates = (
        [run.method for run in runs],
        [f"{run.method}, seed {run.seed}" for run in runs],
        [run.path.resolve().name for run in runs],
        list(paths),
    )
    labels = next((labels for labels in candidates if len(set(labels)) == len(labels)), [f"run {i + 1}" for i in range(len(runs))])
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def read(folder: RunFolder) -> Report:
    """One run, finished or not."""
    folder.require_run()
    rounds = [Round.of(Fields(line, f"{folder.metrics}: round {line['round']}")) for line in folder.read_metrics()]
    if rounds and not folder.summary.exists():
        return _unfinished(folder, rounds)
    return _finished(folder, Fields(folder.read_summary(), str(folder.summary)), rounds)


def _finished(folder: RunFolder, summary: Fields, rounds: Sequence[Round]) -> Report:
    comm, versions = summary.part("comm"), summary.part("versions")
    bookkeeping = comm.part("bookkeeping") if comm.has("bookkeeping") else Fields({}, summary.place)
    config = _flat(summary.part("config").values) if summary.has("config") else _saved_config(folder)
    alternatives = summary.part("alternatives").scores() if summary.has("alternatives") else {}
    return Report(
        path=folder.path,
        finished=True,
        method=summary.text("method"),
        dataset=summary.text("dataset"),
        protocol=summary.text("protocol"),
        backbone=summary.text("backbone"),
        seed=int(summary.number("seed")),
        world_size=int(summary.number("world_size")),
        accuracy=Accuracy.of(summary, "accuracy"),
        zero_shot=Accuracy.of(summary, "zero_shot"),
        members=[Member.of(fields) for fields in summary.parts("per_client")],
        up=summary.number("bytes_per_client_round"),
        down=summary.number("bytes_down_per_client_round") if summary.has("bytes_down_per_client_round") else None,
        comm=comm.scores(),
        bookkeeping={purpose: bookkeeping.part(purpose).number("payload_bytes") for purpose in bookkeeping.values},
        alternatives={name: value for name, value in alternatives.items() if value is not None},
        images_per_second=summary.part("throughput").score("train_images_per_second"),
        environment={key: summary.text(key) for key in ("precision", "device") if summary.has(key)}
        | {name: versions.text(name) for name in versions.values},
        config=config,
        rounds=rounds,
    )


def _unfinished(folder: RunFolder, rounds: Sequence[Round]) -> Report:
    """What configuration and metrics say of a run without a summary: curves, bytes and times, the newest accuracy."""
    config = _saved_config(folder)
    names = {key: config.get(key, "unknown") for key in ("method.name", "data.name", "data.protocol", "backbone.name")}
    totals = ("payload_bytes", "uplink_bytes", "downlink_bytes", "ring_bytes_per_rank", "collectives")
    last = rounds[-1]
    times = [us for row in rounds if (us := row.comm.get("time_us")) is not None]
    each = {key: ratio(last.comm.get(f"{key}_bytes"), last.participants) for key in ("uplink", "downlink")}
    return Report(
        path=folder.path,
        finished=False,
        method=names["method.name"],
        dataset=names["data.name"],
        protocol=names["data.protocol"],
        backbone=names["backbone.name"],
        seed=int(config["seed"]) if config.get("seed", "").isdecimal() else 0,
        accuracy=next((row.accuracy for row in reversed(rounds) if row.accuracy), None),
        up=each["uplink"],
        down=each["downlink"],
        comm=dict[str, float | None]({key: sum(row.comm.get(key) or 0.0 for row in rounds) for key in totals})
        | {"time_us_p50": percentile(times, 0.5), "time_us_p95": percentile(times, 0.95)},
        config=config,
        rounds=rounds,
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


def with_looks(runs: Sequence[Report]) -> list[tuple[int, Report]]:
    """(number of its look, run) of each run that has curves of its own: beside others, a zero-shot run is the reference."""
    return [(i, run) for i, run in enumerate(runs) if run.rounds and (run.method != "zeroshot" or len(runs) == 1)]


def minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b
