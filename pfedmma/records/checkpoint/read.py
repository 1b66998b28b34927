"""Reading checkpoints: the newest whole one, and its tensors as plain values.

`pfedmma.run.resume` puts them into the parts of a run; `client_answers` gives what clients answer with, without any.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pfedmma.records.checkpoint.manifest import EARLIER, Damaged, Manifest, folder_of, read_manifest, rounds, verify
from pfedmma.stack.pool import Pool, is_entry
from pfedmma.stack.rules import CONTROL, OWN, PERSONAL, POOL
from pfedmma.system.console import warn
from pfedmma.system.errors import UserError

OF_CLIENTS = ("private", PERSONAL, CONTROL)
_SERVERS = "server."
TEXTS = "text."


def newest_good(root: Path) -> Manifest | None:
    """The manifest of the newest undamaged checkpoint, None where there is none. Warns about each damaged one.

    Raises:
        LaterFormat: a checkpoint that is newer than any good one is of a format that this version does not read.
    """
    for round_ in rounds(root):
        try:
            return checked(root, round_)
        except Damaged as error:
            say_damaged(round_, error)
    return None


def chosen(root: Path, round_: int | None) -> Manifest | None:
    """The manifest of the newest good checkpoint, None where there is none; or that of ``round_``.

    Raises:
        UserError: there is no good checkpoint of that round.
    """
    if round_ is None:
        manifest = newest_good(root)
        if manifest is not None:
            say_reported(root, manifest)
        return manifest
    if round_ not in rounds(root):
        raise not_kept(root, round_)
    try:
        return checked(root, round_)
    except Damaged as error:
        raise UserError(f"--round: the checkpoint of round {round_} in {root} is damaged ({error}); take another round") from None


def not_kept(root: Path, round_: int) -> UserError:
    """Of a round that is asked for."""
    kept = ", ".join(map(str, reversed(rounds(root)))) or "none"
    return UserError(f"--round: {root} has no good checkpoint of round {round_}; there are those of {kept}")


def say_reported(root: Path, manifest: Manifest) -> None:
    """Warn where the run reports the accuracy of another round than that of the newest checkpoint, its ``manifest``."""
    selected = manifest.progress.selected
    if selected is not None and selected.round != manifest.round:
        there = f"--round {selected.round} takes it" if selected.round in rounds(root) else "no checkpoint of that round is kept"
        warn(f"this is round {manifest.round}, the newest in {root}; the run reports {selected}: {there}")


def checked(root: Path, round_: int, part: int = 0, parts: int = 1) -> Manifest:
    """The manifest of a checkpoint, and of ``parts`` parts of its files the hashes of one. Raises `Damaged`, or `LaterFormat`."""
    folder = folder_of(root, round_)
    manifest = read_manifest(folder)
    verify(folder, list(manifest.shards.items())[part::parts])
    return manifest


def say_damaged(round_: int, error: Damaged) -> None:
    warn(f"the checkpoint of round {round_} is damaged ({error})")


class Row(NamedTuple):
    """A tensor of a checkpoint. ``client``: whose it is, None for the server's file.

    ``kind``: ``initial``, ``server.<name>`` or ``text.<test set>``; of clients ``optimizer.<name>`` or one of `OF_CLIENTS`.
    """

    client: int | None
    kind: str
    tensor: Tensor


def read_rows(root: Path, manifest: Manifest, clients: Collection[int]) -> Iterator[Row]:
    """All of the server's file, and what is the own of the clients wanted.

    Raises:
        UserError: a file cannot be read, or holds something else.
    """
    folder = folder_of(root, manifest.round)
    for shard in manifest.shards:
        try:
            with safe_open(folder / shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118, it is no dict
                    client, kind = _owner(folder, _renamed(name) if manifest.format == EARLIER else name)
                    if client is None or client in clients:
                        yield Row(client, kind, _numbers(folder, name, file.get_tensor(name)))
        except (OSError, SafetensorError, TypeError, LookupError, AttributeError, RuntimeError) as error:  # odd dtypes
            raise UserError(f"cannot read {folder / shard}: {str(error)[:200]}") from None


def _renamed(name: str) -> str:
    """The name that a tensor of format 1 has now."""
    if name == "shared":
        return "server.shared"
    client, _, kind = name.partition(".")
    return f"{_SERVERS}pool.{client}" if kind == "pool" else name


def _owner(folder: Path, name: str) -> tuple[int | None, str]:
    """Client and kind of a `Row`."""
    if name == "initial" or name.startswith((_SERVERS, TEXTS)):
        try:
            is_entry(name.removeprefix(_SERVERS))
        except ValueError as error:
            raise UserError(f"the checkpoint {folder} holds a tensor of its server which cannot be: {error}") from None
        return None, name
    client, _, kind = name.partition(".")
    if not re.fullmatch("0|[1-9][0-9]{0,17}", client) or not (kind in OF_CLIENTS or kind.startswith("optimizer.")):
        raise UserError(f"the checkpoint {folder} holds a tensor '{name[:60]}', which is of no client")
    return int(client), kind


def _numbers(folder: Path, name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or tensor.dim() != 1:
        raise misfit(folder, name)
    return tensor.float()


def misfit(folder: Path, name: str) -> UserError:
    """Of a tensor that its manifest does not speak of."""
    return UserError(f"the checkpoint {folder} does not fit its manifest: tensor '{name[:60]}' is one too many, or of another size")


class Answer(NamedTuple):
    """What one client answers with: ``tensors`` {name: [*shape]}, and what it reads of E others ``others`` {name: [E, *shape]}.

    ``trained``: whether it has; if not, its private tensors are those with which all begin, unless the run drew them for each.
    """

    tensors: dict[str, Tensor]
    others: dict[str, Tensor]
    trained: bool


def client_answer(root: Path, manifest: Manifest, client: int) -> Answer:
    """That of one of `client_answers`."""
    return next(client_answers(root, manifest, [client]))[1]


def client_answers(root: Path, manifest: Manifest, clients: Iterable[int]) -> Iterator[tuple[int, Answer]]:
    """What each of ``clients`` answers with, in the order of the files; one client at a time is in memory.

    The last are those that never trained: they have what all begin with.

    Raises:
        UserError: a file cannot be read, or the tensors do not fit the manifest.
    """
    server = _ServerPart.from_checkpoint(root, manifest)
    waiting = dict.fromkeys(clients)
    for row in read_rows(root, manifest, tuple(waiting)):
        if row.client is not None and row.kind == server.kind:
            if len(row.tensor) != server.own.stop - server.own.start:
                raise misfit(folder_of(root, manifest.round), row.kind)
            waiting.pop(row.client, None)
            yield row.client, server.answer(row.client, row.tensor)
    for client in waiting:
        yield client, server.answer(client, None)


@dataclass(frozen=True)
class _ServerPart:
    """What the server's file adds to each client's answer. ``kind``, ``own``: of the rows that are a client's own, and their columns."""

    manifest: Manifest
    kind: str
    own: slice
    shared: Tensor
    initial: Tensor
    pool: Pool

    @classmethod
    def from_checkpoint(cls, root: Path, manifest: Manifest) -> _ServerPart:
        folder, layout = folder_of(root, manifest.round), manifest.layout
        answers = manifest.progress.answers
        kind = PERSONAL if answers == PERSONAL else "private"
        own = slice(0 if answers in (OWN, PERSONAL) else layout.exchanged_size, layout.trained_size)
        widths = {"initial": layout.size, "server.shared": layout.exchanged_size}
        pooled = layout.columns.get(POOL, slice(0, 0))
        found: dict[str, Tensor] = {}
        others: dict[str, Tensor] = {}
        for row in read_rows(root, manifest, ()):
            name = row.kind.removeprefix(_SERVERS)
            if row.kind in widths:
                if len(row.tensor) != widths[row.kind]:
                    raise misfit(folder, row.kind)
                found[row.kind] = row.tensor
            elif row.kind.startswith(_SERVERS) and is_entry(name):
                if len(row.tensor) != pooled.stop - pooled.start or POOL not in layout.columns:
                    raise misfit(folder, row.kind)
                others[name] = row.tensor
        if found.keys() != widths.keys():
            raise UserError(f"the checkpoint {folder} lacks a part of the state of the server")
        return cls(manifest, kind, own, found["server.shared"], found["initial"], Pool.from_state(others))

    def answer(self, client: int, private: Tensor | None) -> Answer:
        layout, progress = self.manifest.layout, self.manifest.progress
        flat = torch.cat([self.shared, self.initial[layout.exchanged_size :]])
        if private is not None:
            flat[self.own] = private
        pool = self.pool.others(layout, [client], self.shared, progress.reads, as_read=progress.answers == OWN)
        read = {} if pool is None else {name: tensor[0] for name, tensor in pool.tensors.items()}
        return Answer(layout.views(flat), read, private is not None)
