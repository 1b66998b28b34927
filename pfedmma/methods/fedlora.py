"""FedLoRA: CLIP-LoRA (Zanella and Ben Ayed 2024, arXiv 2405.18541), averaged over the participants.

The projections to queries, keys and values of every block of both towers become W x + alpha / sqrt(r) B A x, W frozen (LoRA: Hu et al.
2021, arXiv 2106.09685). Trained: ``<tower>.<block>.<q|k|v>.a`` [r,W] and ``.b`` [W,r], all exchanged by weighted mean. A and B are
averaged apart: the mean of the B times the mean of the A is not the mean of the products B A, so what the server sends out is not the
mean of the clients' models. That is what federated averaging of these tensors does, and it is kept.

A client answers with the server's factors; the public code of CLIP-LoRA is not federated, and says nothing of it.

Deliberately unlike the public code: B A is never merged into the frozen weights, which all clients share, nor formed as a matrix;
the dropout masks follow from each client's own number (see `pfedmma.rng.keep_mask`), not from the device's generator; there is no cosine
schedule down to 1e-6 and no fp16 loss scaling unless asked for; the factors are made in fp32 from the run's own seed; the number of local
steps is the federation's, not 500 a shot.

Shape legend: C clients, N sequences of one client, T tokens, W width, r rank.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.clip.prompt_stem import PromptStem
from pfedmma.clip.stems import TowerStem
from pfedmma.clip.towers import Places
from pfedmma.methods.adapters.multimodal import TOWERS
from pfedmma.methods.base import SEEDS, Entry, Method, count, per_client
from pfedmma.stack.rules import MEAN, State
from pfedmma.system import checks
from pfedmma.system.options import setting

PARTS = ("q", "k", "v")


@dataclass(frozen=True)
class FedLoRAConfig:
    """FedLoRA: low-rank additions to the attention of both towers."""

    rank: int = setting(2, "rank r of the additions B A")
    alpha: float = setting(1.0, "B A x is multiplied by alpha / sqrt(r)")
    dropout: float = setting(0.25, "share of the input of A that is left out in training, from 0 to less than 1")

    def __post_init__(self) -> None:
        checks.between("rank", self.rank, 1, 4096)
        checks.at_least("alpha", self.alpha, 0)
        checks.below_one("dropout", self.dropout)


@dataclass(frozen=True)
class FedLoRA(Method):
    """Low-rank additions to the attention of both towers, the same for all clients."""

    settings: FedLoRAConfig

    @classmethod
    def from_settings(cls, settings: FedLoRAConfig, backbone: Backbone) -> FedLoRA:
        return cls(backbone, settings)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, width in self.projections():
            shapes[f"{name}.a"], shapes[f"{name}.b"] = (self.settings.rank, width), (width, self.settings.rank)
        return shapes

    @property
    def exchange(self) -> dict[str, str]:
        return dict.fromkeys(self.shapes, MEAN)

    @property
    def in_products(self) -> Collection[str]:
        return self.shapes.keys()

    def projections(self) -> Iterator[tuple[str, int]]:
        """Name and width of every adapted projection."""
        for tower in TOWERS:
            frozen = getattr(self.backbone, tower)
            for block in range(1, frozen.depth + 1):
                for part in PARTS:
                    yield f"{tower}.{block}.{part}", frozen.width

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """A as torch makes a linear layer (Kaiming-uniform, a = sqrt 5: within 1 / sqrt(W)), B zero: training starts from CLIP itself."""
        tensors = {name: torch.zeros(shape) for name, shape in self.shapes.items()}
        for name, tensor in tensors.items():
            if name.endswith(".a"):
                nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)
        return tensors

    def image_stem(self, pixels: Tensor) -> TowerStem:
        return self.backbone.image_stem(pixels, 0)

    def text_stem(self, prompts: Prompts) -> PromptStem:
        return self.backbone.text_stem(prompts, 0)

    def image_features(self, state: State, stem: TowerStem) -> Tensor:
        return self.features(state, stem, "visual")

    def text_features(self, state: State, stem: PromptStem) -> Tensor:
        return self.features(state, stem.repeat(count(state)), "text")

    def features(self, state: State, stem: TowerStem | PromptStem, name: str) -> Tensor:
        """Normalised features of the tower ``name``: stem of C*N sequences, client by client -> [C,N,D]."""
        tower = getattr(self.backbone, name)

        def places(some: Some | None = None) -> Places:
            return Places(attention=lambda block, part, normed: self.low_rank(state, f"{name}.{block}.{part}", normed, some))

        whole = dataclasses.replace(places(), of_part=lambda classes, longest: places(Some(classes, longest)))
        return F.normalize(per_client(state, tower.features(tower.finish(stem, whole)).float()), dim=-1)

    def low_rank(self, state: State, name: str, normed: Tensor, some: Some | None = None) -> Tensor:
        """What is added to the projection ``name``: alpha / sqrt(r) B A dropout(normed), [C*N,T,W] -> [C*N,T,W].

        ``some``: of which sequences alone; None: of all.
        """
        a, b = state[f"{name}.a"], state[f"{name}.b"]
        factor = self.settings.alpha / math.sqrt(self.settings.rank)
        x = per_client(state, normed)
        if SEEDS in state and self.settings.dropout > 0:  # in training only
            share = 1.0 - self.settings.dropout
            x = x * kept(state[SEEDS], name, x.shape[1:], share, some)
            factor /= share  # keeps the expected value; applied below, where there are r numbers a token instead of W
        x = x.flatten(1, 2)
        x = torch.bmm(torch.bmm(x, a.transpose(1, 2)) * factor, b.transpose(1, 2))
        return x.view(normed.shape)


class Some(NamedTuple):
    """Sequences that go through a tower by themselves: their ``numbers`` [n], and T of the ``longest`` of all."""

    numbers: Tensor
    longest: int


def kept(seeds: Tensor, name: str, shape: Sequence[int], share: float, some: Some | None) -> Tensor:
    """What dropout keeps of [C,n,T,W]; some of the sequences, cut shorter, have their part of the mask of all."""
    if some is None:
        return rng.keep_mask(seeds, name, shape, share)
    _, tokens, width = shape
    longest = 1 if tokens == 1 else some.longest  # in the last block, of all sequences only the pooled token is left
    first = some.numbers[:, None] * longest + torch.arange(tokens, device=seeds.device)
    return rng.keep_elements(seeds, name, first[..., None] * width + torch.arange(width, device=seeds.device), share)


PUBLISHED = {"name": "adamw", "lr": 2e-4, "weight_decay": 1e-2}
ENTRIES = (Entry("fedlora", FedLoRA.from_settings, FedLoRAConfig, PUBLISHED),)
