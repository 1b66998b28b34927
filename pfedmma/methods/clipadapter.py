"""CLIP-Adapter (Gao et al. 2021, arXiv 2110.04544): a bottleneck behind the image tower, averaged over the participants (FedAvg).

Trained: ``down.weight`` [D/4,D] and ``up.weight`` [D,D/4], without biases, both exchanged by weighted mean. With f the image feature as
CLIP gives it, not normalised,

    A(f) = relu(up relu(down f)),      f' = alpha A(f) + (1 - alpha) f,

and f' is normalised and compared with CLIP's text features of the data's own template. Both start as ``torch.nn.Linear`` does. They must
not start at zero: where up is zero, its output stands in the ReLU's kink, nothing has a gradient and nothing is ever trained.

A client answers with the server's weights; the public code of CLIP-Adapter is not federated, and says nothing of it.

Deliberately unlike the public code: the feature's width D is read from the backbone (there it is 1024, that of a ResNet). That code leaves
the optimizer to a configuration it does not bring; the default here, Adam at 1e-5 without weight decay, has the paper's learning rate and
is else our choice: SGD at that rate would leave the weights about where they begin.

Shape legend: C clients, B images a client, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip.backbone import Backbone
from pfedmma.clip.stems import Features
from pfedmma.methods.base import Entry, Method, per_client
from pfedmma.stack.linear import initial_weight
from pfedmma.stack.rules import MEAN, State
from pfedmma.system import checks
from pfedmma.system.options import setting

REDUCTION = 4  # D by the width of the bottleneck
DOWN, UP = "down.weight", "up.weight"


@dataclass(frozen=True)
class CLIPAdapterConfig:
    """CLIP-Adapter: a bottleneck behind the image tower."""

    alpha: float = setting(0.2, "share of the adapted image feature, from 0 to 1; the rest is CLIP's own")

    def __post_init__(self) -> None:
        checks.between("alpha", self.alpha, 0, 1)


@dataclass(frozen=True)
class CLIPAdapter(Method):
    """One bottleneck on image features for all clients; ``width`` is D."""

    settings: CLIPAdapterConfig
    width: int

    @classmethod
    def from_settings(cls, settings: CLIPAdapterConfig, backbone: Backbone) -> CLIPAdapter:
        return cls(backbone, settings, backbone.visual.embedding)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        narrow = self.width // REDUCTION
        return {DOWN: (narrow, self.width), UP: (self.width, narrow)}

    @property
    def exchange(self) -> dict[str, str]:
        return dict.fromkeys(self.shapes, MEAN)

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {name: initial_weight(shape, generator) for name, shape in self.shapes.items()}

    def image_features(self, state: State, stem: Features) -> Tensor:
        features, alpha = per_client(state, stem.value), self.settings.alpha
        hidden = torch.bmm(features, state[DOWN].mT).relu()
        adapted = torch.bmm(hidden, state[UP].mT).relu()
        return F.normalize(alpha * adapted.float() + (1.0 - alpha) * features, dim=-1)


PUBLISHED = {"name": "adam", "lr": 1e-5, "weight_decay": 0.0}
ENTRIES = (Entry("clipadapter", CLIPAdapter.from_settings, CLIPAdapterConfig, PUBLISHED),)
