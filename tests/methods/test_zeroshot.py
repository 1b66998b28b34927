"""Zero-shot CLIP: on its own stems, and on those of the method that it stands beside."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from pfedmma.clip.backbone import Backbone
from pfedmma.clip.stems import Stem
from pfedmma.methods.base import Method
from pfedmma.methods.zeroshot import ZeroShot
from tests.support import stacks


@pytest.mark.parametrize(
    ("name", "shares"),
    [("pfedmma", True), ("promptfl", True), ("fedlora", True), ("fedmaple", True), ("zeroshot", True), ("fedotp", False)],
)
def test_beside_a_method_it_says_the_same_to_the_last_bit(tiny_clip: nn.Module, name: str, shares: bool):
    """FedOTP keeps patches alone, from which the class token does not follow."""
    alone, beside = ZeroShot(Backbone.freeze(tiny_clip)), ZeroShot.beside_method(stacks.new_method(tiny_clip, name=name))
    assert (beside.beside is not None) is shares
    pixels = torch.randn(6, 3, alone.backbone.preprocess.size, alone.backbone.preprocess.size)
    state = {"nothing": torch.empty(2, 0)}  # two clients, three images each
    with torch.no_grad():
        wanted, found = (method.image_features(state, method.image_stem(pixels)) for method in (alone, beside))
    assert wanted.shape[:2] == (2, 3) and torch.equal(found, wanted)


@dataclass(frozen=True)
class Brighter(Method):
    """A method from outside whose stems are of other pixels than it is given."""

    def image_stem(self, pixels: Tensor) -> Stem:
        return self.backbone.image_stem(1.5 * pixels, 1)


@dataclass(frozen=True)
class OwnStem(Stem):
    pixels: Tensor


@dataclass(frozen=True)
class Late(Method):
    """A method from outside with a stem of its own kind."""

    def image_stem(self, pixels: Tensor) -> Stem:
        return OwnStem(pixels)


@pytest.mark.parametrize("kind", [Brighter, Late])
def test_stems_that_the_frozen_tower_cannot_go_on_from_are_not_used(tiny_clip: nn.Module, kind: type[Method]):
    assert ZeroShot.beside_method(kind(Backbone.freeze(tiny_clip))).beside is None
