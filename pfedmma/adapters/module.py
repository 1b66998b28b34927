"""One client's adapters on an ordinary open_clip model, as a module to use, or to train on, in any program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma.adapters import file
from pfedmma.adapters.multimodal import AdapterSpec, adapted_features
from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.errors import UserError


class AdaptedCLIP(nn.Module):
    """CLIP with one client's adapters. Its parameters are the adapters alone, named as in the adapter file.

    The open_clip model is used as it is: frozen, moved along by ``to``, and no part of ``state_dict``.
    """

    def __init__(self, clip: Any, spec: AdapterSpec, tensors: Mapping[str, Tensor], backbone_name: str) -> None:
        super().__init__()
        self.spec, self.backbone_name = spec, backbone_name
        self.visual, self.text, self.shared = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for visual, text in spec.pairs:
            self.visual[str(visual)] = _adapter(spec.visual_width, spec.dim)
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
    def backbone(self) -> Backbone:
        """The frozen towers on the device where the model is now."""
        if self._frozen is None:
            self._frozen = Backbone.freeze(self.clip, self.backbone_name)
        return self._frozen

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """[N,3,S,S] preprocessed images -> features [N,D]."""
        return self._features(self.backbone.image_stem(images.float(), self.spec.first("visual")), "visual", normalize)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """[N,context] token ids -> features [N,D]."""
        return self._features(self.backbone.text_stem(Prompts((), text), self.spec.first("text")), "text", normalize)

    def forward(self, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As open_clip's CLIP: normalised image features, normalised text features, exp(logit_scale)."""
        return self.encode_image(images, True), self.encode_text(text, True), self.backbone.logit_scale

    def _features(self, stem, tower: str, normalize: bool) -> Tensor:
        tensors = {name: parameter.unsqueeze(0) for name, parameter in self.named_parameters()}
        features = adapted_features(self.backbone, self.spec, tensors, stem, tower)[0]
        return F.normalize(features, dim=-1) if normalize else features

    def _apply(self, fn, recurse: bool = True):
        # to(), cuda(), half(): the model underneath comes along, and the frozen view of it is made anew.
        self.clip._apply(fn)
        self._frozen = None
        return super()._apply(fn, recurse)


def _adapter(width: int, dim: int) -> nn.ModuleDict:
    return nn.ModuleDict({"down": nn.Linear(width, dim), "up": nn.Linear(dim, width)})


def load_adapter(clip: Any, path: str | Path) -> AdaptedCLIP:
    """Put the adapters of an adapter file on an open_clip model.

    Args:
        clip: any open_clip CLIP with plain transformer towers, on any device; it is frozen.
        path: a file written by ``python -m pfedmma.export`` or `save_adapter`.

    Raises:
        UserError: an unusable file, or one made for towers of other width or depth.
    """
    tensors, spec, name = file.read(path)
    frozen = Backbone.freeze(clip.eval().requires_grad_(False), name or "this model")
    have = (frozen.visual.width, frozen.text.width)
    top = (frozen.visual.depth, frozen.text.depth)
    if have != (spec.visual_width, spec.text_width) or top != spec.pairs[-1]:
        raise UserError(
            f"{path} is made for {name or 'another model'} (widths {spec.visual_width}/{spec.text_width}, depths "
            f"{spec.pairs[-1][0]}/{spec.pairs[-1][1]}), not for a model of widths {have[0]}/{have[1]} and depths {top[0]}/{top[1]}"
        )
    return AdaptedCLIP(clip, spec, tensors, name)


def save_adapter(model: AdaptedCLIP, path: str | Path) -> None:
    """Write the adapters of ``model`` to an adapter file; `load_adapter` gives back the same model."""
    with torch.no_grad():
        file.write(path, dict(model.named_parameters()), model.spec, model.backbone_name)
