"""CLIP-Adapter beside gaopengcuhk/CLIP-Adapter: `clip_adapter.py`, its ``CustomCLIP`` and its ``forward_backward``.

Nothing differs in a step. There the width of features is written down as 1024, a ResNet's; a small ViT of that embedding has it. The
repository has no CLIP of its own; the towers are OpenAI's.
"""

from __future__ import annotations

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
from tests.support.public_trainers import without_gpu

PLACES = {"down.weight": "adapter.fc.0.weight", "up.weight": "adapter.fc.2.weight"}


def test_a_step_is_theirs() -> None:
    trainers, clip = load(repository("gaopengcuhk/CLIP-Adapter"), "clip_adapter"), small_clip(embedding=1024)
    settings = config()
    model = trainers.CustomCLIP(settings, NAMES, their_clip(load(repository("openai/CLIP"), "clip.model"), clip))
    trainer = trainers.CLIP_Adapter(model, settings)

    method, batch = our_method(clip, name="clipadapter"), drawn_batch()
    tensors = drawn_tensors(method)
    with without_gpu():
        theirs = their_step(trainer, batch, tensors, PLACES)
    assert_same_step(our_step(method, tensors, batch), theirs)
