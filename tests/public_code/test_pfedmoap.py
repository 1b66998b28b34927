"""pFedMoAP beside trainers/pfedmoap.py of shabika0A/pFedMoAP, a fork of the authors' repository that changes how experts are chosen.

Theirs imports PromptFL's text encoder, here out of FedOTP. Nothing of a step differs: with experts, and without, where the gating has no
gradient. With experts three biases have none either: k's adds the same to the scores of all experts, v's and o's the same to the logits
of all classes. Dropout is a parameter of their attention that it does not read.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfedmma import rng
from pfedmma.methods.pfedmoap import PFedMoAPConfig
from pfedmma.stack.rules import Given, Others
from tests.support import public_code
from tests.support.public_code import EMBEDDING, NAMES, TEXT

LENGTH, HEADS, FACTOR, MIX, EXPERTS = 4, 4, 10.0, 0.5, 2
LEARNER = {"N_CTX": LENGTH, "CTX_INIT": "", "CSC": False, "CLASS_TOKEN_POSITION": "end"}
GATING = {"LMBDA": MIX, "GATING_HEADS": HEADS, "GATING_EMBED_DIM": EMBEDDING // 4, "SCALING": FACTOR}
PLACES = {"prompt": "prompt_learner.ctx"} | {
    f"gating.{part}.{kind}": f"gating.W_{part}.{kind}" for part in "qkvo" for kind in ("weight", "bias")
}


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """Their trainer and our method."""
    clip = public_code.small_clip()
    promptfl = public_code.load(public_code.repository("HongxiaLee/FedOTP"), "trainers.promptfl")
    module = public_code.load(public_code.repository("shabika0A/pFedMoAP"), "trainers.pfedmoap", {"trainers.promptfl": promptfl})
    cfg = public_code.config(PFEDMOAP={**LEARNER, **GATING})
    own = PFedMoAPConfig(context=LENGTH, experts=1 + EXPERTS, heads=HEADS, factor=FACTOR, mix=MIX)
    trainer = module.PFEDMOAP(module.CustomCLIP(cfg, NAMES, public_code.plain_clip(clip)), cfg)
    return trainer, public_code.our_method(clip, name="pfedmoap", own=own)


@pytest.mark.parametrize("experts", [EXPERTS, 0])
def test_a_step_is_theirs(pair: tuple[Any, Any], experts: int) -> None:
    trainer, method = pair
    contexts = torch.randn(1 + experts, LENGTH, TEXT["width"], generator=rng.generator(0, "contexts"))  # far from each other
    own, others = contexts[0], contexts[1:]
    batch, tensors = public_code.drawn_batch(16), public_code.drawn_tensors(method, spread=0.6) | {"prompt": own}
    trainer.model.nonlocal_text_features = None
    trainer.download_nonlocal_ctx(list(others))
    read = Others({"prompt": others.unsqueeze(0)}, torch.ones(1, experts, dtype=torch.bool)) if experts else None

    ours = public_code.our_step(method, tensors, batch, given=Given(others=read))
    theirs = public_code.their_step(trainer, batch, tensors, PLACES)
    public_code.assert_same_step(ours, theirs, zero=[f"gating.{part}.bias" for part in "kvo"])
