"""What a checkpoint holds. ``checkpoints/round-000012/`` has

- ``server.safetensors``: ``initial`` [P], the state in which clients start; ``server.<name>``, the server's state; and ``text.<test set>``,
  text features that all clients are tested with, where there are such;
- ``clients-*.safetensors`` of each rank that wrote it: ``<id>.private``, ``<id>.optimizer.<name>``, ``<id>.personal`` and ``<id>.control``
  (what is a client's own);
- ``manifest.json``: `Manifest`, with the hash of each of these files and one of itself.

Tensors are keyed by client id, never by rank, so that any number of ranks can read them. Nothing is ever unpickled.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfedmma.comm.ledger import Ledger
from pfedmma.data.partition.federated import FederatedData, held_classes
from pfedmma.records.rows import COLUMNS, Accuracy
from pfedmma.records.selected import LAST, Selected
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import ANSWERS, RULES, SERVERS
from pfedmma.system import untrusted
from pfedmma.system.errors import UserError
from pfedmma.system.fields import Fields
from pfedmma.system.files import to_json
from pfedmma.system.options import shown
from pfedmma.version import VERSION

FORMAT = "pfedmma-checkpoint/2"
EARLIER = "pfedmma-checkpoint/1"  # of version 0.1.0: the server's tensors have other names, see `pfedmma.records.checkpoint.read`
SERVER_FILE = "server.safetensors"
_NAME = re.compile(r"round-([0-9]{6,15})")
_SHARD = re.compile(r"server\.safetensors|clients-[0-9]{5,}-[0-9]{5,}\.safetensors")


class Damaged(Exception):
    """A checkpoint that is not what its manifest says."""


class LaterFormat(UserError):
    """A whole checkpoint in a format that this version does not know. An older one is no substitute: rounds would be lost unasked."""


def folder_of(root: Path, round_: int) -> Path:
    return root / f"round-{round_:06d}"


def rounds(root: Path) -> list[int]:
    """Rounds of the checkpoints below ``root``, newest first."""
    if not root.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in root.iterdir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


@dataclass(frozen=True)
class Classes:
    """A run's classes, for who has the run and not its data. ``held`` [clients, base] bool: which base classes each client holds."""

    base: tuple[str, ...]
    novel: tuple[str, ...]
    held: Tensor

    @classmethod
    def from_data(cls, data: FederatedData) -> Classes:
        base = data.base.classes
        return cls(base, data.novel.classes if data.novel else (), held_classes(data.clients, len(base)))

    def of_client(self, client: int) -> tuple[str, ...]:
        """The base classes that a client holds."""
        return tuple(name for name, has in zip(self.base, self.held[client].tolist(), strict=True) if has)

    def to_json(self) -> dict[str, Any]:
        """``held`` as base64 of its bits, which stay small with many clients."""
        packed = base64.b64encode(np.packbits(self.held.numpy()).tobytes()).decode()
        return {"base": list(self.base), "novel": list(self.novel), "held": packed}

    @classmethod
    def from_json(cls, value: Any, clients: int) -> Classes:
        """The inverse of `to_json`. Raises ValueError, TypeError or LookupError if it is something else."""
        base, novel = value["base"], value["novel"]
        if not all(isinstance(name, str) for name in [*base, *novel]):
            raise ValueError("a class in it is no name")
        packed = np.frombuffer(base64.b64decode(value["held"], validate=True), dtype=np.uint8)
        if len(packed) != -(-clients * len(base) // 8):
            raise ValueError("it is of another number of clients")
        bits = np.unpackbits(packed, count=clients * len(base)).reshape(clients, len(base))
        return cls(tuple(base), tuple(novel), torch.from_numpy(bits.astype(bool)))


@dataclass(frozen=True)
class Progress:
    """What besides tensors a resumed run and an exported client need.

    - ``config``: the settings that identify the run, by dotted name. ``ledger``: its totals. ``template``: of the class prompts.
    - ``reads``: of how many others a client reads. ``answers``: see `pfedmma.stack.rules`.
    - ``zero_shot``: accuracies of CLIP as it comes, and ``zero_shot_table`` [clients, 4] those of each client, both of what
      ``tested_on`` says (split and clients); None where nothing is evaluated.
    - ``data``: their fingerprint, see `pfedmma.data.fingerprint`. ``torch_version``: what the run was made with.

    ``tested_on``, ``data``, ``torch_version`` and ``classes`` are None in checkpoints of version 0.1.0.
    ``backbone``: what tells its frozen weights from others, see `pfedmma.clip.fingerprint`; None in old checkpoints, too.
    ``select``: how the round that is reported is selected; ``selected``: the best so far, and ``selected_table`` [clients, 4] its
    accuracies, both None before there are any.
    """

    config: dict[str, Any]
    ledger: dict[str, Any]
    template: str
    reads: int
    answers: str
    zero_shot: Accuracy | None
    zero_shot_table: Tensor | None
    tested_on: str | None
    data: dict[str, Any] | None
    torch_version: str | None
    classes: Classes | None
    backbone: dict[str, str] | None = None
    select: str = LAST
    selected: Selected | None = None
    selected_table: Tensor | None = None

    def to_json(self) -> dict[str, Any]:
        """Tables as base64 of little-endian fp64, which stays small and quick with many clients."""
        return {
            "config": self.config,
            "ledger": self.ledger,
            "template": self.template,
            "reads": self.reads,
            "answers": self.answers,
            "zero_shot": self.zero_shot and self.zero_shot.to_json(),
            "zero_shot_clients": _packed(self.zero_shot_table),
            "tested_on": self.tested_on,
            "data": self.data,
            "torch": self.torch_version,
            "classes": self.classes and self.classes.to_json(),
            "backbone": self.backbone,
            "select": self.select,
            "selected": self.selected and dataclasses.asdict(self.selected),
            "selected_clients": _packed(self.selected_table),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Progress:
        """The inverse of `to_json`. Raises `Damaged` if something is missing, or of another kind."""
        kinds: dict[str, Any] = {"config": dict, "template": str, "reads": int, "ledger": dict, "zero_shot": (dict, type(None))}
        wrong = next((name for name, kind in kinds.items() if name not in value or not isinstance(value[name], kind)), None)
        if wrong is not None or value["reads"] < 0 or not _all_numbers(value["ledger"]):
            raise Damaged(f"the progress in manifest.json has no {wrong or 'numbers that can be'}")
        answers, clients = value.get("answers", SERVERS), value["config"].get("data.clients")
        if answers not in ANSWERS or type(clients) is not int or clients < 1:
            raise Damaged("the progress in manifest.json does not say how many clients there are, or what they answer with")
        table, classes, tested_on = value.get("zero_shot_clients"), value.get("classes"), value.get("tested_on")
        if tested_on is not None and not isinstance(tested_on, str):
            raise Damaged("the progress in manifest.json does not say what its accuracies are of")
        backbone = value.get("backbone")
        if backbone is not None and not (isinstance(backbone, dict) and all(isinstance(text, str) for text in backbone.values())):
            raise Damaged("the progress in manifest.json does not say what its frozen weights are")
        try:
            tried = Ledger(1)
            tried.restore(value["ledger"])
            tried.totals()
            known = None if classes is None else Classes.from_json(classes, clients)
            accuracies = None if table is None else _table(table, clients)
            zero_shot = None if value["zero_shot"] is None else Accuracy.from_fields(Fields(value["zero_shot"], "zero_shot"))
            selected, selected_table = _selected(value, clients)
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise Damaged(f"the ledger, the classes or the accuracies in manifest.json are none: {error}") from None
        return cls(
            config=value["config"],
            ledger=value["ledger"],
            template=value["template"],
            reads=value["reads"],
            answers=answers,
            zero_shot=zero_shot,
            zero_shot_table=accuracies,
            tested_on=tested_on,
            data=value.get("data"),
            torch_version=value.get("torch"),
            classes=known,
            backbone=backbone,
            select=str(value.get("select", LAST)),
            selected=selected,
            selected_table=selected_table,
        )


@dataclass(frozen=True)
class Manifest:
    """One checkpoint: a client's tensors and how they lie, the files with their hashes, and the run's progress."""

    round: int
    layout: Layout
    shards: dict[str, str]
    progress: Progress
    format: str = FORMAT

    def to_json(self) -> dict[str, Any]:
        """With the version that writes it, and a digest of it all."""
        content = {
            "format": self.format,
            "version": VERSION,
            "round": self.round,
            "layout": {name: list(shape) for name, shape in self.layout.shapes.items()},
            "exchange": self.layout.exchange,
            "frozen": list(self.layout.frozen),
            "shards": self.shards,
            "progress": self.progress.to_json(),
        }
        return content | {"digest": _digest(content)}


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint, its fields checked. Raises `Damaged`, or `LaterFormat`."""
    content = _content(folder)
    content.setdefault("frozen", [])  # that of an earlier version, which froze nothing
    kinds = {"round": int, "layout": dict, "exchange": dict, "frozen": list, "shards": dict, "progress": dict}
    for name, kind in kinds.items():
        if type(content.get(name)) is not kind:
            raise Damaged(f"manifest.json has no {name}")
    if folder_of(folder.parent, content["round"]) != folder:
        raise Damaged(f"manifest.json is of round {content['round']}")
    if SERVER_FILE not in content["shards"] or not all(_SHARD.fullmatch(name) for name in content["shards"]):
        raise Damaged(f"manifest.json names no {SERVER_FILE}, or a file that is no part of a checkpoint")
    layout = _layout(folder, content["layout"], content["exchange"], content["frozen"])
    progress = Progress.from_json(content["progress"])
    return Manifest(content["round"], layout, content["shards"], progress, content["format"])


def _content(folder: Path) -> dict[str, Any]:
    """What manifest.json holds, in a format that is known here. ``format``, ``version`` and ``digest`` mean the same in every format."""
    try:
        content = untrusted.read_json(folder / "manifest.json")
    except (OSError, ValueError) as error:
        raise Damaged(f"manifest.json: {error}") from None
    if not isinstance(content, dict) or type(content.get("format")) is not str:
        raise Damaged("manifest.json has no format")
    if content.pop("digest", None) != _digest(content):
        raise Damaged("manifest.json does not have the digest that it gives")
    if content["format"] not in (FORMAT, EARLIER):
        by = f" by pfedmma {shown(content['version'])}" if "version" in content else ""
        raise LaterFormat(
            f"the checkpoint {folder} is written{by} in the format '{shown(content['format'])}'; pfedmma {VERSION} reads {EARLIER} "
            f"and {FORMAT}: use the version that wrote it, or a later one"
        )
    return content


def _layout(folder: Path, layout: dict[str, Any], exchange: dict[str, Any], frozen: list[Any]) -> Layout:
    """How a client's tensors lie. Raises `Damaged` unless the server's file has room for them: what they say is allocated."""
    if not all(isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape) for shape in layout.values()):
        raise Damaged("the layout in manifest.json is no shape of each tensor")
    if not (exchange.keys() <= layout.keys() and all(rule in RULES for rule in exchange.values())):
        raise Damaged(f"the exchange in manifest.json is no rule ({', '.join(RULES)}) of some of its tensors")
    if not all(isinstance(name, str) and name in layout and name not in exchange for name in frozen):
        raise Damaged("what manifest.json says is frozen is none of its tensors, or is exchanged")
    try:
        held = (folder / SERVER_FILE).stat().st_size
    except OSError as error:
        raise Damaged(f"{SERVER_FILE}: {error.strerror}") from None
    # One client's state lies in it. A shape with a 0 has no numbers, however large the rest.
    if 4 * sum(math.prod(shape) for shape in layout.values()) > held or any(n > held for shape in layout.values() for n in shape):
        raise Damaged(f"the layout in manifest.json is larger than {SERVER_FILE}")
    found = Layout({name: tuple(shape) for name, shape in layout.items()}, exchange, frozen)
    if list(found.shapes) != list(layout):
        raise Damaged("the layout in manifest.json does not begin with what is exchanged and end with what is frozen")
    return found


def verify(folder: Path, shards: Sequence[tuple[str, str]]) -> None:
    """Raise `Damaged` unless every (file name, hash) holds."""
    for name, digest in shards:
        try:
            if sha256(folder / name) != digest:
                raise Damaged(f"{name} does not have the hash that manifest.json gives")
        except OSError as error:
            raise Damaged(f"{name}: {error.strerror}") from None


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _digest(content: dict[str, Any]) -> str:
    """Hash of a manifest's content, whatever the layout of its text."""
    return hashlib.sha256(json.dumps(json.loads(to_json(content)), sort_keys=True).encode()).hexdigest()


def _selected(value: Mapping[str, Any], clients: int) -> tuple[Selected | None, Tensor | None]:
    """The round that is reported so far and its table; both are there, or neither."""
    if value.get("selected") is None:
        return None, None
    return Selected.from_fields(Fields(value["selected"], "selected")), _table(value["selected_clients"], clients)


def _packed(table: Tensor | None) -> str | None:
    return None if table is None else base64.b64encode(table.numpy().astype("<f8").tobytes()).decode()


def _table(packed: str, clients: int) -> Tensor:
    values = np.frombuffer(base64.b64decode(packed, validate=True), "<f8").astype(float)
    return torch.from_numpy(values.reshape(clients, len(COLUMNS)))


def _all_numbers(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return all(map(_all_numbers, value.values() if isinstance(value, dict) else value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)
