"""PromptFolio: its size, its mixture against open_clip, and the limits in which it is PromptFL."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.config import schema
from pfedmma.methods import registry
from pfedmma.methods.adapters.two_prompts import PRIVATE, SHARED
from pfedmma.methods.promptfl import PromptFL, PromptFLConfig
from pfedmma.methods.promptfolio import PromptFolio, PromptFolioConfig
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack.layout import Layout
from pfedmma.system.errors import UserError
from tests.support.open_clip_prompts import NAMES, hollow, text_features

LABELS, WEIGHTS = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]]), torch.tensor([[0.25] * 4, [0.5, 0.5, 0.0, 0.0]])


def new_method(clip: nn.Module, **options: Any) -> PromptFolio:
    return PromptFolio.from_settings(PromptFolioConfig(**options), Backbone.freeze(clip, "tiny"))


def new_state(method: PromptFolio) -> dict[str, Tensor]:
    """Two clients with prompts of their own."""
    generator = rng.generator(0, "state")
    return {name: 0.3 * torch.randn(2, *shape, generator=generator) for name, shape in method.shapes.items()}


def images() -> Tensor:
    return F.normalize(torch.randn(2, 4, 64, generator=rng.generator(0, "images")), dim=-1)


def logits(method: PromptFolio | PromptFL, state: dict[str, Tensor]) -> Tensor:
    stem = method.text_stem(method.backbone.prompts("{}", NAMES))
    return method.logits(state, images(), method.text_features(state, stem))


def of_promptfl(clip: nn.Module, prompt: Tensor) -> Tensor:
    method = PromptFL.from_settings(PromptFLConfig(), Backbone.freeze(clip, "tiny"))
    return logits(method, {"prompt": prompt})


def test_sizes_at_vit_b_16() -> None:
    method = registry.build(MethodConfig("promptfolio"), hollow("ViT-B-16"))
    layout = Layout(method.shapes, method.exchange)
    assert (layout.size, 4 * layout.exchanged_size) == (16_384, 32_768)
    assert method.exchange == {SHARED: "mean"}
    published = registry.build(MethodConfig("promptfolio", own=PromptFolioConfig(context=8)), hollow("ViT-B-16"))
    layout = Layout(published.shapes, published.exchange)
    assert (layout.size, 4 * layout.exchanged_size) == (8_192, 16_384)


def test_settings() -> None:
    assert PromptFolioConfig().theta == 0.4
    assert schema.load(None, ["method.name=promptfolio"]).optimizer.lr == 2e-3
    for theta in (-0.1, 1.1):
        with pytest.raises(UserError, match=r"theta: must be at (least 0|most 1)"):
            PromptFolioConfig(theta=theta)


def test_both_prompts_begin_at_random_and_apart(tiny_clip: nn.Module) -> None:
    start = new_method(tiny_clip).initial(rng.generator(0, "init"))
    assert not torch.equal(start[SHARED], start[PRIVATE])
    assert all(tensor.std() == pytest.approx(0.02, rel=0.2) for tensor in start.values())


def test_two_clients_are_mixtures_through_open_clip(tiny_clip: nn.Module) -> None:
    """Losses and gradients of both prompts, of a feature that is not normalised again."""
    method = new_method(tiny_clip, theta=0.3)
    state = {name: tensor.requires_grad_() for name, tensor in new_state(method).items()}
    stem = method.text_stem(method.backbone.prompts("{}", NAMES))
    texts = method.text_features(state, stem)
    assert (texts.norm(dim=-1) < 0.999).all()
    losses = method.loss(state, images(), texts, LABELS, WEIGHTS)
    gradients = dict(zip(state, torch.autograd.grad(losses.sum(), list(state.values())), strict=True))
    for client in range(2):
        shared, private = (text_features(tiny_clip, NAMES, state[name][client]) for name in (SHARED, PRIVATE))
        found = tiny_clip.logit_scale.exp() * images()[client] @ (0.7 * shared + 0.3 * private).T
        wanted = (F.cross_entropy(found, LABELS[client], reduction="none") * WEIGHTS[client]).sum()
        torch.testing.assert_close(losses[client], wanted, rtol=1e-5, atol=1e-5)
        for name, gradient in zip(state, torch.autograd.grad(wanted, list(state.values())), strict=True):
            largest = float(gradient.abs().max())
            assert largest > 1e-3
            torch.testing.assert_close(gradients[name][client], gradient[client], rtol=1e-4, atol=1e-5 * largest)


@torch.no_grad()
def test_without_a_local_share_it_is_promptfl(tiny_clip: nn.Module) -> None:
    """Whatever the private prompt holds; and with all of it, PromptFL on the private one."""
    for theta, name in ((0.0, SHARED), (1.0, PRIVATE)):
        method = new_method(tiny_clip, theta=theta)
        state = new_state(method)
        torch.testing.assert_close(logits(method, state), of_promptfl(tiny_clip, state[name]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("theta", [0.25, 0.4])
def test_with_equal_prompts_it_is_promptfl(tiny_clip: nn.Module, theta: float) -> None:
    method = new_method(tiny_clip, theta=theta)
    state = dict.fromkeys((SHARED, PRIVATE), new_state(method)[SHARED])
    torch.testing.assert_close(logits(method, state), of_promptfl(tiny_clip, state[SHARED]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_logits_are_linear_in_the_local_share(tiny_clip: nn.Module) -> None:
    state = new_state(new_method(tiny_clip))
    none, quarter, half, all_ = (logits(new_method(tiny_clip, theta=theta), state) for theta in (0.0, 0.25, 0.5, 1.0))
    torch.testing.assert_close(quarter, 0.75 * none + 0.25 * all_, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(half, (none + all_) / 2, rtol=1e-5, atol=1e-5)
    assert (none - all_).abs().max() > 0.1
