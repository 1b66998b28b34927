"""What one rank computes, the local step of its clients and their evaluation, on tensors of noise.

On the meta device tensors have shapes and no numbers; only the token ids of prompts stay on the host, where the text tower reads how long
the longest is.

Shape legend: k clients of a pass, B images a client, n test images, S pixels a side, P parameters of one client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from drawn_files import class_names
from torch import Tensor

from pfedmma.accuracy.evaluator import EvaluationConfig, Evaluator
from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.clip.stems import StemCache
from pfedmma.data.partition.federated import Client, EvaluationSet, FederatedData
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import GENERIC_TEMPLATE, Source, Split
from pfedmma.engine.batches import Batch, Batches, LocalWork
from pfedmma.engine.local import LocalTraining
from pfedmma.methods import registry
from pfedmma.methods.forward import Forward
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack.layout import Layout
from pfedmma.stack.optim import LossScale, OptimizerConfig, initial_state
from pfedmma.stack.rules import Given, Others

SPREAD = 0.02  # of the clients' tensors


@dataclass(frozen=True)
class Setting:
    """``batch`` images a client, ``classes`` base classes and as many novel ones, ``images`` of each of the two test sets."""

    model: str
    method: str
    precision: str
    batch: int
    classes: int
    images: int


class OneRank:
    """A frozen CLIP, a method, and clients on a device."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self.setting, self.device = setting, device
        clip = create_model(BackboneConfig(setting.model, "none"), seed=0).to(device)
        self.backbone = (TokensOnHost if device.type == "meta" else Backbone).freeze(clip, setting.model, setting.precision)
        self.method = registry.build(MethodConfig(setting.method), self.backbone)
        self.optimizer = OptimizerConfig(**registry.entry_of(setting.method).optimizer)
        names = class_names(2 * setting.classes)
        self.template = GENERIC_TEMPLATE
        self.base, self.novel = names[: setting.classes], names[setting.classes :]
        blank = torch.zeros(3, *2 * (self.backbone.preprocess.size,), dtype=torch.uint8)
        split = Split(torch.zeros(2 * setting.images, dtype=torch.long), lambda index: blank)
        self.pixels = Pixels(Source("blank", names, {"train": split, "test": split}), self.backbone.preprocess, "none", device)

    @property
    def layout(self) -> Layout:
        return self.method.layout

    @cached_property
    def training(self) -> LocalTraining:
        forward = Forward.from_prompts(self.method, self.template, self.base)
        return LocalTraining(self.layout, Batches(forward, self.pixels, LocalWork(1, self.setting.batch, self.optimizer, seed=0)))

    def step(self, clients: int) -> Callable[[], Tensor]:
        """`LocalTraining.step` of so many clients in one pass; gives their losses."""
        training, size = self.training, (clients, self.setting.batch)
        params = self.noise(clients, self.layout.size)
        state = initial_state(self.optimizer, clients, self.layout.trained_size, self.device)
        fixed = training.forward.fixed(self.layout.views(params), self.given(clients))
        side = self.backbone.preprocess.size
        images = torch.randn(clients * self.setting.batch, 3, side, side, device=self.device)
        labels = torch.zeros(size, dtype=torch.long, device=self.device)
        weights = torch.full(size, 1.0 / self.setting.batch, device=self.device)
        batch = Batch(images, labels, weights, torch.arange(clients, device=self.device))
        scale = LossScale(clients, self.device, enabled=self.setting.precision == "fp16")
        return lambda: training.step(params, state, fixed, batch, scale)

    def given(self, clients: int) -> Given:
        """What the clients know besides their tensors, where the method makes use of it."""
        held = torch.ones(clients, self.setting.classes, dtype=torch.bool, device=self.device) if self.method.knows_classes else None
        return Given(self.others(clients), held)

    def others(self, clients: int) -> Others | None:
        reads = self.method.reads
        if not reads:
            return None
        shapes = {name: shape for name, shape in self.method.shapes.items() if self.method.exchange.get(name) == "pool"}
        return Others(
            {name: self.noise(clients, reads, *shape) for name, shape in shapes.items()},
            torch.ones(clients, reads, dtype=torch.bool, device=self.device),
        )

    def evaluation(self, clients: int, together: int, stems: StemCache) -> Callable[[], object]:
        """`Evaluator.table` of so many clients, ``together`` in a pass at most, on both test sets."""
        count, classes = self.setting.images, self.setting.classes
        nothing, rows = torch.empty(0, dtype=torch.long), torch.arange(count)
        members = tuple(Client(i, (), nothing, nothing, rows[:2]) for i in range(clients))
        sets = (EvaluationSet("test", names, rows + first, rows % classes) for names, first in ((self.base, 0), (self.novel, count)))
        tests = Evaluator(FederatedData(members, *sets, self.template), self.pixels, EvaluationConfig().batch_size, together)

        return lambda: tests.table(self.method, NoiseAnswers(self), members, stems)

    def noise(self, *size: int) -> Tensor:
        return SPREAD * torch.randn(size, device=self.device)


class TokensOnHost(Backbone):
    """A backbone on the meta device whose token ids stay on the host until they are embedded."""

    @classmethod
    def freeze(cls, *args: Any, **options: Any) -> TokensOnHost:
        found = super().freeze(*args, **options)
        plain = found.text.embed
        found.text.embed = lambda tokens: plain(tokens.to(found.device))
        return found

    def prompts(self, template: str, names: Sequence[str]) -> Prompts:
        texts = [template.format(name.replace("_", " ")) for name in names]
        return Prompts(tuple(names), self.tokenizer(texts))


@dataclass(frozen=True)
class NoiseAnswers:
    """In place of `pfedmma.stack.answers.Answers`: every client has tensors of its own."""

    rank: OneRank
    texts: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self, ids: Sequence[int]) -> dict[str, Tensor]:
        return self.rank.layout.views(self.rank.noise(len(ids), self.rank.layout.size))

    def others(self, ids: Sequence[int]) -> Others | None:
        return self.rank.others(len(ids))

    def own(self, client: int) -> bool:
        return True
