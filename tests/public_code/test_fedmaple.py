"""FedMaPLe beside MaPLe of muzairkhattak/multimodal-prompt-learning, which is not federated: a step, without averaging.

What differs: theirs rounds its learned tokens to fp16 on their way into both towers, whatever the precision, and so their gradients too.
With that one rounding left out it is ours; with it, it is ours up to fp16's steps. It is written for widths 512 and 768.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfedmma.methods.fedmaple import FedMaPLeConfig
from tests.support import public_code
from tests.support.public_code import NAMES

LENGTH, DEPTH = 2, 3
DETAILS = {"trainer": "MaPLe", "vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0, "maple_length": LENGTH}
FP16 = 2e-2  # what its 11 bits leave of a gradient, of the largest


def theirs_of(names: list[str]) -> dict[str, str]:
    """ "deep.1" and "projection.1" are the first of their deeper ones; "projection.0" belongs to the context."""
    places = {"context": "ctx"}
    for name in names:
        kind, _, rest = name.partition(".")
        number, _, part = rest.partition(".")
        if kind == "deep":
            places[name] = f"compound_prompts_text.{int(number) - 1}"
        elif kind == "projection":
            places[name] = f"proj.{part}" if number == "0" else f"compound_prompt_projections.{int(number) - 1}.{part}"
    return {name: f"prompt_learner.{place}" for name, place in places.items()}


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any, dict[str, str]]:
    """Their trainer, our method, and the names of one in the other."""
    folder = public_code.repository("muzairkhattak/multimodal-prompt-learning")
    clip = public_code.small_clip({"width": 768}, {"width": 512, "heads": 8})
    module = public_code.load(folder, "trainers.maple")
    cfg = public_code.config(MAPLE={"N_CTX": LENGTH, "CTX_INIT": "a photo of a", "PROMPT_DEPTH": DEPTH})
    towers = public_code.their_clip(public_code.load(folder, "clip.model"), clip, DETAILS)
    model = module.CustomCLIP(cfg, NAMES, towers).float()  # one of its layers is always made in fp16
    trainer = module.MaPLe(model, cfg, optim=torch.optim.SGD(model.prompt_learner.parameters(), lr=0.0), scaler=None)
    method = public_code.our_method(clip, name="fedmaple", own=FedMaPLeConfig(context=LENGTH, depth=DEPTH))
    return trainer, method, theirs_of(list(method.shapes))


def test_a_step_is_theirs_but_for_fp16(pair: tuple[Any, Any, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, method, places = pair
    batch, tensors = public_code.drawn_batch(), public_code.drawn_tensors(method)
    ours = public_code.our_step(method, tensors, batch)

    rounded = public_code.their_step(trainer, batch, tensors, places)
    away = [public_code.difference(grad, rounded.gradients[name]) for name, grad in ours.gradients.items()]
    assert public_code.BOUND < max(away) < FP16

    monkeypatch.setattr(torch.Tensor, "half", lambda tensor: tensor)
    public_code.assert_same_step(ours, public_code.their_step(trainer, batch, tensors, places))
