"""Checkpoints: safetensors shards and a JSON manifest with their hashes, whole or absent.

``checkpoints/round-000012/`` holds ``server.safetensors`` (the shared tensors, the state in which clients start, the server's pool),
``clients-*.safetensors`` of each rank that wrote it, and ``manifest.json``. Tensors are keyed by client id, never by rank, so that
any number of ranks can read them. Every rank writes into one draft folder; only when all have finished does rank 0 write the
manifest and rename the draft. Nothing is ever unpickled.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pfedmma.comm.ledger import Ledger
from pfedmma.data.partition.federated import FederatedData
from pfedmma.stack.rules import RULES
from pfedmma.system import untrusted
from pfedmma.system.files import to_json

FORMAT = "pfedmma-checkpoint/1"
SERVER = ("shared", "initial")  # tensors of the server, by the name of their place in the store
_NAME = re.compile(r"round-([0-9]{6,15})")
_SHARD = re.compile(r"server\.safetensors|clients-[0-9]{5,}-[0-9]{5,}\.safetensors")


class Damaged(Exception):
    """A checkpoint that is not what its manifest says."""


def folder_of(root: Path, round_: int) -> Path:
    return root / f"round-{round_:06d}"


def rounds(root: Path) -> list[int]:
    """Rounds of the checkpoints below ``root``, newest first."""
    if not root.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in root.iterdir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, its fields checked. Raises `Damaged`."""
    try:
        manifest = untrusted.read_json(folder / "manifest.json")
    except (OSError, ValueError) as error:
        raise Damaged(f"manifest.json: {error}") from None
    kinds = {"format": str, "round": int, "layout": dict, "exchange": dict, "shards": dict, "progress": dict}
    for name, kind in kinds.items():
        if not isinstance(manifest, dict) or type(manifest.get(name)) is not kind:
            raise Damaged(f"manifest.json has no {name}")
    if manifest["format"] != FORMAT:
        raise Damaged(f"manifest.json says format '{manifest['format'][:40]}', not {FORMAT}")
    digest = manifest.pop("digest", None)
    if digest != _digest(manifest):
        raise Damaged("manifest.json does not have the digest that it gives")
    if folder_of(folder.parent, manifest["round"]) != folder:
        raise Damaged(f"manifest.json is of round {manifest['round']}")
    if "server.safetensors" not in manifest["shards"] or not all(_SHARD.fullmatch(name) for name in manifest["shards"]):
        raise Damaged("manifest.json names no server.safetensors, or a file that is no part of a checkpoint")
    _require_layout(folder, manifest)
    return manifest


def _require_layout(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise `Damaged` unless the layout is one, and server.safetensors has room for it: what it says is allocated."""
    layout, exchange = manifest["layout"], manifest["exchange"]
    if not all(isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape) for shape in layout.values()):
        raise Damaged("the layout in manifest.json is no shape of each tensor")
    if not (exchange.keys() <= layout.keys() and all(rule in RULES for rule in exchange.values())):
        raise Damaged(f"the exchange in manifest.json is no rule ({', '.join(RULES)}) of some of its tensors")
    try:
        held = (folder / "server.safetensors").stat().st_size
    except OSError as error:
        raise Damaged(f"server.safetensors: {error.strerror}") from None
    # One client's state lies in it. A shape with a 0 has no numbers, however large the rest.
    if 4 * sum(math.prod(shape) for shape in layout.values()) > held or any(n > held for shape in layout.values() for n in shape):
        raise Damaged("the layout in manifest.json is larger than server.safetensors")


def _require_progress(progress: dict[str, Any]) -> None:
    """Raise `Damaged` unless ``progress`` has what a resumed run and an export take from it."""
    kinds: dict[str, Any] = {"config": dict, "template": str, "reads": int, "ledger": dict, "zero_shot": (dict, type(None))}
    wrong = [name for name, kind in kinds.items() if name not in progress or not isinstance(progress[name], kind)]
    if wrong or progress["reads"] < 0 or not _all_numbers(progress["ledger"]):
        raise Damaged(f"the progress in manifest.json has no {wrong[0] if wrong else 'numbers that can be'}")
    try:
        tried = Ledger(1)
        tried.restore(progress["ledger"])
        tried.totals()
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise Damaged(f"the ledger in manifest.json is none: {error}") from None


def _all_numbers(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return all(map(_all_numbers, value.values() if isinstance(value, dict) else value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _digest(manifest: dict[str, Any]) -> str:
    """Hash of a manifest's content, whatever the layout of its text."""
    return hashlib.sha256(json.dumps(json.loads(to_json(manifest)), sort_keys=True).encode()).hexdigest()


def verify(folder: Path, shards: Iterable[tuple[str, str]]) -> None:
    """Raise `Damaged` unless every (file name, hash) holds."""
    for name, digest in shards:
        try:
            if _sha256(folder / name) != digest:
                raise Damaged(f"{name} does not have the hash that manifest.json gives")
        except OSError as error:
            raise Damaged(f"{name}: {error.strerror}") from None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def classes_of(federated: FederatedData) -> dict[str, Any]:
    """Names of the base and novel classes, and which base classes each client holds: [clients, base] bits as base64, which stay small."""
    base = federated.base.classes
    held = np.zeros((len(federated.clients), len(base)), dtype=bool)
    for row, client in zip(held, federated.clients, strict=True):
        row[list(client.classes)] = True
    novel = federated.novel.classes if federated.novel else ()
    return {"base": list(base), "novel": list(novel), "held": base64.b64encode(np.packbits(held).tobytes()).decode()}


def classes_of_client(classes: Any, client: int, clients: int) -> dict[str, list[str]]:
    """{"base", "novel", "own"} from what `classes_of` made. Raises ValueError, TypeError or LookupError if it is something else."""
    base, novel = classes["base"], classes["novel"]
    if not all(isinstance(name, str) for name in [*base, *novel]):
        raise ValueError("a class in it is no name")
    packed = np.frombuffer(base64.b64decode(classes["held"], validate=True), dtype=np.uint8)
    bits = np.unpackbits(packed, count=clients * len(base)).reshape(clients, len(base))
    if len(packed) != -(-clients * len(base) // 8):
        raise ValueError("it is of another number of clients")
    return {"base": base, "novel": novel, "own": [name for name, has in zip(base, bits[client], strict=True) if has]}
