"""One client's adapters on an ordinary open_clip model, as a module to use, or to train on, in any program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma.clip.backbone import PRECISIONS, Backbone, Prompts
from pfedmma.methods.adapters.multimodal import TOWERS, AdapterSpec, adapted_features
from pfedmma.portable import adapter_file
from pfedmma.portable.made_for import MadeFor
from pfedmma.system.errors import UserError


class AdaptedCLIP(nn.Module):
    """CLIP with one client's adapters. Its parameters are the adapters alone, named as in the adapter file.

    The open_clip model is used as it is: frozen, moved and converted along by ``to``, ``half`` and their kin, copied along by
    ``copy.deepcopy``, and no part of ``state_dict``. Features have the module's precision. Matrix products are in fp16 or bf16 where
    that is it, otherwise in fp32 (also after ``double``); layer norms and sums are always in fp32.
    """

    def __init__(self, clip: Any, spec: AdapterSpec, tensors: Mapping[str, Tensor], made_for: MadeFor) -> None:
        super().__init__()
        self.spec, self.made_for = spec, made_for
        self.visual, self.text, self.shared = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for visual, text in spec.pairs:
            if spec.has("visual"):
                self.visual[str(visual)] = _adapter(spec.visual_width, spec.dim)
            if spec.has("text"):
                self.text[str(text)] = _adapter(spec.text_width, spec.dim)
            self.shared[str(visual)] = nn.Linear(spec.dim, spec.dim)
        self.load_state_dict(dict(tensors))
        self._clip = (clip,)  # in a tuple, so that torch does not register it
        self._frozen: Backbone | None = None
        self.to(clip.logit_scale.device)

    @property
    def clip(self) -> Any:
        """The open_clip model underneath."""
        return self._clip[0]

    @property
    def backbone_name(self) -> str:
        """The name of the model that the adapters were made for, empty where it is not known."""
        return self.made_for.backbone

    @property
    def backbone(self) -> Backbone:
        """The frozen towers on the device and in the precision in which the model is now."""
        precision = next((name for name, dtype in PRECISIONS.items() if dtype == self._dtype), "fp32")
        if self._frozen is None or self._frozen.precision != precision:
            self._frozen = Backbone.freeze(self.clip, self.backbone_name or "this model", precision)
        return self._frozen

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """[N,3,S,S] preprocessed images -> features [N,D]."""
        stem = self.backbone.image_stem(images.float(), self.spec.frozen_blocks(self.backbone, "visual"))
        return self._features(stem, "visual", normalize)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """[N,context] token ids -> features [N,D]."""
        stem = self.backbone.text_stem(Prompts((), text), self.spec.frozen_blocks(self.backbone, "text"))
        return self._features(stem, "text", normalize)

    def forward(self, images: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        """As open_clip's CLIP: normalised image features, normalised text features, exp(logit_scale), and logit_bias where there is one."""
        bias = self.backbone.logit_bias
        found = self.encode_image(images, True), self.encode_text(text, True), self.backbone.logit_scale
        return found if bias is None else (*found, bias)

    def _features(self, stem, tower: str, normalize: bool) -> Tensor:
        products = PRECISIONS[self.backbone.precision]
        tensors = {name: parameter.unsqueeze(0).to(products) for name, parameter in self.named_parameters()}
        features = adapted_features(self.backbone, self.spec, tensors, stem, tower)[0]
        return (F.normalize(features, dim=-1) if normalize else features).to(self._dtype)

    def _apply(self, fn, recurse: bool = True):
        # to(), cuda(), half(): the model underneath comes along, and the frozen view of it is made anew.
        self.clip._apply(fn)
        self._frozen = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has a model of its own underneath, of which it makes its own frozen view.
        return {**self.__dict__, "_frozen": None}


def _adapter(width: int, dim: int) -> nn.ModuleDict:
    return nn.ModuleDict({"down": nn.Linear(width, dim), "up": nn.Linear(dim, width)})


def load_adapter(clip: Any, path: str | Path, insist: bool = False) -> AdaptedCLIP:
    """Put the adapters of an adapter file on an open_clip model.

    Args:
        clip: any open_clip CLIP with plain transformer towers, on any device; it is frozen.
        path: a file written by ``python -m pfedmma.export`` or `save_adapter`.
        insist: take a file although its adapters were trained on other frozen weights, or with another activation, than ``clip`` has.

    Raises:
        UserError: an unusable file, one made for towers of other width or depth, or, without ``insist``, for other frozen weights.
    """
    tensors, spec, made_for = adapter_file.read(path)
    frozen = Backbone.freeze(clip.eval().requires_grad_(False), made_for.backbone or "this model")
    refuse_misfit(path, spec, frozen, made_for.backbone)
    if not insist:
        made_for.refuse_other(path, frozen)
    return AdaptedCLIP(clip, spec, tensors, made_for)


def refuse_misfit(path: str | Path, spec: AdapterSpec, frozen: Backbone, made_for: str) -> None:
    """Raise a `UserError` unless the adapters of the file at ``path`` have the width and depth of these towers."""
    for tower, width, depth in zip(TOWERS, (spec.visual_width, spec.text_width), spec.pairs[-1], strict=True):
        have = getattr(frozen, tower)
        if spec.has(tower) and (have.width, have.depth) != (width, depth):
            raise UserError(
                f"{path} is made for {made_for or 'another model'} with a {tower} tower of width {width} and {depth} blocks, "
                f"not for a model whose tower has width {have.width} and {have.depth} blocks"
            )


def save_adapter(model: AdaptedCLIP, path: str | Path) -> None:
    """Write the adapters of ``model`` to an adapter file; `load_adapter` gives back the same model."""
    with torch.no_grad():
        adapter_file.write(path, dict(model.named_parameters()), model.spec, model.made_for.on(model.backbone))
