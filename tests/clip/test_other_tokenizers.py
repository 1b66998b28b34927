"""Models whose prompts are those of another tokenizer: made as open_clip makes them, and no place for learned context."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.data.sources.base import GENERIC_TEMPLATE
from pfedmma.methods import registry
from pfedmma.methods.prompts import cut_prompts
from pfedmma.methods.registry import MethodConfig
from pfedmma.portable.personal_clip import PersonalCLIP
from pfedmma.system.errors import UserError
from tests.support.timm_clip import Words, siglip

NAMES = ("cat", "red_fish", "very long name of a thing", "fern")


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=rng.generator(0, "images"))


@pytest.fixture(scope="module")
def with_words() -> Backbone:
    return Backbone.freeze(siglip(), "mine", tokenizer=Words())


def test_a_tokenizer_of_a_hub_makes_the_prompts(with_words: Backbone) -> None:
    """Which are open_clip's, padding and all, and whose ends are missed where they are cut off."""
    wanted = siglip().get_logits(images(3), Words()([GENERIC_TEMPLATE.format(name.replace("_", " ")) for name in NAMES]))[0]
    classifier = PersonalCLIP.from_tensors(
        registry.build(MethodConfig("zeroshot"), with_words), {"nothing": torch.zeros(0)}, {}, GENERIC_TEMPLATE
    )
    torch.testing.assert_close(classifier.classifier(NAMES)(images(3)), wanted, rtol=1e-5, atol=1e-5)
    assert cut_prompts(with_words, GENERIC_TEMPLATE, NAMES) == ""
    said = cut_prompts(with_words, GENERIC_TEMPLATE, ["fern", " ".join("abcdefghijklmnop")])  # 5 and 20 tokens, and the end
    assert said.startswith("the prompts of 1 of 2 classes are longer than the 20 tokens that mine reads")


@pytest.mark.parametrize("name", ["promptfl", "fedotp", "fedpgp", "fedtpg", "pfedmoap", "fedmaple", "fedmgp"])
def test_learned_context_is_refused_where_prompts_have_no_start(with_words: Backbone, name: str) -> None:
    with pytest.raises(
        UserError, match=r"^method: learned context stands in prompts of CLIP's own tokenizer, and mine has another; [^.\n]*$"
    ):
        registry.build(MethodConfig(name), with_words)


@pytest.mark.parametrize("name", ["pfedmma", "fedlora", "fedclip", "clipadapter"])
def test_other_methods_take_a_step_on_it(with_words: Backbone, name: str) -> None:
    """Two clients, towards the loss of a softmax."""
    method = registry.build(MethodConfig(name), with_words)
    state = {key: torch.stack([tensor, tensor]).requires_grad_() for key, tensor in method.initial(rng.generator(0, "init")).items()}
    texts = method.text_features(state, method.text_stem(with_words.prompts(GENERIC_TEMPLATE, NAMES)))
    found = method.image_features(state, method.image_stem(images(4)))
    labels, weights = torch.tensor([[0, 1], [2, 3]]), torch.full((2, 2), 0.5)
    grads = torch.autograd.grad(method.loss(state, found, texts, labels, weights).sum(), list(state.values()), allow_unused=True)
    assert any(grad is not None and grad.abs().max() > 0 for grad in grads)
