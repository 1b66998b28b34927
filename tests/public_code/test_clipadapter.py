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
)
from tests.support.public_trainers import ALL, Theirs, as_dict, without_gpu

PLACES = {"down.weight": ("adapter.fc.0.weight", ALL), "up.weight": ("adapter.fc.2.weight", ALL)}


def test_a_step_is_theirs() -> None:
    trainers, clip = load(repository("gaopengcuhk/CLIP-Adapter"), "clip_adapter"), small_clip(embedding=1024)
    settings = config()
    model = trainers.CustomCLIP(settings, NAMES, their_clip(load(repository("openai/CLIP"), "clip.model"), clip))
    trainer = trainers.CLIP_Adapter(model, settings)

    method, batch = our_method(clip, name="clipadapter"), drawn_batch()
    tensors = drawn_tensors(method)
    with without_gpu():
        theirs = Theirs(model, PLACES, model, lambda given: trainer.forward_backward(as_dict(given))).step(tensors, batch)
    assert_same_step(our_step(method, tensors, batch), theirs)
