"""pFedMMA beside sajjad-ucsb/pFedMMA, whose adapters act in the CLIP of ZjjConan/Multi-Modal-Adapter.

What differs: their model keeps the text features of its first evaluation and answers with them for good; ours are of the adapters as
they are. Emptied before each evaluation, theirs gives the same.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support import public_code
from tests.support.public_code import NAMES

FIRST, LAST, DIM, SCALE = 2, 3, 8, 0.1  # blocks with adapters, counted from 1; alpha above its default, so that they matter
IMAGES, SPREAD = 16, 0.3  # enough of both that biases' gradients are no small rest of long sums


def their_trainer(clip: torch.nn.Module) -> Any:
    module = public_code.load(public_code.repository("sajjad-ucsb/pFedMMA"), "trainers.pFedMMA")
    towers = public_code.load(public_code.repository("ZjjConan/Multi-Modal-Adapter"), "clip.model")
    blocks = {"ADAPTER_START": FIRST, "ADAPTER_END": LAST, "ADAPTER_DIM": DIM, "ADAPTER_SCALE": SCALE}
    cfg = public_code.config(MMADAPTER={**blocks, "TEXT_CTX_INIT": "a photo of a"})
    return module.pFedMMA(module.CustomCLIP(cfg, NAMES, public_code.their_clip(towers, clip)), cfg)


def theirs_of(names: list[str]) -> dict[str, str]:
    """ "visual.2.down.weight" is the first layer of a sequence of theirs, as a ReLU follows; so is S."""
    places = {}
    for name in names:
        tower, block, *part, kind = name.split(".")
        inner = {("down",): "down.0", ("up",): "up", (): "0"}[tuple(part)]
        places[name] = f"adapter_learner.{tower}_adapter.{block}.{inner}.{kind}"
    return places


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any, dict[str, str]]:
    """Their trainer, our method, and the names of one in the other."""
    clip = public_code.small_clip()
    trainer = their_trainer(clip)
    method = public_code.our_method(clip, dim=DIM, scale=SCALE, blocks=LAST - FIRST + 1)
    return trainer, method, theirs_of(list(method.shapes))


def test_a_step_is_theirs(pair: tuple[Any, Any, dict[str, str]]) -> None:
    trainer, method, theirs = pair
    batch, tensors = public_code.drawn_batch(IMAGES), public_code.drawn_tensors(method, SPREAD)
    trainer.model.text_features_for_inference = None
    public_code.assert_same_step(public_code.our_step(method, tensors, batch), public_code.their_step(trainer, batch, tensors, theirs))


def test_theirs_keeps_the_text_features_of_its_first_evaluation(pair: tuple[Any, Any, dict[str, str]]) -> None:
    trainer, method, theirs = pair
    batch, tensors = public_code.drawn_batch(IMAGES), public_code.drawn_tensors(method, SPREAD)
    trainer.model.text_features_for_inference = None
    public_code.their_step(trainer, batch, tensors, theirs)
    later = {name: tensor / 2 for name, tensor in tensors.items()}
    stale = public_code.their_step(trainer, batch, later, theirs)
    trainer.model.text_features_for_inference = None
    fresh = public_code.their_step(trainer, batch, later, theirs)

    ours = public_code.our_step(method, later, batch)
    assert public_code.difference(ours.logits, stale.logits) > 100 * public_code.BOUND
    public_code.assert_same_step(ours, fresh)
