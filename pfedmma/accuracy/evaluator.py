"""Local, Base and Novel accuracy of every client, each with its own current adapters of both towers.

Local is the accuracy on the client's own test images, argmax over all base classes; it is read off the Base pass. The frozen
blocks below the first adapter run once for all clients wherever they see the same pixels. Where diagnostics are wanted, the Base pass
serves them as well.

Shape legend: C clients of a pass, N test images of a batch, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from pfedmma.accuracy import diagnostics
from pfedmma.accuracy.metrics import COLUMNS
from pfedmma.accuracy.watch import Pass, Seen, Watch
from pfedmma.clip.stems import Stem, StemCache
from pfedmma.data.partition.federated import Client, FederatedData, cameras, held_classes
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.pixels.prefetch import Prefetched, Stopwatch
from pfedmma.methods.base import Method, shared_by
from pfedmma.methods.forward import Forward
from pfedmma.records.selected import CHOICES, LAST
from pfedmma.stack.answers import Answers
from pfedmma.stack.rules import Given, State
from pfedmma.system import checks
from pfedmma.system.errors import RankFailure, UserError
from pfedmma.system.options import GOES_ON, setting
from pfedmma.system.staging import Staging

TOGETHER = 8  # groups of clients whose states are held at once, and which share the stems of a batch of images
NEW_SHARED = FROZEN, FREE = "frozen", "free"


@dataclass(frozen=True)
class EvaluationConfig:
    """When and on what clients are tested."""

    every: int = setting(5, "rounds between evaluations; the last round is always evaluated; 0: never", GOES_ON)
    split: str = setting("test", "images that clients are tested on: test, or val for tuning", GOES_ON)
    batch_size: int = setting(512, "images x clients of one forward pass; in fedmgp x groups", GOES_ON)
    clients: int = setting(0, "clients that are tested, drawn once by the seed; 0: all; of new clients as many", GOES_ON)
    per_client: int = setting(
        100, "most clients that are tested for metrics.jsonl to hold the accuracy of each; where more are, of none; 0: never", GOES_ON
    )
    diagnostics: bool = setting(
        False, "also record alignment margin, modality gap, ECE, and CKA of S between clients, on the base test images", GOES_ON
    )
    text_features: str = setting(
        "current",
        "current (of each client's model), or first (of the first client at the first evaluation, for all clients ever after, as released)",
        GOES_ON,
    )
    select: str = setting(
        "last",
        "round that is reported: last, best_val (best HM on validation), or best_test (best Local on test, as released: optimistic)",
        GOES_ON,
    )
    new_clients_epochs: tuple[int, ...] = setting(
        (0, 1, 5, 20), "epochs after which new clients (data.new_clients), who train alone after the last round, are tested", GOES_ON
    )
    new_clients_shared: tuple[str, ...] = setting(
        ("frozen", "free"), "whether what they received of the server stays as it is (frozen) or is trained, too (free); or both", GOES_ON
    )
    new_clients_start: str = setting(
        "seed", "their private tensors begin as everybody's did (seed), or as the mean of those of all who took part (mean)", GOES_ON
    )

    def __post_init__(self) -> None:
        checks.one_of("select", self.select, CHOICES)
        if self.select != LAST and self.every == 0:
            raise UserError(f"select: {self.select} chooses among the rounds that are evaluated; set evaluation.every to 1 or more")
        if self.select != LAST and self.split != "test":
            raise UserError(f"select: {self.select} reports accuracies on the test split; leave out evaluation.split={self.split}")
        checks.at_least("every", self.every, 0)
        checks.one_of("split", self.split, ("test", "val"))
        checks.at_least("batch_size", self.batch_size, 1)
        checks.at_least("clients", self.clients, 0)
        checks.one_of("text_features", self.text_features, ("current", "first"))
        for epochs in self.new_clients_epochs:
            checks.between("new_clients_epochs", epochs, 0, 10_000)
        for shared in self.new_clients_shared:
            checks.one_of("new_clients_shared", shared, NEW_SHARED)
        for name in ("new_clients_epochs", "new_clients_shared"):
            checks.some_once(name, getattr(self, name))
        checks.one_of("new_clients_start", self.new_clients_start, ("seed", "mean"))
        checks.at_least("per_client", self.per_client, 0)

    @property
    def tested_on(self) -> str:
        """What an accuracy is of: two of different ones are not compared."""
        return f"{self.split}, {self.clients} clients" if self.clients else self.split


Told = Callable[[float, int], None]  # (how many clients' tests, or steps, are done, of how many)


def in_silence(done: float, total: int) -> None:
    """Nobody wants to know."""


class Chunk(NamedTuple):
    """Test images that go through a tower together: their positions ``tested`` [N], ascending, in a test set, and ``pixels``.

    uint8 [N,3,S,S] on the device; None: they are kept as stems, or are read when they are asked for.
    """

    tested: Tensor
    pixels: Tensor | None


def _tell(told: Told, before: float, here: float, total: int, share: float) -> None:
    """A ``share`` of the tests of ``here`` clients is done, after those of ``before`` others."""
    told(before + share * here, total)


class Asked(NamedTuple):
    """What is asked: how the models of ``clients`` [C] do on the test set ``name``. ``told``: the share [0, 1) of it that is done."""

    name: str
    clients: Sequence[Client]
    forward: Forward
    answers: Answers
    told: Callable[[float], None]


@dataclass(frozen=True)
class Evaluator:
    """Evaluates clients of one federated data set; ``clients_per_pass`` bounds how many share one forward pass."""

    federated: FederatedData
    pixels: Pixels
    batch_size: int
    clients_per_pass: int

    @torch.no_grad()
    def table(
        self,
        method: Method,
        answers: Answers,
        clients: Sequence[Client],
        stems: StemCache | None = None,
        told: Told = in_silence,
        watch: Watch | None = None,
    ) -> Tensor:
        """Accuracy in percent [C, 4] (columns `COLUMNS`, NaN where there is nothing to test), on the CPU, in fp64.

        ``stems`` keeps what follows from the test images alone until the next evaluation of the same method. ``told``: how far it has come.
        ``watch``: takes in what diagnostics need.
        """
        table = torch.full((len(clients), len(COLUMNS)), float("nan"), dtype=torch.float64)
        stems = stems or StemCache(0.0)
        alike = self._alike(method, answers, clients)
        sets = list(self.federated.sets())
        for number, name in enumerate(sets if alike else ()):
            forward = Forward.from_prompts(method, self.federated.template, self.federated.sets()[name].classes)
            for start in range(0, len(alike), TOGETHER * self.clients_per_pass):
                part = alike[start : start + TOGETHER * self.clients_per_pass]
                before, here = (number * len(alike) + start) / len(sets), len(part) / len(sets)
                share = partial(_tell, told, before, here, len(alike))
                asked = Asked(name, [clients[rows[0]] for rows in part], forward, answers, share)
                seen = Seen(len(part), len(self.federated.base.indices)) if watch and name == "base" else None
                correct = self._correct(asked, stems, seen)
                if watch and seen:
                    watch.add(seen, correct, [len(rows) for rows in part])
                for rows, right in zip(part, correct, strict=True):
                    table[rows, COLUMNS.index(name)] = right.mean() * 100.0
                    if name == "base":
                        table[rows, 0] = torch.stack([right[clients[row].test].mean() for row in rows]) * 100.0
        return table

    def _alike(self, method: Method, answers: Answers, clients: Sequence[Client]) -> list[list[int]]:
        """Rows of clients that have the same model and see the same pixels; one of them is tested for all.

        These are clients without a state of their own (the method has none, or they began alike and never trained), a camera, or others to
        read.
        """
        groups: dict[int, list[int]] = {}
        for row, client in enumerate(clients):
            own = answers.own(client.id) or client.camera is not None or method.answers_by_classes
            groups.setdefault(client.id if own else -1, []).append(row)
        return list(groups.values())

    def _correct(self, asked: Asked, stems: StemCache, watched: Seen | None) -> Tensor:
        """[C, n] fp64 on the CPU: 1 where the client's model is right about an image of the test set.

        ``watched``: takes in what else it says.
        """
        name, clients, forward, answers, told = asked
        images = self.federated.sets()[name]
        groups = [clients[i : i + self.clients_per_pass] for i in range(0, len(clients), self.clients_per_pass)]
        size = max(1, self.batch_size // (max(map(len, groups)) * forward.method.passes))
        with self._chunks(name, size, clients, stems) as chunks:
            states = [self.state(forward, answers, group) for group in groups]
            shared = answers.texts.get(name)
            texts = [forward.text_features(state) if shared is None else shared_by(state, shared[0]) for state in states]
            correct = torch.empty(len(clients), len(images.indices), dtype=torch.float64, device=forward.device)
            labels = self.staging.put(images.labels)
            for chunk in chunks:
                seen = StemCache(float("inf"))  # for the groups of this chunk that see the images as they are
                first, columns = 0, slice(int(chunk.tested[0]), int(chunk.tested[-1]) + 1)
                told(columns.start / len(images.indices))
                for group, state, text in zip(groups, states, texts, strict=True):
                    stem = self._image_stem(name, chunk, forward, group, (seen, stems))
                    features, logits = forward.features_and_logits(state, stem, text)
                    rows = slice(first, first + len(group))
                    correct[rows, columns] = right(logits, labels[columns])
                    if watched:
                        watched.add(rows, chunk.tested, Pass(features, text, logits, labels[columns]), forward.method.backbone.logit_scale)
                    first += len(group)
        if watched:
            watched.grams = self._grams(forward, groups, states, stems, size)
        return all_finite(correct.cpu(), clients)  # the one wait for the device

    @contextlib.contextmanager
    def _chunks(self, name: str, size: int, clients: Sequence[Client], stems: StemCache) -> Iterator[Iterator[Chunk]]:
        """The images of the test set ``name``, ``size`` at a time, read and fitted while those before them are tested.

        Where the stems of all ``clients`` are kept, a chunk comes without its images.
        """
        images = self.federated.sets()[name]
        tested = torch.arange(len(images.indices)).split(size)
        wanted = [not self._all_kept((images.split, name), chunk, clients, stems) for chunk in tested]
        new = [chunk for chunk, pixels in zip(tested, wanted, strict=True) if pixels]
        packed = (self.staging.pack(self.pixels.tested(images.split, images.indices[chunk], keep=stems.full)) for chunk in new)
        prefetched = Prefetched(packed, Stopwatch(), send=self.staging.send)
        if new:
            prefetched.start()
        sent = iter(prefetched)
        try:
            yield (Chunk(chunk, next(sent).take() if pixels else None) for chunk, pixels in zip(tested, wanted, strict=True))
        finally:
            prefetched.close()

    def _all_kept(self, key: tuple[str, str], tested: Tensor, clients: Sequence[Client], stems: StemCache) -> bool:
        """Whether no pixel of these images is needed."""
        keys = dict.fromkeys(key if client.camera is None else (*key, client.id) for client in clients)
        return all(stems.holds(one, tested) for one in keys)

    def _grams(
        self, forward: Forward, groups: Sequence[Sequence[Client]], states: Sequence[State], stems: StemCache, size: int
    ) -> Tensor | None:
        """Of what S gives of the images for CKA, ``size`` at a time: unit Gram matrices [C,B,B], None where the method has no S."""
        grams, seen = [], StemCache(float("inf"))
        for group, state in zip(groups, states, strict=True):
            outputs = []
            for rows in diagnostics.spread(len(self.federated.base.indices)).split(size):
                found = forward.shared_outputs(state, self._image_stem("base", Chunk(rows, None), forward, group, (seen, stems)))
                if found is None:
                    return None
                outputs.append(found)
            grams.append(diagnostics.unit_grams(torch.cat(outputs, dim=1)).cpu())
        return torch.cat(grams)

    def _image_stem(self, name: str, chunk: Chunk, forward: Forward, group: Sequence[Client], kept: tuple[StemCache, StemCache]) -> Stem:
        """The stem of the images of a chunk of the test set ``name`` as each client of the group sees them, client by client.

        ``kept``: stems of this chunk, and of all evaluations.
        """
        images, (seen, stems), tested = self.federated.sets()[name], kept, chunk.tested
        key = images.split, name

        def pixels(rows: Tensor) -> Tensor:
            if chunk.pixels is None:
                return self.pixels.tested(images.split, images.indices[rows], keep=stems.full)
            return chunk.pixels if len(rows) == len(tested) else chunk.pixels[self.staging.put(torch.searchsorted(tested, rows))]

        def plain(rows: Tensor) -> Stem:
            return forward.image_stem(self.pixels.normalise(pixels(rows)))

        if cameras(group) is None:
            return seen.get(key, tested, lambda rows: stems.get(key, rows, plain)).repeat(len(group))
        # Every client sees the images in its own way: those whose stems are not kept go through the blocks together.
        new = [client for client in group if not stems.holds((*key, client.id), tested)]
        own: dict[int, Stem] = {}
        if new:
            views = pixels(tested).expand(len(new), *(-1,) * 4)
            made = forward.image_stem(self.pixels.normalise(views, self.staging.put(cameras(new))).flatten(0, 1))
            if stems.full and len(new) == len(group):
                return made
            own = {client.id: made.take(self.staging.put(torch.arange(len(tested)) + i * len(tested))) for i, client in enumerate(new)}

        def own_part(client: int, rows: Tensor) -> Stem:
            return own[client].take(self.staging.put(torch.searchsorted(tested, rows)))

        found = [stems.get((*key, client.id), tested, partial(own_part, client.id)) for client in group]
        return found[0].join(found)

    @cached_property
    def staging(self) -> Staging:
        """The way to the device."""
        return Staging(self.pixels.device)

    def state(self, forward: Forward, answers: Answers, group: Sequence[Client]) -> State:
        """The clients' state as they are tested: their own tensors, and what stays the same for these prompts."""
        ids, held = [client.id for client in group], None
        if forward.method.answers_by_classes:
            base = self.federated.base.classes
            mine = held_classes(group, len(base)) if forward.classes == base else torch.zeros(len(group), len(forward.classes)).bool()
            held = mine.to(forward.device)
        state = answers.tensors(ids)
        return state | forward.fixed(state, Given(answers.others(ids), held))


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """How right each client is about each image [C, N]: 1, or 0, or 1 / n where the right class is one of n with the largest logit.

    NaN where the largest logit is not finite.

    Args:
        logits: [C, N, K]. labels: [N].
    """
    most = logits.amax(dim=-1, keepdim=True)  # NaN where there is one
    best = logits == most
    shares = best[:, torch.arange(len(labels), device=labels.device), labels].double() / best.sum(dim=-1)
    return shares.where(torch.isfinite(most).squeeze(-1), torch.nan)


def all_finite(correct: Tensor, clients: Sequence[Client]) -> Tensor:
    """How `right` these clients are [C, N], as it is.

    Raises:
        RankFailure: some logits of a client were not finite; names the first.
    """
    if bool(torch.isfinite(correct).all()):
        return correct
    bad = clients[int((~torch.isfinite(correct)).any(dim=1).nonzero()[0])]
    raise RankFailure(f"the model of client {bad.id} gives logits that are not finite, so it cannot be tested; lower optimizer.lr")
