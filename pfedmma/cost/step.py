"""A local step of clients of a method on tensors of noise; on the meta device it has shapes and no numbers.

Shape legend: k clients of a pass, B images a client, S pixels a side, P parameters of one client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.clip.loading import BackboneConfig, create_shapes, own_tokenizer
from pfedmma.clip.preprocess import Preprocess
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import GENERIC_TEMPLATE, Source, Split
from pfedmma.data.sources.cifar import SUPERCLASSES
from pfedmma.engine.batches import Batch, Batches, LocalWork
from pfedmma.engine.local import LocalTraining
from pfedmma.methods.base import Method
from pfedmma.methods.forward import Forward
from pfedmma.stack.layout import Layout
from pfedmma.stack.optim import LossScale, OptimizerConfig, OptimizerState, initial_state
from pfedmma.stack.rules import POOL, Given, Others
from pfedmma.system.errors import UserError

SPREAD = 0.02  # of the clients' tensors
META = torch.device("meta")


class TokensOnHost(Backbone):
    """A backbone on the meta device whose token ids stay on the host, where it is read how long prompts are, until they are embedded."""

    @classmethod
    def freeze(cls, *args: Any, **options: Any) -> Backbone:
        found = super().freeze(*args, **options)
        plain = found.text.embed
        found.text.embed = lambda tokens: plain(tokens.to(found.device))  # type: ignore[method-assign]
        return found

    def prompts(self, template: str, names: Sequence[str]) -> Prompts:
        texts = [template.format(name.replace("_", " ")) for name in names]
        return Prompts(tuple(names), self.tokenizer(texts))


def backbone_of_shapes(config: BackboneConfig) -> tuple[Backbone, int]:
    """The backbone that ``config`` names on the meta device, whatever its weights, and the number of its parameters.

    Raises:
        UserError: unknown name, an unsupported tower.
    """
    model = create_shapes(config.name)
    found = TokensOnHost.freeze(model, config.name, config.precision, own_tokenizer(config.name), config.text_gb)
    return found, sum(parameter.numel() for parameter in model.parameters())


def class_names(count: int) -> tuple[str, ...]:
    """Names of everyday things, of the usual lengths. Raises a `UserError` if there are fewer than ``count``."""
    things = [name for names in SUPERCLASSES.values() for name in names.split()]
    kinds = ["", "old ", "small ", "red ", "wooden "]
    names = [kind + thing for kind in kinds for thing in things]
    if count > len(names):
        raise UserError(f"--classes: there are names for {len(names) // 2} classes at most, not for {count // 2}")
    return tuple(names[:count])


def blank_pixels(names: tuple[str, ...], images: int, preprocess: Preprocess, device: torch.device) -> Pixels:
    """So many black images."""
    blank = torch.zeros(3, *2 * (preprocess.size,), dtype=torch.uint8)
    split = Split(torch.zeros(images, dtype=torch.long), lambda index: blank)
    return Pixels(Source("blank", names, {"train": split, "test": split}), preprocess, "none", device)


class Inputs(NamedTuple):
    """What a step of k clients takes, besides what stays fixed: ``params`` [k,P], the optimizer's ``state``, a ``batch``."""

    params: Tensor
    state: OptimizerState
    batch: Batch
    scale: LossScale


class LocalStep:
    """Clients of a ``method`` that train with ``batch`` images a step on prompts of the classes ``names``, on the method's device."""

    template = GENERIC_TEMPLATE

    def __init__(self, method: Method, optimizer: OptimizerConfig, names: tuple[str, ...], batch: int) -> None:
        self.method, self.optimizer, self.base, self.batch = method, optimizer, names, batch
        self.device = method.backbone.device
        self.pixels = blank_pixels(names, 1, method.backbone.preprocess, self.device)

    @property
    def layout(self) -> Layout:
        return self.method.layout

    @cached_property
    def training(self) -> LocalTraining:
        forward = Forward.from_prompts(self.method, self.template, self.base)
        return LocalTraining(self.layout, Batches(forward, self.pixels, LocalWork(1, self.batch, self.optimizer, seed=0)))

    def step(self, clients: int) -> Callable[[], Tensor]:
        """`LocalTraining.step` of so many clients in one pass; gives their losses."""
        training, given = self.training, self.inputs(clients)
        fixed = training.forward.fixed(self.layout.views(given.params), self.given(clients))
        return lambda: training.step(given.params, given.state, fixed, given.batch, given.scale)

    def inputs(self, clients: int) -> Inputs:
        """Of a step of so many clients."""
        size, backbone = (clients, self.batch), self.method.backbone
        images = torch.randn(clients * self.batch, 3, *2 * (backbone.preprocess.size,), device=self.device)
        labels = torch.zeros(size, dtype=torch.long, device=self.device)
        weights = torch.full(size, 1.0 / self.batch, device=self.device)
        return Inputs(
            self.noise(clients, self.layout.size),
            initial_state(self.optimizer, clients, self.layout.trained_size, self.device),
            Batch(images, labels, weights, torch.arange(clients, device=self.device)),
            LossScale(clients, self.device, enabled=backbone.precision == "fp16"),
        )

    def given(self, clients: int) -> Given:
        """What the clients know besides their tensors, where the method makes use of it."""
        held = torch.ones(clients, len(self.base), dtype=torch.bool, device=self.device) if self.method.knows_classes else None
        return Given(self.others(clients), held)

    def others(self, clients: int) -> Others | None:
        reads = self.method.reads
        if not reads:
            return None
        shapes = {name: shape for name, shape in self.method.shapes.items() if self.method.exchange.get(name) == POOL}
        return Others(
            {name: self.noise(clients, reads, *shape) for name, shape in shapes.items()},
            torch.ones(clients, reads, dtype=torch.bool, device=self.device),
        )

    def noise(self, *size: int) -> Tensor:
        return SPREAD * torch.randn(size, device=self.device)
