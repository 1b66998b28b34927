"""FedOTP beside trainers/GLP_OT.py of HongxiaLee/FedOTP, with its "COT" plan and, for ``balanced``, its "Sinkhorn" plan.

What differs: their iteration ends when the mean change over the batch is below THRESH; ours takes a fixed number. With THRESH = 0 theirs
takes MAX_ITER; and where theirs ends early, it is ours with fewer iterations.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from pfedmma.data.sources.base import GENERIC_TEMPLATE
from pfedmma.methods.fedotp import FedOTP, FedOTPConfig
from pfedmma.methods.forward import Forward
from tests.support import public_code
from tests.support.public_code import NAMES

LENGTH, EPS, GAMMA, ITERATIONS = 4, 0.1, 0.8, 100
PLACES = {"shared.prompt": ("prompt_learner.ctx", 0), "private.prompt": ("prompt_learner.ctx", 1)}
LEARNER = {"N": 2, "N_CTX": LENGTH, "CTX_INIT": "", "CSC": False, "CLASS_TOKEN_POSITION": "end"}


@pytest.fixture(scope="module")
def clip() -> torch.nn.Module:
    return public_code.small_clip()


def their_trainer(clip: torch.nn.Module, plan: str = "COT", threshold: float = 0.0) -> Any:
    folder = public_code.repository("HongxiaLee/FedOTP")
    module = public_code.load(folder, "trainers.GLP_OT")
    towers = public_code.their_clip(public_code.load(folder, "clip.model"), clip, {"trainer": "GLP_OT"})
    transport = {"EPS": EPS, "THRESH": threshold, "OT": plan, "TOP_PERCENT": GAMMA, "MAX_ITER": ITERATIONS}
    cfg = public_code.config(GLP_OT={**LEARNER, **transport})
    return module.GLP_OT(module.CustomCLIP(cfg, NAMES, towers), cfg)


def our_method(clip: torch.nn.Module, balanced: bool = False) -> FedOTP:
    own = FedOTPConfig(context=LENGTH, gamma=GAMMA, eps=EPS, iterations=ITERATIONS, balanced=balanced)
    method = public_code.our_method(clip, name="fedotp", own=own)
    assert isinstance(method, FedOTP)
    return method


@pytest.mark.parametrize("plan", ["COT", "Sinkhorn"])
def test_a_step_is_theirs(clip: torch.nn.Module, plan: str) -> None:
    trainer, method = their_trainer(clip, plan), our_method(clip, balanced=plan == "Sinkhorn")
    batch, tensors = public_code.drawn_batch(), public_code.drawn_tensors(method)
    public_code.assert_same_step(public_code.our_step(method, tensors, batch), public_code.their_step(trainer, batch, tensors, PLACES))


def test_where_theirs_ends_early_it_is_ours_with_fewer_iterations(clip: torch.nn.Module) -> None:
    trainer, method = their_trainer(clip, threshold=1e-3), our_method(clip)
    batch, tensors = public_code.drawn_batch(), public_code.drawn_tensors(method)
    wanted = public_code.their_step(trainer, batch, tensors, PLACES).logits

    forward = Forward.from_prompts(method, GENERIC_TEMPLATE, NAMES)
    state = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
    texts, images = forward.text_features(state), method.image_features(state, forward.image_stem(batch.images))

    def away(iterations: int) -> float:
        shorter = dataclasses.replace(method, settings=dataclasses.replace(method.settings, iterations=iterations))
        return public_code.difference(shorter.logits(state, images, texts)[0], wanted)

    assert min(away(iterations) for iterations in range(1, ITERATIONS)) <= public_code.BOUND
