"""Local, Base and Novel accuracy of every client, each with its own current adapters of both towers.

Local is the accuracy on the client's own test images, argmax over all base classes; it is read off the Base pass. The frozen
blocks below the first adapter run once for all clients wherever they see the same pixels.

Shape legend: C clients of a pass, N test images of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfedmma.accuracy.metrics import COLUMNS
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.stems import StemCache
from pfedmma.data.partition.federated import Client, FederatedData, cameras
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.methods.base import Method
from pfedmma.stack.client_state import ClientStore
from pfedmma.system import checks
from pfedmma.system.options import GOES_ON, setting

TOGETHER = 8  # groups of clients whose states are held at once, and which share the stems of a batch of images


@dataclass(frozen=True)
class EvaluationConfig:
    """When and on what clients are tested."""

    every: int = setting(5, "rounds between evaluations; the last round is always evaluated; 0: never", GOES_ON)
    split: str = setting("test", "images that clients are tested on: test, or val for tuning", GOES_ON)
    batch_size: int = setting(512, "images x clients of one forward pass", GOES_ON)

    def __post_init__(self) -> None:
        checks.at_least("every", self.every, 0)
        checks.one_of("split", self.split, ("test", "val"))
        checks.at_least("batch_size", self.batch_size, 1)


@dataclass(frozen=True)
class Evaluator:
    """Evaluates clients of one federated data set; ``clients_per_pass`` bounds how many share one forward pass."""

    backbone: Backbone
    federated: FederatedData
    pixels: Pixels
    batch_size: int
    clients_per_pass: int

    @torch.no_grad()
    def table(self, method: Method, store: ClientStore, clients: Sequence[Client], stems: StemCache | None = None) -> Tensor:
        """Accuracy in percent [C, 4] (columns `COLUMNS`, NaN where there is nothing to test), on the CPU, in fp64.

        ``stems`` keeps what follows from the test images alone until the next evaluation of the same method.
        """
        table = torch.full((len(clients), len(COLUMNS)), float("nan"), dtype=torch.float64)
        stems = stems or StemCache(0.0)
        alike = self._alike(method, store, clients)
        for name in self.federated.sets():
            for start in range(0, len(alike), TOGETHER * self.clients_per_pass):
                part = alike[start : start + TOGETHER * self.clients_per_pass]
                correct = self._correct(name, method, store, [clients[rows[0]] for rows in part], stems)
                for rows, right in zip(part, correct, strict=True):
                    table[rows, COLUMNS.index(name)] = right.mean() * 100.0
                    if name == "base":
                        table[rows, 0] = torch.stack([right[clients[row].test].mean() for row in rows]) * 100.0
        return table

    def _alike(self, method: Method, store: ClientStore, clients: Sequence[Client]) -> list[list[int]]:
        """Rows of clients that have the same model and see the same pixels; one of them is tested for all.

        These are clients without a state of their own (the method has none, or they never trained), a camera, or others to read.
        """
        groups: dict[int, list[int]] = {}
        for row, client in enumerate(clients):
            own = store.has_own(client.id) or client.camera is not None or method.reads > 0
            groups.setdefault(client.id if own else -1, []).append(row)
        return list(groups.values())

    def _correct(self, name: str, method: Method, store: ClientStore, clients: Sequence[Client], stems: StemCache) -> Tensor:
        """[C, n] fp64: 1 where the client's model is right about an image of the test set ``name``."""
        images = self.federated.sets()[name]
        groups = [clients[i : i + self.clients_per_pass] for i in range(0, len(clients), self.clients_per_pass)]
        prompts = self.backbone.prompts(self.federated.template, images.classes)
        with self.backbone.autocast():
            stem = method.text_stem(prompts)
        states = [self._state(method, store, [c.id for c in group], stem) for group in groups]
        texts = []
        for state in states:
            with self.backbone.autocast():
                texts.append(method.text_features(state, stem))
        correct = torch.empty(len(clients), len(images.indices), dtype=torch.float64)
        size = max(1, self.batch_size // max(map(len, groups)))
        for start in range(0, len(images.indices), size):
            part = slice(start, start + size)
            labels = images.labels[part].to(self.backbone.device)
            plain = StemCache(float("inf"))  # for the groups of this batch that see the images as they are
            rows = 0
            for group, state, text in zip(groups, states, texts, strict=True):
                with self.backbone.autocast():
                    image_stem = self._image_stem(name, part, method, group, stems, plain)
                    logits = method.logits(state, method.image_features(state, image_stem), text)
                correct[rows : rows + len(group), part] = (logits.argmax(dim=-1) == labels).cpu().double()
                rows += len(group)
        return correct

    def _image_stem(self, name: str, part: slice, method: Method, group: Sequence[Client], stems: StemCache, plain: StemCache) -> Any:
        """The stem of this part of the test set ``name`` as each client of the group sees it."""
        images, place = self.federated.sets()[name], (name, part.start, part.stop)
        pixels = lambda: self.pixels.fitted(images.split, images.indices[part])  # noqa: E731, not read where the stem is kept
        if (views := cameras(group)) is not None:  # every client sees the images in its own way
            see = lambda: self.pixels.normalise(pixels().expand(len(group), *pixels().shape), views).flatten(0, 1)  # noqa: E731
            return stems.get((*place, *(client.id for client in group)), lambda: method.image_stem(see()))
        make = lambda: method.image_stem(self.pixels.normalise(pixels()))  # noqa: E731
        return plain.get(place, lambda: stems.get(place, make)).repeat(len(group))

    def _state(self, method: Method, store: ClientStore, ids: Sequence[int], text_stem: Any) -> dict[str, Tensor]:
        """The clients' state as they would be tested: their own tensors, and what stays the same for these prompts."""
        state = store.layout.views(store.gather(ids))
        with self.backbone.autocast():
            return state | method.fixed(state, store.others(ids, method.reads), text_stem)
