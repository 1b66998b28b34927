"""What the clients of privacy.py hold, as numbers that an attacker looks for; and what the uploaded model itself says of pictures.

Shape legend: n clients, V victims, N pictures, X exchanged parameters of one client, K classes, F numbers of a feature, H pictures.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property

import torch
from privacy_clients import CLASSES, SHOTS, Federation
from torch import Tensor
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip.stems import Stem
from pfedmma.data.partition.camera import Camera
from pfedmma.data.partition.federated import Client
from pfedmma.stack.rules import NOTHING

KINDS = ("members", "same classes", "other classes")  # of pictures that a victim may have trained on
GUESSES = 2  # pictures of each class that the attacker shows to the uploaded model
REFERENCES = 8  # pictures that show what a camera does to features
TOGETHER = 256  # pictures of one pass


class Held:
    """What there is to find. ``candidates`` [V,3,H]: pictures of each of `KINDS`, of which a victim has trained on the members alone."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.labels = federation.source.splits["train"].labels
        self.candidates = torch.stack([self._candidates(client) for client in federation.victims])

    def _candidates(self, client: Client) -> Tensor:
        federation = self.federation
        generator = rng.generator(federation.config.seed, "candidates", client.id)
        rest = torch.tensor([label for label in range(federation.count) if label not in client.classes])
        others = rest[torch.randperm(len(rest), generator=generator)[:CLASSES]].tolist()
        kinds = [client.train]
        for classes in (client.classes, others):
            pools = [federation.pictures(label, of_victims=True) for label in classes]
            strange = [pool[~torch.isin(pool, client.train)] for pool in pools]
            kinds.append(torch.cat([pool[torch.randperm(len(pool), generator=generator)[:SHOTS]] for pool in strange]))
        return torch.stack(kinds)

    @cached_property
    def features(self) -> Tensor:
        """Of every training picture of a base class, as CLIP comes, without a camera [N,F]."""
        return self.features_of(torch.arange(int((self.labels < self.federation.count).sum())))

    @torch.no_grad()
    def features_of(self, positions: Tensor, through: Camera | None = None) -> Tensor:
        """[N] -> [N,F]."""
        pixels, backbone = self.federation.pixels, self.federation.backbone
        parts = []
        for some in positions.split(TOGETHER):
            images = pixels.normalise(pixels.fitted("train", some)[None], through)[0]
            parts.append(F.normalize(backbone.image_features(images).value, dim=-1))
        return torch.cat(parts)

    @cached_property
    def peculiar(self) -> Tensor:
        """How a picture's features differ from the mean of its class, which the attacker takes from pictures of its own [N,F]."""
        classes = range(self.federation.count)
        means = torch.stack([self.features[self.federation.pictures(label, of_victims=False)].mean(dim=0) for label in classes])
        return self.features - means[self.labels[: len(self.features)]]

    def of_clients(self, numbers: Tensor) -> Tensor:
        """The mean over each client's training pictures [n,F] of what is known of every picture [N,F]."""
        return torch.stack([numbers[client.train].mean(dim=0) for client in self.federation.clients])

    def cameras(self) -> Tensor:
        """What cameras do: `turn_of` hues [n,2]; of a pattern, how it moves the features of pictures [n,F]."""
        seen = [Camera.stacked([client.camera]) for client in self.federation.clients if client.camera is not None]
        if self.federation.config.data.camera_kind == "hue":
            return torch.stack([turn_of(camera.colours.squeeze()) for camera in seen if camera.colours is not None])
        step = self.federation.count // REFERENCES
        references = torch.stack([self.federation.pictures(step * i, of_victims=False)[0] for i in range(REFERENCES)])
        plain = self.features_of(references)
        return torch.stack([(self.features_of(references, camera) - plain).mean(dim=0) for camera in seen])


def turn_of(colours: Tensor) -> Tensor:
    """Cosine and sine of the angle by which a camera's colours [3,3] turn hues, both times what fading leaves [2]."""
    return torch.stack([(colours.trace() - 1.0) / 2.0, (colours[1, 0] - colours[0, 1]) * math.sqrt(3.0) / 2.0])


@dataclasses.dataclass(frozen=True)
class Liking:
    """How far an update lowers losses: those of each victim's candidates, as its camera takes them [V,3,H], and of the attacker's own
    pictures of every class, the mean of each class [V,K]."""

    candidates: Tensor
    classes: Tensor


@torch.no_grad()
def liking(held: Held, updates: Tensor, knows_private: bool) -> Liking:
    """What the model says of pictures once a victim's update [V,X] is put into it.

    Its private tensors are as they begin: with ``knows_private`` in this client itself, else in a client that nobody is.
    """
    federation = held.federation
    batches, layout = federation.engine.training.batches, federation.engine.training.layout
    shown = torch.cat([federation.pictures(label, of_victims=False)[:GUESSES] for label in range(federation.count)])
    nobody = dataclasses.replace(federation.clients[0], train=shown, camera=None)
    guesses = batches.whole_stem(nobody, torch.arange(len(shown)))
    of_candidates, of_classes = [], []
    for client, update, chosen in zip(federation.victims, updates, held.candidates, strict=True):
        start = federation.start.common.clone()
        if knows_private and federation.start.private is not None:
            start[layout.private] = federation.start.private(client.id)
        moved = torch.stack([start, start])
        moved[1, : layout.exchanged_size] += update
        mine = dataclasses.replace(client, train=chosen.flatten())
        candidates = batches.whole_stem(mine, torch.arange(chosen.numel()))
        labels = held.labels[torch.cat([chosen.flatten(), shown])]
        drops = losses_drop(federation, moved, candidates.join([candidates, guesses]), labels)
        of_candidates.append(drops[: chosen.numel()].view(chosen.shape))
        of_classes.append(drops[chosen.numel() :].view(-1, GUESSES).mean(dim=1))
    return Liking(torch.stack(of_candidates), torch.stack(of_classes))


def losses_drop(federation: Federation, params: Tensor, images: Stem, labels: Tensor) -> Tensor:
    """How much smaller the losses of pictures [N] are under the second of two clients' parameters [2,P] than under the first."""
    forward = federation.engine.training.forward
    state = federation.engine.training.layout.views(params)
    state |= forward.fixed(state, NOTHING)
    logits = forward.logits(state, images.repeat(2), forward.text_features(state))
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(2), reduction="none").view(2, -1)
    return losses[0] - losses[1]
