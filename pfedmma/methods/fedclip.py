"""FedCLIP (Lu et al. 2023, arXiv 2302.13485): an attention over the numbers of CLIP's image feature, averaged over the participants.

Trained: ``hidden`` and ``gate``, two linears D -> D. With f the image feature as CLIP gives it, not normalised,

    A(f) = softmax(gate(tanh(hidden(f)))),      f' = A(f) * f,

and f' is normalised and compared with CLIP's text features. Both linears are exchanged, by the plain mean over participants: a client's
number of images does not count. They start as ``torch.nn.Linear`` does (uniform within 1/sqrt(D)).

``loss: infonce`` is CLIP's own training loss: in a batch each image is to find the text of its class among those of the batch's images,
and each text its image, so two images of one class are each other's negatives. ``loss: ce`` is cross-entropy over all classes.

A client answers with the server's linears; what the public code tests is not known here.

Deliberate differences: where clients with batches of unequal size share a pass, the images that fill up a batch are left out as rows and
as columns; and Adam begins afresh in each round unless ``optimizer.state`` is ``persist``.

Shape legend: C clients, B images a client, K classes, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip.backbone import Backbone
from pfedmma.clip.stems import Features
from pfedmma.methods.base import Entry, Method, cosine_logits, cross_entropy, per_client
from pfedmma.stack.linear import apply_linear, initial_linear, linear_shapes
from pfedmma.stack.rules import UNIFORM, State
from pfedmma.system import checks
from pfedmma.system.options import setting

LINEARS = ("hidden", "gate")


@dataclass(frozen=True)
class FedCLIPConfig:
    """FedCLIP: an attention over the image feature."""

    loss: str = setting("infonce", "infonce (images against the texts of their batch) or ce (cross-entropy over all classes)")

    def __post_init__(self) -> None:
        checks.one_of("loss", self.loss, ("infonce", "ce"))


@dataclass(frozen=True)
class FedCLIP(Method):
    """One attention on image features for all clients; ``width`` is D."""

    settings: FedCLIPConfig
    width: int

    @classmethod
    def from_settings(cls, settings: FedCLIPConfig, backbone: Backbone) -> FedCLIP:
        return cls(backbone, settings, backbone.visual.embedding)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, gate = (linear_shapes(name, self.width, self.width) for name in LINEARS)
        return hidden | gate

    @property
    def exchange(self) -> dict[str, str]:
        return dict.fromkeys(self.shapes, UNIFORM)

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        hidden, gate = (initial_linear(name, self.width, self.width, generator) for name in LINEARS)
        return hidden | gate

    def image_features(self, state: State, stem: Features) -> Tensor:
        features = per_client(state, stem.value)
        attention = apply_linear(state, "gate", apply_linear(state, "hidden", features).tanh()).float().softmax(dim=-1)
        return F.normalize(attention * features, dim=-1)

    def loss(self, state: State, images: Tensor, texts: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        if self.settings.loss == "ce":
            return super().loss(state, images, texts, labels, weights)
        own = texts.take_along_dim(labels.unsqueeze(-1), dim=1)  # [C,B,D], the text of each image
        return infonce(cosine_logits(images, own, self.backbone.logit_scale), weights)


def infonce(logits: Tensor, weights: Tensor) -> Tensor:
    """Mean of the cross-entropies of images to texts and back, the pairs on the diagonal: [C,B,B] (image, text), [C,B] -> [C]."""
    target = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
    # Padding is no candidate. It keeps its own pair: a row without any candidate has an infinite loss, which no weight of 0 makes 0.
    absent = (weights == 0).unsqueeze(1) & ~torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    to_texts, to_images = (cross_entropy(x.masked_fill(absent, -torch.inf), target, weights) for x in (logits, logits.transpose(1, 2)))
    return (to_texts + to_images) / 2


PUBLISHED = {"name": "adam", "lr": 5e-5, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6, "weight_decay": 0.2}
ENTRIES = (Entry("fedclip", FedCLIP.from_settings, FedCLIPConfig, PUBLISHED),)
