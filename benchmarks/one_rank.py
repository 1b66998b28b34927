"""What one rank computes, the local step of its clients and their evaluation, on tensors of noise.

On the meta device tensors have shapes and no numbers; only the token ids of prompts stay on the host, where the text tower reads how long
the longest is.

Shape legend: k clients of a pass, B images a client, n test images, S pixels a side, P parameters of one client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pfedmma.accuracy.evaluator import EvaluationConfig, Evaluator
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.clip.stems import StemCache
from pfedmma.cost.step import LocalStep, TokensOnHost, blank_pixels, class_names
from pfedmma.data.partition.federated import Client, EvaluationSet, FederatedData
from pfedmma.methods import registry
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.stack.rules import Others


@dataclass(frozen=True)
class Setting:
    """``batch`` images a client, ``classes`` base classes and as many novel ones, ``images`` of each of the two test sets."""

    model: str
    method: str
    precision: str
    batch: int
    classes: int
    images: int


class OneRank(LocalStep):
    """A frozen CLIP, a method, and clients on a device; ``backbone``: the CLIP where there is one, else it is made."""

    def __init__(self, setting: Setting, device: torch.device, backbone: Backbone | None = None) -> None:
        if backbone is None:
            clip = create_model(BackboneConfig(setting.model, "none"), seed=0).to(device)
            backbone = (TokensOnHost if device.type == "meta" else Backbone).freeze(clip, setting.model, setting.precision)
        self.backbone = backbone
        method = registry.build(MethodConfig(setting.method), self.backbone)
        names = class_names(2 * setting.classes)
        optimizer = OptimizerConfig(**registry.entry_of(setting.method).optimizer)
        super().__init__(method, optimizer, names[: setting.classes], setting.batch)
        self.setting, self.novel = setting, names[setting.classes :]
        self.pixels = blank_pixels(names, 2 * setting.images, self.backbone.preprocess, device)

    def evaluation(self, clients: int, together: int, stems: StemCache) -> Callable[[], object]:
        """`Evaluator.table` of so many clients, ``together`` in a pass at most, on both test sets."""
        count, classes = self.setting.images, self.setting.classes
        nothing, rows = torch.empty(0, dtype=torch.long), torch.arange(count)
        members = tuple(Client(i, (), nothing, nothing, rows[:2]) for i in range(clients))
        sets = (EvaluationSet("test", names, rows + first, rows % classes) for names, first in ((self.base, 0), (self.novel, count)))
        tests = Evaluator(FederatedData(members, *sets, self.template), self.pixels, EvaluationConfig().batch_size, together)

        return lambda: tests.table(self.method, NoiseAnswers(self), members, stems)


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
