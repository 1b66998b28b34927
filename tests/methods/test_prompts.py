"""Prompts as a text tower sees them: two classes that look the same to it are refused, what is cut off is named."""

from __future__ import annotations

import pytest
import torch

from pfedmma.clip.backbone import Backbone
from pfedmma.clip.loading import BackboneConfig, load
from pfedmma.methods.forward import Forward
from pfedmma.methods.prompts import cut_prompts
from pfedmma.methods.zeroshot import ZeroShot
from pfedmma.system.errors import UserError

LONG = "a photo that somebody took on a grey day in a very large city of a {}."  # tiny reads 16 tokens


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load(BackboneConfig(), 0, torch.device("cpu"))


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("a photo of a {}.", ("cat", "Dog", "dog")),
        ("a photo of a {}.", ("hot_dog", "cat", "hot  dog")),
        ("a photo of a {}.", ("caf\u00e9", "cafe\u0301")),  # one letter, or a letter and its accent
        ("a photo of a {}.", ("AT&T", "AT&amp;T")),
        (LONG, ("cat", "dog")),  # the names are beyond what is read
        ("a photo of a {}.", tuple(f"{'very ' * 20}{name}" for name in ("small cat", "large dog"))),
    ],
)
def test_prompts_that_are_encoded_alike_are_refused(backbone: Backbone, template: str, names: tuple[str, ...]):
    with pytest.raises(UserError, match=r"^data.template: the classes .* have the same prompt within the 16 tokens") as error:
        Forward.from_prompts(ZeroShot(backbone), template, names)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_names_that_differ_are_taken_and_so_is_one_name_that_a_data_set_gives_twice(backbone: Backbone):
    for names in (("cat", "dog", "hot dog"), ("missile", "cat", "missile")):
        assert Forward.from_prompts(ZeroShot(backbone), "a photo of a {}.", names).classes == names


def test_what_is_cut_off_is_named(backbone: Backbone):
    assert cut_prompts(backbone, "a photo of a {}.", ("cat", "dog")) == ""
    fits = "a " * 13 + "{}"  # with start and end, 16 tokens
    assert cut_prompts(backbone, fits, ("cat",)) == ""
    told = cut_prompts(backbone, fits, ("cat", "hot_dog"))
    assert told.startswith("the prompts of 1 of 2 classes are longer than the 16 tokens that tiny reads") and "'hot_dog'" in told
