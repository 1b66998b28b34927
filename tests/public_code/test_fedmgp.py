"""FedMGP beside weihao-bo/FedMGP: `trainers/fedmgp.py` on its own `clip/model.py`, ``CustomCLIP`` and ``forward_backward``.

One thing differs in a step: the term that their README has drive groups apart is negative there, for l1 and l2, and they take its absolute
value, so that it pulls groups together, as it does with cos. ``published_sign`` is that; without it the term's gradient has the other
sign, which no setting of theirs gives: they add the term where it is positive alone. What is drawn and sent after a step is not here.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pfedmma.methods.fedmgp import FedMGPConfig
from tests.support.public_code import (
    NAMES,
    Batch,
    Step,
    assert_same_step,
    config,
    difference,
    drawn_batch,
    drawn_tensors,
    load,
    our_method,
    our_step,
    repository,
    small_clip,
    their_clip,
    their_step,
)

PLACES = {"text.prompts": "prompt_learner.ctx", "visual.prompts": "image_encoder.VPT"}
DETAILS = {"trainer": "FedMGP", "vision_depth": 1, "language_depth": 1, "vision_ctx": 2, "language_ctx": 2}
SIZES = {"N_CTX_TEXT": 2, "N_CTX_VISION": 2, "NUM_PROMPTS_TEXT": 5, "NUM_PROMPTS_VISION": 5}
SHAPE = {**SIZES, "CTX_INIT": "a photo of a", "PROMPT_DEPTH_TEXT": 1, "PROMPT_DEPTH_VISION": 1, "INFERENCE_MODE": "average"}


def their_step_with(clip: nn.Module, tensors: dict[str, Tensor], batch: Batch, **divergence: object) -> Step:
    folder = repository("weihao-bo/FedMGP")
    trainers, settings = load(folder, "trainers.fedmgp"), config(FEDMGP={**SHAPE, **divergence})
    with torch.random.fork_rng(devices=[]):  # they seed torch's generator
        towers = their_clip(load(folder, "clip.model"), clip, {**DETAILS, "vision_num_prompts": 5, "language_num_prompts": 5})
        model = trainers.CustomCLIP(settings, NAMES, towers)
    model.image_encoder.VPT.requires_grad_()
    trainer = trainers.FedMGP(model, settings)
    return their_step(trainer, batch, tensors, PLACES)


def our_step_with(clip: nn.Module, tensors: dict[str, Tensor], batch: Batch, **settings: object) -> Step:
    return our_step(our_method(clip, name="fedmgp", own=FedMGPConfig(**settings)), tensors, batch)


def drawn_prompts(clip: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in drawn_tensors(our_method(clip, name="fedmgp")).items() if name in PLACES}


@pytest.mark.parametrize("distance", ["l1", "l2", "cos"])  # l1 as published
def test_a_step_is_theirs(distance: str) -> None:
    clip, batch = small_clip(), drawn_batch()
    tensors, weight = drawn_prompts(clip), 3.0  # published: 1
    theirs = {"USE_DIVERGENT_LOSS": True, "DIVERGENT_LOSS_WEIGHT": weight, "DIVERGENT_LOSS_TYPE": distance}
    ours = our_step_with(clip, tensors, batch, distance=distance, diversity=weight, published_sign=True)
    assert_same_step(ours, their_step_with(clip, tensors, batch, **theirs))


def test_without_the_term_between_groups_a_step_is_theirs() -> None:
    clip, batch = small_clip(), drawn_batch()
    tensors = drawn_prompts(clip)
    plain = their_step_with(clip, tensors, batch, USE_DIVERGENT_LOSS=False)
    assert_same_step(our_step_with(clip, tensors, batch, diversity=0.0), plain)


def test_by_itself_the_term_has_the_other_sign() -> None:
    """Ours is their step without the term, less what the term adds to theirs."""
    clip, batch = small_clip(), drawn_batch()
    tensors = drawn_prompts(clip)
    with_term = {"USE_DIVERGENT_LOSS": True, "DIVERGENT_LOSS_WEIGHT": 1.0, "DIVERGENT_LOSS_TYPE": "l1"}
    plain, together = their_step_with(clip, tensors, batch, USE_DIVERGENT_LOSS=False), their_step_with(clip, tensors, batch, **with_term)
    assert all(difference(together.gradients[name], plain.gradients[name]) > 1e-3 for name in PLACES)
    apart = {name: 2.0 * plain.gradients[name] - together.gradients[name] for name in PLACES}
    assert_same_step(our_step_with(clip, tensors, batch), Step(plain.logits, apart))
