"""Clients of unequal size on the tiny CLIP, as one stack."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.data.partition.camera import camera
from pfedmma.data.partition.federated import Client
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import GENERIC_TEMPLATE, Source, Split
from pfedmma.engine.batches import LocalWork
from pfedmma.engine.local import Trainer
from pfedmma.methods import registry
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack.client_state import ClientStore
from pfedmma.stack.layout import Layout
from pfedmma.stack.optim import OptimizerConfig

NAMES = ("cat", "dog", "bird", "fern", "red_fish")
# One image; less than a batch; exactly a batch; several batches, the last one ragged; and again, so that two clients run to the end.
SIZES = (1, 3, 4, 11, 9)
BATCH, EPOCHS = 4, 2
SGD = OptimizerConfig(lr=0.01)


def noise() -> Source:
    """Images of noise, 32 x 32, labels in turn; enough for all clients."""
    count = sum(SIZES)
    pictures = torch.randint(256, (count, 3, 32, 32), generator=rng.generator(0, "noise")).to(torch.uint8)
    return Source("noise", NAMES, {"train": Split(torch.arange(count) % len(NAMES), lambda index: pictures[index])})


def new_clients() -> list[Client]:
    """Clients of `SIZES` images, each with its own camera."""
    cuts = torch.arange(sum(SIZES)).split(SIZES)
    nothing = torch.empty(0, dtype=torch.long)
    return [
        Client(id=i, classes=(), train=own, labels=own % len(NAMES), test=nothing, camera=camera(0, i, 0.5)) for i, own in enumerate(cuts)
    ]


def new_trainer(clip: nn.Module, optimizer: OptimizerConfig, precision: str = "fp32", activation: str = "gelu") -> Trainer:
    """pFedMMA on the tiny CLIP; alpha far above its default, so that the adapters matter.

    GELU, as at a ReLU's kink the last bit of a sum decides on a gradient: once in some millions of units, and then it is seen.
    """
    backbone = Backbone.freeze(clip, "tiny", precision)
    method = registry.build(MethodConfig(dim=8, scale=0.3, blocks=3, activation=activation), backbone)
    pixels = Pixels(noise(), backbone.preprocess, "crop", backbone.device)
    with backbone.autocast():
        text_stem = method.text_stem(backbone.prompts(GENERIC_TEMPLATE, NAMES))
    work = LocalWork(EPOCHS, BATCH, optimizer, seed=0)
    return Trainer(backbone, method, Layout(method.shapes, method.exchange), pixels, text_stem, work)


def new_store(trainer: Trainer) -> ClientStore:
    """Every client with a private state of its own, biases too, so that no two could be swapped unseen."""
    states = [drawn_state(trainer, client) for client in range(len(SIZES) + 1)]
    store = ClientStore(trainer.layout, states.pop(), trainer.work.optimizer, torch.device("cpu"))
    store.private.update({client: state[trainer.layout.exchanged_size :] for client, state in enumerate(states)})
    return store


def drawn_state(trainer: Trainer, client: int) -> Tensor:
    """[P]; biases start away from 0, so that 1e-5 of their size is above the rounding errors of their gradients' long sums."""
    generator = rng.generator(0, "state", client)
    weights = trainer.layout.pack(trainer.method.initial(generator))
    return weights + 0.1 * torch.randn(weights.shape, generator=generator)
