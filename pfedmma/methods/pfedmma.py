"""The adapter family: one class, told apart by what is exchanged.

``pfedmma`` (arXiv 2507.05394) averages the projection S shared by both towers and keeps the rest private; ``fedavg_mma`` averages
everything (McMahan et al. 2017, arXiv 1602.05629); ``local`` exchanges nothing. They are presets of ``method.exchange``.

What S does is told by controls: ``method.freeze=shared`` leaves it as it begins, neither trained nor sent, the same for all clients;
``method.shared_scale`` multiplies the weights with which it begins; ``method.shared_lr`` is a learning rate of its own.

Clients may differ in width (``method.dims``). S is then as wide as the widest client's; a narrower one has the leading block of each
tensor, of which S's is what it receives and sends, and each number is averaged over those who have it.

A client answers with the server's S and its own other tensors, as in the released code, which tests all clients after averaging.

Deliberately unlike the released code: the optimizer state is each client's own; text features are computed from the client's current
adapters (``evaluation.text_features``); the last round's model is reported (``evaluation.select``); the last partial batch is trained on
(``federation.drop_last``); and who trains in round 1 is drawn as in any other (``federation.first_round``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.clip.prompt_stem import PromptStem
from pfedmma.clip.stems import TowerStem
from pfedmma.methods.adapters.multimodal import PARTS, AdapterSpec, adapted_features, shared_outputs
from pfedmma.methods.base import Entry, Method, count
from pfedmma.stack.rules import MEAN, State
from pfedmma.system.errors import UserError

SHARED = ("shared",)
PRESETS = {"pfedmma": SHARED, "local": ("none",), "fedavg_mma": ("all",)}


def exchange_of(what: Sequence[str], spec: AdapterSpec) -> dict[str, str]:
    """Tensor name -> rule for ``what`` travels, see `tensors_of`."""
    return dict.fromkeys(tensors_of(what, spec), MEAN)


def tensors_of(what: Sequence[str], spec: AdapterSpec, setting: str = "exchange") -> list[str]:
    """The names of the tensors in ``what``: ``none``, ``all``, or parts, each by itself or several joined by "+".

    A part is ``shared``, a tower, ``down`` or ``up``, or both as in ``visual.down``. ``setting``: what ``method.<setting>`` says it.

    Raises:
        UserError: a part that there is none of.
    """
    parts = [part for item in what for part in item.split("+")]
    if parts == ["none"]:
        return []
    shapes = spec.shapes()
    if parts == ["all"]:
        return list(shapes)
    chosen: dict[str, None] = {}
    for part in parts:
        words = set(part.strip().split("."))
        found = [name for name in shapes if words <= set(name.split("."))]
        if not found or not words <= PARTS:
            raise UserError(
                f"method.{setting}: '{part}' is no part of the adapters; write none, all, or parts joined by + out of "
                f"shared, visual.down, visual.up, text.down, text.up (or visual, text, down, up for two of these)"
            )
        chosen |= dict.fromkeys(found)
    return list(chosen)


@dataclass(frozen=True)
class MultiModalAdapters(Method):
    """Adapters in the towers; the tensors in ``what`` (see `tensors_of`) are averaged, all others private but those in ``freeze``.

    S begins ``shared_scale`` times as large as it is drawn, and has the learning rate ``shared_lr`` unless that is 0.
    """

    spec: AdapterSpec
    what: tuple[str, ...]
    freeze: tuple[str, ...] = ()
    shared_scale: float = 1.0
    shared_lr: float = 0.0

    @classmethod
    def from_settings(cls, config: Any, backbone: Backbone) -> MultiModalAdapters:
        """The method that a `pfedmma.methods.registry.MethodConfig` describes; one without a preset exchanges S."""
        depth = min(backbone.visual.depth, backbone.text.depth)
        blocks = config.blocks or (8 if depth >= 12 else max(1, depth // 2))
        if blocks > depth:
            raise UserError(f"method.blocks: {backbone.name} has only {depth} blocks in its shallower tower, fewer than {blocks}")
        spec = AdapterSpec.for_backbone(
            backbone, blocks, config.towers, dim=config.widest, scale=config.scale, activation=config.activation, rescale=config.rescale
        )
        _refuse_contradictions(config, spec)
        what = config.exchange or PRESETS.get(config.name, PRESETS["pfedmma"])
        return cls(backbone, spec, what, config.freeze, config.shared_scale, config.shared_lr)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.spec.shapes()

    @property
    def exchange(self) -> dict[str, str]:
        frozen = self.frozen
        return {name: rule for name, rule in exchange_of(self.what, self.spec).items() if name not in frozen}

    @property
    def frozen(self) -> list[str]:
        return tensors_of(self.freeze, self.spec, "freeze")

    @property
    def learning_rates(self) -> dict[str, float]:
        return dict.fromkeys(tensors_of(SHARED, self.spec), self.shared_lr) if self.shared_lr else {}

    @property
    def in_products(self) -> Collection[str]:
        return self.shapes.keys()

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        tensors = self.spec.initial(generator)
        return tensors | {name: self.shared_scale * tensors[name] for name in tensors_of(SHARED, self.spec)}

    def image_stem(self, pixels: Tensor) -> TowerStem:
        return self.backbone.image_stem(pixels, self.spec.frozen_blocks(self.backbone, "visual"))

    def text_stem(self, prompts: Prompts) -> PromptStem:
        return self.backbone.text_stem(prompts, self.spec.frozen_blocks(self.backbone, "text"))

    def image_features(self, state: State, stem: TowerStem) -> Tensor:
        return F.normalize(adapted_features(self.backbone, self.spec, state, stem, "visual"), dim=-1)

    def text_features(self, state: State, stem: PromptStem) -> Tensor:
        return F.normalize(adapted_features(self.backbone, self.spec, state, stem.repeat(count(state)), "text"), dim=-1)

    def shared_outputs(self, state: State, stem: TowerStem) -> Tensor | None:
        return shared_outputs(self.backbone, self.spec, state, stem)


def _refuse_contradictions(config: Any, spec: AdapterSpec) -> None:
    """Raise a `UserError` unless ``method.exchange``, ``freeze`` and ``shared_lr`` name parts that there are, and go together."""
    sent, frozen = tensors_of(config.exchange, spec), tensors_of(config.freeze, spec, "freeze")
    parts = "+".join(config.freeze)
    if both := [name for name in frozen if name in sent]:
        raise UserError(f"method.freeze: {parts} stays as it begins, so {both[0]} cannot travel; leave it out of method.exchange")
    if len(frozen) == len(spec.shapes()):
        raise UserError(f"method.freeze: {parts} leaves nothing to train; freeze a part of the adapters, for example shared")
    if config.shared_lr and set(frozen) & set(tensors_of(SHARED, spec)):
        raise UserError(f"method.shared_lr: S is frozen by method.freeze={parts} and has no learning rate; leave one of the two out")


ENTRIES = tuple(Entry(name, MultiModalAdapters.from_settings, adapters=True) for name in PRESETS)
