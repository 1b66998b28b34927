"""PromptFL beside trainers/promptfl.py of HongxiaLee/FedOTP.

What differs: their proximal term compares copies that are detached, so it raises the loss and has no gradient; ours has one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfedmma.methods.promptfl import PromptFLConfig
from tests.support import public_code
from tests.support.public_code import NAMES

LENGTH, PLACES = 4, {"prompt": "prompt_learner.ctx"}


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """Their trainer and our method."""
    clip = public_code.small_clip()
    module = public_code.load(public_code.repository("HongxiaLee/FedOTP"), "trainers.promptfl")
    cfg = public_code.config(PROMPTFL={"N_CTX": LENGTH, "CTX_INIT": "", "CSC": False, "CLASS_TOKEN_POSITION": "end"})
    method = public_code.our_method(clip, name="promptfl", own=PromptFLConfig(context=LENGTH))
    return module.PromptFL(module.CustomCLIP(cfg, NAMES, public_code.plain_clip(clip)), cfg), method


def test_a_step_is_theirs(pair: tuple[Any, Any]) -> None:
    trainer, method = pair
    batch, tensors = public_code.drawn_batch(), public_code.drawn_tensors(method)
    public_code.assert_same_step(public_code.our_step(method, tensors, batch), public_code.their_step(trainer, batch, tensors, PLACES))


def test_their_proximal_term_has_no_gradient(pair: tuple[Any, Any]) -> None:
    trainer, method = pair
    batch, tensors = public_code.drawn_batch(), public_code.drawn_tensors(method)
    received = {"prompt_learner.ctx": torch.zeros_like(tensors["prompt"])}
    theirs = public_code.their_step(trainer, batch, tensors, PLACES, global_weight=received, fedprox=True, mu=0.5)

    public_code.assert_same_step(public_code.our_step(method, tensors, batch), theirs)  # ours without the term
