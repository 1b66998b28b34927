"""What stands in a run's ``metrics.jsonl`` and ``summary.json``: one definition, by which both files are written and read.

``to_json`` gives plain values, with the keys in the order of the files. ``from_fields`` reads them back; whoever wrote the file, a
`UserError` names what is not as it must be. Accuracies are percent, times seconds unless their name says otherwise.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from pfedmma.records.communication import RoundComm, RunComm
from pfedmma.records.evaluated import ClientScores, Diagnostics
from pfedmma.records.lost import Lost
from pfedmma.records.origin import Origin, Throughput
from pfedmma.records.privacy import RoundPrivacy
from pfedmma.records.selected import Selected
from pfedmma.system.errors import UserError
from pfedmma.system.fields import Fields, without_nulls
from pfedmma.version import VERSION

Scores = dict[str, float | None]  # None where there is nothing to test

FORMAT = 1  # of both files; version 0.1.0 wrote no such number, which is format 0
COLUMNS = ("local", "base", "novel", "unseen")  # what a client is tested on
IN_HM = COLUMNS[:3]  # HM is their harmonic mean
HEADLINE = ("local", "base", "novel", "hm", "cm")  # the scores of a short table
TITLES = {
    "local": "Local",
    "base": "Base",
    "novel": "Novel",
    "hm": "HM",
    "cm": "CM",
    "hm_base_novel": "HM of Base and Novel",
    "unseen": "Unseen domain",
}


def combined(local: float | None, hm_base_novel: float | None) -> float | None:
    """CM = (Local + HM(Base, Novel)) / 2: how well clients do at home and elsewhere, each counted half; None where one is missing."""
    return None if local is None or hm_base_novel is None else (local + hm_base_novel) / 2


@dataclass(frozen=True)
class Accuracy:
    """Averages over clients and their spread, by name as `pfedmma.accuracy.metrics.summarise` says; ``domains``: Local by domain.

    ``diagnostics``: None unless ``evaluation.diagnostics`` asked for them.
    """

    scores: Scores
    domains: Scores = field(default_factory=dict)
    diagnostics: Diagnostics | None = None

    def score(self, name: str) -> float | None:
        """A score; None if there is none of that name. CM follows from the others where an earlier version has not written it."""
        if name == "cm" and name not in self.scores:
            return combined(self.scores.get("local"), self.scores.get("hm_base_novel"))
        return self.scores.get(name)

    def diagnostic(self, name: str) -> float | None:
        """One of `DIAGNOSTICS`; None if it is not known."""
        return getattr(self.diagnostics, name) if self.diagnostics else None

    def to_json(self) -> dict[str, Any]:
        last: dict[str, Any] = {"domains": self.domains} if self.domains else {}
        last |= {name: value for name, value in self.scores.items() if name == "domain_average"}
        last |= {"diagnostics": self.diagnostics.to_json()} if self.diagnostics else {}
        return {name: value for name, value in self.scores.items() if name not in last} | last

    @classmethod
    def from_fields(cls, fields: Fields) -> Accuracy:
        diagnostics = Diagnostics.from_fields(fields.part("diagnostics")) if fields.has("diagnostics") else None
        return cls(fields.scores(), fields.part("domains").scores() if fields.has("domains") else {}, diagnostics)


@dataclass(frozen=True)
class RoundRow:
    """One line of ``metrics.jsonl``: a round, its participants, and ``seconds`` of its parts by name.

    ``split``: of the images that the clients were tested on; None where nothing was evaluated, or a version before 0.2.0 wrote the row.
    ``validation``: accuracies on the validation split, where they select the round that is reported.
    ``per_client``: None where nothing was evaluated, or more clients were tested than ``evaluation.per_client``. ``shared_norm``: of what
    clients receive next; None where nothing is exchanged. ``privacy``: None where no noise is added. ``loss``: None of a round without
    participants. ``lost``: whose upload did not count, None where none can be lost. ``simulated_seconds``: None where none are simulated.
    """

    round: int
    clients: tuple[int, ...]
    samples: int
    loss: float | None
    seconds: Scores
    comm: RoundComm
    accuracy: Accuracy | None = None
    split: str | None = None
    validation: Accuracy | None = None
    per_client: ClientScores | None = None
    shared_norm: float | None = None
    privacy: RoundPrivacy | None = None
    lost: Lost | None = None
    simulated_seconds: float | None = None

    def tested_on(self, split: str) -> RoundRow:
        """The row, without accuracies where they are of another split; a row that does not say its split is taken to be of this one."""
        return self if self.split in (None, split) else dataclasses.replace(self, accuracy=None, split=None, per_client=None)

    def spent(self, *parts: str) -> float:
        """Seconds of some parts together; a part that is not recorded counts nothing."""
        return sum(self.seconds.get(name) or 0.0 for name in parts)

    @property
    def trained(self) -> float:
        """Seconds of the round itself: without testing its clients, and without their fine-tuning after the last one."""
        return self.spent("total") - self.spent("evaluate", "fine_tune")

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self) | {"clients": list(self.clients), "comm": self.comm.to_json()}
        parts: dict[str, Any] = {"accuracy": self.accuracy, "validation": self.validation, "per_client": self.per_client}
        parts |= {"privacy": self.privacy, "lost": self.lost}
        values |= {name: part and part.to_json() for name, part in parts.items()}
        return without_nulls(values, ("validation", "per_client", "shared_norm", "privacy", "lost", "simulated_seconds"))

    @classmethod
    def from_fields(cls, fields: Fields) -> RoundRow:
        require_known_format(fields)
        return cls(
            round=fields.whole("round"),
            clients=fields.wholes("clients"),
            samples=fields.whole("samples"),
            loss=fields.score("loss"),
            seconds=fields.part("seconds").scores(),
            comm=RoundComm.from_fields(fields.part("comm")),
            accuracy=_accuracy(fields, "accuracy"),
            split=fields.text("split") if fields.has("split") else None,
            validation=_accuracy(fields, "validation") if fields.has("validation") else None,
            per_client=ClientScores.from_fields(fields.part("per_client")) if fields.has("per_client") else None,
            shared_norm=fields.number("shared_norm") if fields.has("shared_norm") else None,
            privacy=RoundPrivacy.from_fields(fields.part("privacy")) if fields.has("privacy") else None,
            lost=Lost.from_fields(fields.part("lost")) if fields.has("lost") else None,
            simulated_seconds=_simulated(fields),
        )


@dataclass(frozen=True)
class ClientResult:
    """What a client holds and reaches, one of ``per_client``. ``scores``: by `COLUMNS`; ``zero_shot``: None where it is not known."""

    id: int
    domain: str | None
    classes: tuple[str, ...]
    train_samples: int
    test_samples: int
    scores: Scores
    zero_shot: Scores | None

    def gain(self, column: str) -> float | None:
        """Points of percent over zero-shot; None where either is unknown."""
        after, before = self.scores.get(column), (self.zero_shot or {}).get(column)
        return None if after is None or before is None else after - before

    def to_json(self) -> dict[str, Any]:
        values = {"id": self.id, "domain": self.domain, "classes": list(self.classes)}
        values |= {"train_samples": self.train_samples, "test_samples": self.test_samples}
        return values | self.scores | {"zero_shot": self.zero_shot}

    @classmethod
    def from_fields(cls, fields: Fields) -> ClientResult:
        return cls(
            id=fields.whole("id"),
            domain=fields.text_or_none("domain"),
            classes=fields.texts("classes"),
            train_samples=fields.whole("train_samples"),
            test_samples=fields.whole("test_samples"),
            scores={name: fields.score(name) for name in COLUMNS},
            zero_shot=fields.part("zero_shot").scores() if fields.has("zero_shot") else None,
        )


@dataclass(frozen=True)
class NewClientsRow:
    """New clients after ``epochs`` of training alone, with what is exchanged ``shared``: frozen or free.

    ``per_client``: what each reaches, by `COLUMNS`, in the order of `NewClients.ids`.
    """

    shared: str
    epochs: int
    accuracy: Accuracy
    per_client: tuple[Scores, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"shared": self.shared, "epochs": self.epochs, "accuracy": self.accuracy.to_json(), "per_client": list(self.per_client)}

    @classmethod
    def from_fields(cls, fields: Fields) -> NewClientsRow:
        per_client = tuple(client.scores() for client in fields.parts("per_client")) if fields.has("per_client") else ()
        return cls(fields.text("shared"), fields.whole("epochs"), Accuracy.from_fields(fields.part("accuracy")), per_client)


@dataclass(frozen=True)
class NewClients:
    """Clients that took part in no round, after the last one: their ``ids``, zero-shot, and a row for each way and length of training.

    ``start``: what their private tensors began as, see the setting. ``bytes``: purpose -> ``uplink_bytes`` and ``downlink_bytes`` together.
    """

    ids: tuple[int, ...]
    start: str
    zero_shot: Accuracy
    rows: tuple[NewClientsRow, ...]
    bytes: dict[str, dict[str, int]]

    def to_json(self) -> dict[str, Any]:
        values = {"ids": list(self.ids), "start": self.start, "zero_shot": self.zero_shot.to_json()}
        return values | {"rows": [row.to_json() for row in self.rows], "bytes": self.bytes}

    @classmethod
    def from_fields(cls, fields: Fields) -> NewClients:
        moved = fields.part("bytes")
        each = {purpose: moved.part(purpose) for purpose in moved.values}
        return cls(
            ids=fields.wholes("ids"),
            start=fields.text("start"),
            zero_shot=Accuracy.from_fields(fields.part("zero_shot")),
            rows=tuple(NewClientsRow.from_fields(row) for row in fields.parts("rows")),
            bytes={purpose: {name: part.whole(name) for name in ("uplink_bytes", "downlink_bytes")} for purpose, part in each.items()},
        )


@dataclass(frozen=True)
class RunSummary:
    """``summary.json``: what a finished run came to.

    ``alternatives``: bytes each way, a client and round, of what might travel instead; ``config``: every setting by its dotted name;
    ``split``: of the images on which clients were tested. ``selected``: which round's accuracies these are, None for those of the last.
    ``lost``: how many uploads did not count, by why; ``simulated_seconds`` of all rounds; as in `RoundRow`.
    A run that was made before 0.1.0 may lack them, ``precision``, ``device`` and ``bytes_down_per_client_round``.
    """

    method: str
    dataset: str
    protocol: str
    backbone: str
    precision: str
    seed: int
    skipped_images: int
    rounds: int
    world_size: int
    device: str
    accuracy: Accuracy | None
    zero_shot: Accuracy | None
    per_client: tuple[ClientResult, ...]
    trained_parameters: int
    shared_parameters: int
    bytes_per_client_round: int
    bytes_down_per_client_round: int | None
    alternatives: dict[str, int]
    comm: RunComm
    throughput: Throughput
    versions: dict[str, str]
    config: dict[str, Any]
    split: str = "test"
    selected: Selected | None = None
    format: int = FORMAT
    version: str = VERSION
    new_clients: NewClients | None = None  # absent in the file where there are none
    privacy: RoundPrivacy | None = None  # after the last round; absent where no noise is added
    lost: dict[str, int] | None = None
    simulated_seconds: float | None = None
    origin: Origin | None = None  # absent in the files of earlier versions

    def to_json(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"accuracy": self.accuracy, "zero_shot": self.zero_shot, "comm": self.comm}
        parts |= {"new_clients": self.new_clients, "privacy": self.privacy}
        values = dataclasses.asdict(self) | {name: part and part.to_json() for name, part in parts.items()}
        values |= {"per_client": [client.to_json() for client in self.per_client]}
        return without_nulls(values, ("selected", "new_clients", "privacy", "lost", "simulated_seconds", "origin"))

    @classmethod
    def from_fields(cls, fields: Fields) -> RunSummary:
        require_known_format(fields)
        versions, down = fields.part("versions"), "bytes_down_per_client_round"
        alternatives = fields.part("alternatives") if fields.has("alternatives") else Fields({}, fields.where)
        lost = fields.part("lost") if fields.has("lost") else None
        return cls(
            method=fields.text("method"),
            dataset=fields.text("dataset"),
            protocol=fields.text("protocol"),
            backbone=fields.text("backbone"),
            precision=fields.text("precision") if fields.has("precision") else "",
            seed=fields.whole("seed"),
            skipped_images=fields.whole("skipped_images"),
            rounds=fields.whole("rounds"),
            world_size=fields.whole("world_size"),
            device=fields.text("device") if fields.has("device") else "",
            accuracy=_accuracy(fields, "accuracy"),
            zero_shot=_accuracy(fields, "zero_shot"),
            per_client=tuple(ClientResult.from_fields(client) for client in fields.parts("per_client")),
            trained_parameters=fields.whole("trained_parameters"),
            shared_parameters=fields.whole("shared_parameters"),
            bytes_per_client_round=fields.whole("bytes_per_client_round"),
            bytes_down_per_client_round=fields.whole(down) if fields.has(down) else None,
            alternatives={name: alternatives.whole(name) for name in alternatives.values},
            comm=RunComm.from_fields(fields.part("comm")),
            throughput=Throughput.from_fields(fields.part("throughput")),
            versions={name: versions.text(name) for name in versions.values},
            config=fields.part("config").values if fields.has("config") else {},
            split=fields.text("split") if fields.has("split") else _split(fields),
            selected=Selected.from_fields(fields.part("selected")) if fields.has("selected") else None,
            format=fields.whole("format") if fields.has("format") else 0,
            version=fields.text("version") if fields.has("version") else "",
            new_clients=NewClients.from_fields(fields.part("new_clients")) if fields.has("new_clients") else None,
            privacy=RoundPrivacy.from_fields(fields.part("privacy")) if fields.has("privacy") else None,
            lost={name: lost.whole(name) for name in lost.values} if lost else None,
            simulated_seconds=_simulated(fields),
            origin=Origin.below(fields, "origin"),
        )


def require_known_format(fields: Fields) -> None:
    """Raise a `UserError` that names the version that wrote a summary or a metrics row which this version cannot read."""
    written = fields.whole("format") if fields.has("format") else 0
    if written > FORMAT:
        by = f"pfedmma {fields.text('version')}" if fields.has("version") else "a later pfedmma"
        raise UserError(
            f"{fields.where} is of format {written}, written by {by}; pfedmma {VERSION} reads formats up to {FORMAT}: "
            "read it with the version that wrote it, or a later one"
        )


def _simulated(fields: Fields) -> float | None:
    return fields.number("simulated_seconds") if fields.has("simulated_seconds") else None


def _split(fields: Fields) -> str:
    """The split that a summary of an earlier version was made on."""
    return str(fields.part("config").values.get("evaluation.split", "test")) if fields.has("config") else "test"


def _accuracy(fields: Fields, key: str) -> Accuracy | None:
    part = fields.part_or_none(key)
    return None if part is None else Accuracy.from_fields(part)
