"""FedPHA beside its `GL_SVDMSE.py`: ``CustomCLIP`` with its prompt learner, and ``forward_backward``.

The authors' repository, CYFang6/FedPHA, could be had without its trainers; `clip/model.py` is from there, and the trainer from the copy in
wqs1999/FedPVR. One thing differs in a step: they leave out int(L (1 - ratio)) directions, which rounds down what floating point makes of
it, 10 x 0.2 to 1; ours is the floor of the product itself, 2. Prompts of other lengths for some clients (`GL_SVDMSE_HE.py`) are not here.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pfedmma.methods.fedpha import FedPHA, FedPHAConfig, push
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

PLACES = {"shared.prompt": ("prompt_learner.ctx_global", 0), "private.prompt": ("prompt_learner.ctx_local", 0)}
DETAILS = {"trainer": "GL_SVDMSE", "vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}


def their_step_with(clip: nn.Module, tensors: dict, batch: Batch, ratio: float, alpha: float) -> Step:
    trainers = load(repository("wqs1999/FedPVR"), "trainers.GL_SVDMSE")
    own = {"N_CTX": len(tensors["private.prompt"]), "CTX_INIT": None, "N": 1, "ratio": ratio, "CSC": False, "CLASS_TOKEN_POSITION": "end"}
    settings = config(GL_SVDMSE=own)
    model = trainers.CustomCLIP(settings, NAMES, their_clip(load(repository("CYFang6/FedPHA"), "clip.model"), clip, DETAILS))
    trainer = trainers.GL_SVDMSE(model, settings, alpha=alpha)
    return their_step(trainer, batch, tensors, PLACES, batch_idx=0)


def steps(context: int, ratio: float, theirs: float, alpha: float = 1.0) -> tuple[Step, Step]:
    """Ours with ``ratio``, and theirs with their own."""
    clip, batch = small_clip(), drawn_batch()
    method = our_method(clip, name="fedpha", own=FedPHAConfig(context=context, ratio=ratio, alpha=alpha))
    tensors = drawn_tensors(method)
    return our_step(method, tensors, batch), their_step_with(clip, tensors, batch, theirs, alpha)


@pytest.mark.parametrize(("context", "ratio", "alpha"), [(16, 0.8, 1.0), (8, 0.5, 1.5)])  # the first as published
def test_a_step_is_theirs(context: int, ratio: float, alpha: float) -> None:
    assert_same_step(*steps(context, ratio, ratio, alpha))


def test_of_10_tokens_they_leave_out_one_direction_and_we_two() -> None:
    ours, theirs = steps(10, 0.8, 0.8)
    assert difference(ours.gradients["private.prompt"], theirs.gradients["private.prompt"]) > 1e-3
    assert_same_step(*steps(10, 0.9, 0.8))  # one direction in both


def test_the_push_takes_part_in_these_steps() -> None:
    """In the second of them; or steps could be the same although it is not."""
    method = our_method(small_clip(), name="fedpha", own=FedPHAConfig(context=8))
    assert isinstance(method, FedPHA)
    state = {name: tensor.unsqueeze(0) for name, tensor in drawn_tensors(method).items()} | {"seeds": torch.zeros(1)}
    own, shared, _ = method.text_features(state, method.text_stem(method.backbone.prompts("{}", NAMES))).unbind(dim=1)
    assert push(own, shared, 1.5).item() > 0.1
