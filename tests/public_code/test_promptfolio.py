"""PromptFolio beside GoodBoyCole/PromptFolio-FL: `trainers/PromptFolio.py`, its ``CustomCLIP`` and its ``forward_backward``.

Nothing differs in a step. Its own `clip/model.py` is not whole in what could be had of the repository; the towers are OpenAI's, which its
trainer is written for. That it shares an optimizer, gives prompts other clients' weights and works in fp16 lies outside a step.
"""

from __future__ import annotations

import pytest

from pfedmma.methods.promptfolio import PromptFolioConfig
from tests.support.public_code import (
    NAMES,
    assert_same_step,
    config,
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

CONTEXT = 8  # as published
PLACES = {"shared.prompt": ("prompt_learner.ctx", 0), "private.prompt": ("prompt_learner.ctx", 1)}


@pytest.mark.parametrize("theta", [0.4, 0.9])  # their ``frac``; 0.4 as published
def test_a_step_is_theirs(theta: float) -> None:
    trainers, clip = load(repository("GoodBoyCole/PromptFolio-FL"), "trainers.PromptFolio"), small_clip()
    plot = {"CTX_INIT": None, "N": 2, "N_CTX": CONTEXT, "CLASS_TOKEN_POSITION": "end"}
    settings = config(PLOT=plot, PROMPTFL={"CSC": False, "FRAC": theta})
    model = trainers.CustomCLIP(settings, NAMES, their_clip(load(repository("openai/CLIP"), "clip.model"), clip))
    trainer = trainers.PromptFolio(model, settings)

    method, batch = our_method(clip, name="promptfolio", own=PromptFolioConfig(context=CONTEXT, theta=theta)), drawn_batch()
    tensors = drawn_tensors(method)
    assert_same_step(our_step(method, tensors, batch), their_step(trainer, batch, tensors, PLACES))
