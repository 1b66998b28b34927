"""FedPGP beside trainers/fedpgp.py of TianyuCuiOvO/FedPGP.

What differs: their script trains N = 2 contexts, and its loss sees two logits a class; with N = 1 it is ours. Their frozen prompt is the
name behind placeholders, which ours is with ``anchor="placeholder"``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfedmma.methods.fedpgp import FedPGPConfig
from tests.support import public_code
from tests.support.public_code import NAMES

LENGTH, RANK, MU, TAU = 4, 3, 0.5, 0.5
PLACES = {"sigma": "prompt_learner.sigma", "u": "prompt_learner.U", "v": "prompt_learner.V"}
LEARNER = {"N_CTX": LENGTH, "BOTTLENECK": RANK, "CTX_INIT": "", "CSC": False, "CLASS_TOKEN_POSITION": "end"}


@pytest.fixture(scope="module")
def clip() -> torch.nn.Module:
    return public_code.small_clip()


def their_trainer(clip: torch.nn.Module, contexts: int) -> Any:
    module = public_code.load(public_code.repository("TianyuCuiOvO/FedPGP"), "trainers.fedpgp")
    cfg = public_code.config(FEDPGP={**LEARNER, "N": contexts})
    return module.FedPGP(module.CustomCLIP(cfg, NAMES, public_code.plain_clip(clip)), cfg, mu=MU, temp=TAU)


def test_a_step_is_theirs(clip: torch.nn.Module) -> None:
    own = FedPGPConfig(context=LENGTH, rank=RANK, mu=MU, tau=TAU, anchor="placeholder")
    trainer, method = their_trainer(clip, contexts=1), public_code.our_method(clip, name="fedpgp", own=own)
    batch, tensors = public_code.drawn_batch(), public_code.drawn_tensors(method)
    public_code.assert_same_step(public_code.our_step(method, tensors, batch), public_code.their_step(trainer, batch, tensors, PLACES))


def test_with_two_contexts_theirs_has_two_logits_a_class(clip: torch.nn.Module) -> None:
    batch = public_code.drawn_batch()
    assert their_trainer(clip, contexts=2).model.eval()(batch.images).shape == (len(batch.labels), 2 * len(NAMES))
