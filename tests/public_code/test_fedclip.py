"""FedCLIP beside fedclip/ of microsoft/robustlearn, with its contrastive loss within a batch.

Their evaluation gives softmax(100 cos) in place of logits with CLIP's own scale; logarithms of these are compared.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch

from pfedmma.data.sources.base import GENERIC_TEMPLATE
from pfedmma.methods.fedclip import FedCLIPConfig
from tests.support import public_code
from tests.support.public_code import NAMES, Step

PLACES = {f"{name}.{kind}": f"{place}.{kind}" for name, place in (("hidden", 0), ("gate", 2)) for kind in ("weight", "bias")}
PROMPTS = [GENERIC_TEMPLATE.format(name.replace("_", " ")) for name in NAMES]


@pytest.fixture(scope="module")
def module() -> ModuleType:
    data, settings = ModuleType("utils.prepare_data_dg_clip"), ModuleType("utils.config")
    settings.img_param_init = settings.set_random_seed = None  # type: ignore[attr-defined]
    stand_ins = {found.__name__: found for found in (data, settings)}
    return public_code.load(public_code.repository("microsoft/robustlearn") / "fedclip", "methods.fed_at_clip", stand_ins)


def their_model(module: ModuleType, clip: torch.nn.Module, images: torch.Tensor) -> Any:
    """Their model around this CLIP; its constructor would download one."""
    model = object.__new__(module.ClipModelat)
    vars(model).update(model=public_code.plain_clip(clip), preprocess=None, device="cpu", imgadpy=True, freezepy=True)
    model.initdgatal([(images, None, images)])
    return model


def test_a_step_is_theirs(module: ModuleType) -> None:
    clip, batch = public_code.small_clip(), public_code.drawn_batch()
    method, model = public_code.our_method(clip, name="fedclip", own=FedCLIPConfig()), their_model(module, clip, batch.images)
    tensors = public_code.drawn_tensors(method, spread=0.5)
    public_code.put(model.img_adap, tensors, PLACES)

    with torch.no_grad():
        images = module.clu.get_image_features(batch.images, model.model, model.preprocess).float()
        texts = module.clu.get_text_features_list(PROMPTS, model.model, device="cpu").float()
        answers = module.clu.get_similarity(model.img_adap(images) * images, texts).log()
    still = torch.optim.SGD(model.img_adap.parameters(), lr=0.0)
    loader = [(batch.images, open_clip.tokenize([PROMPTS[label] for label in batch.labels]), batch.labels)]
    module.train(SimpleNamespace(), model, loader, still, "cpu")
    theirs = Step(answers, public_code.gradients_of(model.img_adap, tensors, PLACES))

    ours = public_code.our_step(method, tensors, batch)
    cosines = ours.logits / clip.logit_scale.exp()
    public_code.assert_same_step(Step((100 * cosines).log_softmax(dim=-1), ours.gradients), theirs)
