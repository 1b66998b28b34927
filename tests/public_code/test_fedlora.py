"""FedLoRA's local step beside MaxZanella/CLIP-LoRA: `loralib/layers.py` and `loralib/utils.py`, which put low-rank additions into a CLIP.

Nothing differs in a step but the masks of dropout, which are drawn otherwise and are left out here; rates are 0 once the layers are made.
Layers that are made without dropout take another path there, whose gradients are wrong: `sub_lora_data` takes B A off the weight in place
before the backward pass reads it, so that what lies below is differentiated as if there were none. Without that one line they are ours.

The repository's own `clip/model.py` could not be had; it is run on OpenAI's. `lora.py` is a whole training on a GPU: the lines of its step
are written out below, in fp32 and with CLIP's own scale (there 100). Both papers' federated part is ours alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from unittest import mock

import open_clip
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma.data.sources.base import GENERIC_TEMPLATE
from pfedmma.methods.base import Method
from pfedmma.methods.fedlora import PARTS, FedLoRAConfig
from tests.support.public_code import (
    NAMES,
    TEXT,
    VISION,
    Step,
    assert_same_step,
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
from tests.support.public_trainers import Answering

TOWERS = {"visual": ("visual.transformer", VISION["layers"]), "text": ("transformer", TEXT["layers"])}
PLACES = {
    f"{ours}.{block + 1}.{part}.{kind.lower()}": f"{their}.resblocks.{block}.attn.{part}_proj.w_lora_{kind}"
    for ours, (their, depth) in TOWERS.items()
    for block in range(depth)
    for part in PARTS
    for kind in "AB"
}


def theirs_with(lora: Any, clip: nn.Module, dropout: float) -> Answering:
    """Their CLIP with additions that are made for this rate of ``dropout`` and then have none."""
    model = their_clip(load(repository("openai/CLIP"), "clip.model"), clip)
    wanted = SimpleNamespace(encoder="both", position="all", backbone="ViT-B/16", params=list(PARTS), r=2, alpha=1, dropout_rate=dropout)
    lora.apply_lora(wanted, model)
    lora.mark_only_lora_as_trainable(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    tokens = open_clip.tokenize([GENERIC_TEMPLATE.format(name.replace("_", " ")) for name in NAMES])

    def answers(images: Tensor) -> Tensor:
        of_images, of_classes = (F.normalize(x, dim=-1) for x in (model.encode_image(images), model.encode_text(tokens)))
        return model.logit_scale.exp() * of_images @ of_classes.T

    return Answering(model, answers)


def steps(dropout: float, taken_off: bool = True) -> tuple[Step, Step]:
    """Ours, and theirs with layers made for ``dropout``. ``taken_off``: whether in a step B A comes off the weights again, as there."""
    lora, clip, batch = load(repository("MaxZanella/CLIP-LoRA"), "loralib.utils"), small_clip(), drawn_batch()
    method: Method = our_method(clip, name="fedlora", own=FedLoRAConfig(dropout=0.0))
    tensors, theirs = drawn_tensors(method), theirs_with(lora, clip, dropout)

    class Kept(Answering):
        def forward_backward(self, batch: Mapping[str, Tensor]) -> None:
            with mock.patch.object(lora.LoRALayer, "sub_lora_data", lambda layer: None):
                super().forward_backward(batch)

    trainer = theirs if taken_off else Kept(theirs.model, theirs.answers)
    return our_step(method, tensors, batch), their_step(trainer, batch, tensors, PLACES)


def test_a_step_is_theirs() -> None:
    assert_same_step(*steps(dropout=0.25))  # as published


def test_layers_made_without_dropout_differ_by_what_is_taken_off_too_early() -> None:
    ours, theirs = steps(dropout=0.0)
    found = {name: difference(grad, theirs.gradients[name]) for name, grad in ours.gradients.items()}
    assert found["visual.1.q.a"] > 1e-3 and found["text.1.q.a"] > 1e-3
    assert found["visual.3.q.a"] < 1e-5 and found["text.3.q.a"] < 1e-5  # nothing above these has an addition
    assert_same_step(*steps(dropout=0.0, taken_off=False))
