"""Local, Base and Novel accuracy of every client, each with its own current adapters of both towers.

Local is the accuracy on the client's own test images, argmax over all base classes; it is read off the Base pass. The frozen
blocks below the first adapter run once for all clients wherever they see the same pixels.

Shape legend: C clients of a pass, N test images of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfedmma import checks
from pfedmma.adapters.stacked import Layout
from pfedmma.clip.backbone import Backbone
from pfedmma.data.images import Pixels
from pfedmma.data.partition import Client, EvaluationSet, Federation, cameras
from pfedmma.ledger import percentile
from pfedmma.methods.base import Method

COLUMNS = ("local", "base", "novel", "unseen")


@dataclass(frozen=True)
class EvaluationConfig:
    """``every``: rounds between evaluations (the last round is always evaluated; 0 = never). ``split``: ``test``, or ``val`` for tuning.

    ``batch_size``: images x clients of one forward pass.
    """

    every: int = 5
    split: str = "test"
    batch_size: int = 512

    def __post_init__(self) -> None:
        checks.at_least("every", self.every, 0)
        checks.one_of("split", self.split, ("test", "val"))
        checks.at_least("batch_size", self.batch_size, 1)


@dataclass(frozen=True)
class Evaluator:
    """Evaluates clients of one federation; ``clients_per_pass`` bounds how many share one forward pass."""

    backbone: Backbone
    federation: Federation
    pixels: Pixels
    batch_size: int
    clients_per_pass: int

    @torch.no_grad()
    def table(self, method: Method, layout: Layout, clients: Sequence[Client], gather: Callable[[Sequence[int]], Tensor]) -> Tensor:
        """Accuracy in percent [C, 4] (columns `COLUMNS`, NaN where there is nothing to test), on the CPU, in fp64.

        ``gather`` gives the stack [C, P] of the clients with these ids.
        """
        table = torch.full((len(clients), len(COLUMNS)), float("nan"), dtype=torch.float64)
        if not clients:
            return table
        for name, images in self.federation.sets().items():
            correct = self._correct(images, method, layout, clients, gather)
            table[:, COLUMNS.index(name)] = correct.mean(dim=1) * 100.0
            if name == "base":
                for row, client in enumerate(clients):
                    table[row, 0] = correct[row, client.test].mean() * 100.0
        return table

    def _correct(self, images: EvaluationSet, method: Method, layout: Layout, clients: Sequence[Client], gather) -> Tensor:
        """[C, n] fp64: 1 where the client's model is right about an image of the set."""
        groups = [clients[i : i + self.clients_per_pass] for i in range(0, len(clients), self.clients_per_pass)]
        prompts = self.backbone.prompts(self.federation.template, images.classes)
        with self.backbone.autocast():
            stem = method.text_stem(prompts)
        states = [layout.views(gather([c.id for c in group])) for group in groups]
        texts = []
        for state in states:
            with self.backbone.autocast():
                texts.append(method.text_features(state, stem))
        correct = torch.empty(len(clients), len(images.indices), dtype=torch.float64)
        size = max(1, self.batch_size // max(map(len, groups)))
        for start in range(0, len(images.indices), size):
            part = slice(start, start + size)
            pixels = self.pixels.fitted(images.split, images.indices[part])
            labels = images.labels[part].to(self.backbone.device)
            rows = 0
            shared_stem = None
            for group, state, text in zip(groups, states, texts, strict=True):
                with self.backbone.autocast():
                    if (views := cameras(group)) is not None:  # every client sees the images in its own way
                        own = self.pixels.normalise(pixels.expand(len(group), *pixels.shape), views)
                        image_stem = method.image_stem(own.flatten(0, 1))
                    else:
                        shared_stem = shared_stem or method.image_stem(self.pixels.normalise(pixels))
                        image_stem = shared_stem.repeat(len(group))
                    logits = method.logits(state, method.image_features(state, image_stem), text)
                correct[rows : rows + len(group), part] = (logits.argmax(dim=-1) == labels).cpu().double()
                rows += len(group)
        return correct


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean; 0 if any value is 0."""
    return len(values) / sum(1.0 / v for v in values) if all(v > 0 for v in values) else 0.0


def summarise(table: Tensor, domains: Sequence[str | None] = ()) -> dict[str, Any]:
    """Averages over clients [K, 4] -> local, base, novel, their harmonic mean, and the spread over clients.

    ``hm`` is the harmonic mean of the averages of Local, Base and Novel (it reproduces the published averages); ``hm_base_novel`` of
    Base and Novel alone. A column with nothing to test is None and is left out of the means. Where clients belong to ``domains`` [K],
    ``domains`` is the mean Local accuracy in each and ``domain_average`` the mean of those.
    """
    result: dict[str, Any] = {}
    columns = {name: _finite(table[:, i]) for i, name in enumerate(COLUMNS)}
    if not columns["unseen"]:
        del columns["unseen"]
    for name, values in columns.items():
        result[name] = sum(values) / len(values) if values else None
    present = [v for name in COLUMNS[:3] if (v := result[name]) is not None]
    result["hm"] = harmonic_mean(present) if present else None
    both = [v for name in ("base", "novel") if (v := result[name]) is not None]
    result["hm_base_novel"] = harmonic_mean(both) if len(both) == 2 else None
    for name, values in columns.items():
        result[f"{name}_std"] = float(torch.tensor(values, dtype=torch.float64).std(correction=0)) if values else None
        result[f"{name}_worst"] = min(values) if values else None
        result[f"{name}_worst_decile"] = percentile(values, 0.1) if values else None
    names = [name for name in dict.fromkeys(domains) if name is not None]
    if names:
        own = {name: _finite(table[[d == name for d in domains], 0]) for name in names}
        result["domains"] = {name: sum(values) / len(values) if values else None for name, values in own.items()}
        means = [mean for mean in result["domains"].values() if mean is not None]
        result["domain_average"] = sum(means) / len(means) if means else None
    return result


def _finite(column: Tensor) -> list[float]:
    return column[torch.isfinite(column)].tolist()
