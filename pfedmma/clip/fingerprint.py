"""What tells one frozen CLIP from another: a few numbers out of each of its tensors, and its activation.

The numbers are kept as they are, not hashed: a hash would tell weights in half precision from the same ones in fp32. They are the same
on every device, and the rounding of fp16 and bf16 is allowed for when they are compared.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from pfedmma.clip import activation
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.towers import Norm, Tower

FORM = "1:"  # of a fingerprint; one of a later form is not compared
_OF_EACH = 2  # numbers of a tensor
_RELATIVE, _ABSOLUTE = 2.0**-7, 1e-6  # twice the rounding of bf16, and more than that of the smallest numbers of fp16
_OF_BLOCK = ("in_weight", "in_bias", "out_weight", "out_bias", "fc_weight", "fc_bias", "proj_weight", "proj_bias")


@dataclass(frozen=True)
class FrozenWeights:
    """A frozen CLIP: the tag or file name of its weights, its `activation`, and its `fingerprint`; each empty where it is not known."""

    pretrained: str = ""
    activation: str = ""
    fingerprint: str = ""

    @classmethod
    def from_backbone(cls, backbone: Backbone, pretrained: str = "") -> FrozenWeights:
        """Of a backbone; ``pretrained`` is the setting of that name, of which a folder is left out."""
        return cls(os.path.basename(pretrained), activation_of(backbone), fingerprint(backbone))

    @classmethod
    def from_json(cls, value: Mapping[str, str] | None) -> FrozenWeights:
        """The inverse of `to_json`; what is not said is not known."""
        return cls(**{name: str((value or {}).get(name, "")) for name in asdict(cls())})

    def to_json(self) -> dict[str, str]:
        return asdict(self)

    def has_activation_of(self, backbone: Backbone) -> bool:
        """Whether the activation is the backbone's, or not known."""
        return self.activation in ("", activation_of(backbone))

    def has_numbers_of(self, backbone: Backbone) -> bool:
        """Whether the fingerprint is the backbone's up to rounding, or one of the two is not known."""
        values = _values(backbone)
        if not self.fingerprint.startswith(FORM) or values is None:
            return True
        try:
            said = torch.from_numpy(np.frombuffer(base64.b64decode(self.fingerprint[len(FORM) :], validate=True), "<f4").copy())
        except (binascii.Error, ValueError):
            return False
        return said.shape == values.shape and bool(((said - values).abs() <= _RELATIVE * values.abs() + _ABSOLUTE).all())


def activation_of(backbone: Backbone) -> str:
    """The activation of its blocks, see `pfedmma.clip.activation`."""
    return activation.of_module(backbone.visual.blocks[0].activation)


def fingerprint(backbone: Backbone) -> str:
    """Some kilobytes of text that follow from the frozen tensors; empty where they hold no numbers (on the meta device)."""
    values = _values(backbone)
    return "" if values is None else FORM + base64.b64encode(values.numpy().astype("<f4").tobytes()).decode()


def _values(backbone: Backbone) -> Tensor | None:
    """Numbers at fixed positions of every frozen tensor, fp32 on the CPU."""
    if backbone.device.type == "meta":
        return None
    picked = []
    for tensor in _tensors(backbone):
        flat = tensor.detach().flatten()
        places = [(2 * number + 1) * len(flat) // (2 * _OF_EACH) for number in range(_OF_EACH)]
        picked.append(flat[places].float())
    return torch.cat(picked).cpu()


def _tensors(backbone: Backbone) -> Iterator[Tensor]:
    """All frozen tensors, in an order that is part of the form."""
    visual, text = backbone.visual, backbone.text
    yield backbone.logit_scale.log().reshape(1)
    yield from visual.own_tensors()
    yield from (text.token_embedding, text.positions)
    yield from (tensor for tensor in (text.projection, text.projection_bias) if tensor is not None)
    for norm in (visual.norm_pre, visual.norm_post, text.norm_final):
        yield from _of_norm(norm)
    for tower in (visual, text):
        yield from _of_blocks(tower)
    if backbone.logit_bias is not None:
        yield backbone.logit_bias.reshape(1)


def _of_blocks(tower: Tower) -> Iterator[Tensor]:
    for block in tower.blocks:
        yield from (getattr(block, name) for name in _OF_BLOCK)
        for norm in block.norms:
            yield from _of_norm(norm)
        yield from (gamma for gamma in (block.gamma1, block.gamma2) if gamma is not None)


def _of_norm(norm: Norm) -> Iterator[Tensor]:
    if not norm.identity:
        yield from (norm.weight, norm.bias)
