"""The plain path: the oracle of the tests, open_clip's own forward pass, one client at a time, everything computed anew."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip.backbone import PRECISIONS
from pfedmma.data.partition.federated import EvaluationSet
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import GENERIC_TEMPLATE
from pfedmma.methods.adapters.multimodal import AdapterSpec
from pfedmma.stack.optim import OptimizerConfig

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tests.support import oracle

BATCH = 100  # images of a forward pass in evaluation


@dataclass(frozen=True)
class PlainPath:
    """CLIP as open_clip makes it, and where the adapters of a client go."""

    clip: Any
    spec: AdapterSpec
    pixels: Pixels
    precision: str
    optimizer: OptimizerConfig

    @property
    def device(self) -> torch.device:
        return self.clip.logit_scale.device

    def model(self, tensors: Mapping[str, Tensor]) -> oracle.Adapters:
        """One client's adapters {name: [*shape]} as ordinary modules."""
        model = oracle.Adapters(self.clip, len(self.spec.pairs), self.spec.dim, self.spec.scale).to(self.device)
        for name, tensor in tensors.items():
            model.get_parameter(name).data.copy_(tensor)
        return model

    def step(self, tensors: Mapping[str, Tensor], images: Tensor, labels: Tensor, classes: Sequence[str]) -> Callable[[], Tensor]:
        """A local step of a client on normalised ``images`` [B,3,S,S] with ``labels`` [B]; gives its loss."""
        model = self.model(tensors)
        optimizer = oracle.new_optimizer(model, self.optimizer)
        tokens = oracle.prompts(self.clip, GENERIC_TEMPLATE, classes).to(self.device)

        def step() -> Tensor:
            with self._autocast():
                loss = F.cross_entropy(oracle.logits(self.clip, model, images, tokens), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    @torch.no_grad()
    def accuracies(self, tensors: Mapping[str, Tensor], sets: Sequence[EvaluationSet]) -> list[float]:
        """A client's accuracy in percent on each test set: texts once a set, every image of every set."""
        model = self.model(tensors)
        return [self._accuracy(model, images) for images in sets]

    def _accuracy(self, model: oracle.Adapters, images: EvaluationSet) -> float:
        tokens = oracle.prompts(self.clip, GENERIC_TEMPLATE, images.classes).to(self.device)
        right = 0
        with self._autocast(), model.in_place():
            texts = self.clip.encode_text(tokens, normalize=True)
            for rows in torch.arange(len(images.indices)).split(BATCH):
                pixels = self.pixels.normalise(self.pixels.fitted(images.split, images.indices[rows]))
                features = self.clip.encode_image(pixels, normalize=True)
                right += int(((features @ texts.T).argmax(dim=-1).cpu() == images.labels[rows]).sum())
        return 100.0 * right / max(1, len(images.indices))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32")
