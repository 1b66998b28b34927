"""FedPHA: its size, the projection, pull and push by hand, a client through open_clip, and that the private prompt alone answers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.methods import registry
from pfedmma.methods.adapters.two_prompts import PRIVATE, SHARED
from pfedmma.methods.base import SEEDS
from pfedmma.methods.fedpha import FedPHA, FedPHAConfig, pull, push
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack.layout import Layout
from pfedmma.system.errors import UserError
from tests.support.open_clip_prompts import NAMES, hollow, text_features

LABELS, WEIGHTS = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]]), torch.tensor([[0.25] * 4, [0.5, 0.5, 0.0, 0.0]])


def new_method(clip: nn.Module, **options: Any) -> FedPHA:
    return FedPHA.from_settings(FedPHAConfig(**options), Backbone.freeze(clip, "tiny"))


def drawn(*shape: int, key: str = "drawn") -> Tensor:
    return torch.randn(shape, generator=rng.generator(0, key))


def new_state(method: FedPHA) -> dict[str, Tensor]:
    """Two clients in training, with prompts of their own."""
    return {name: 0.3 * drawn(2, *shape, key=name) for name, shape in method.shapes.items()} | {SEEDS: torch.arange(2)}


def images() -> Tensor:
    return F.normalize(drawn(2, 4, 64, key="images"), dim=-1)


def losses(method: FedPHA, state: dict[str, Tensor]) -> Tensor:
    """As the engine computes them in a step."""
    stem = method.text_stem(method.backbone.prompts("{}", NAMES))
    return method.loss(state, images(), method.text_features(state, stem), LABELS, WEIGHTS)


def test_sizes_at_vit_b_16() -> None:
    method = registry.build(MethodConfig("fedpha"), hollow("ViT-B-16"))
    assert isinstance(method, FedPHA)
    layout = Layout(method.shapes, method.exchange)
    assert (layout.size, 4 * layout.exchanged_size) == (16_384, 32_768)
    assert method.exchange == {SHARED: "mean"} and method.strongest == 3


@pytest.mark.parametrize(("length", "ratio", "strongest"), [(16, 0.8, 3), (10, 0.8, 2), (4, 0.8, 0), (16, 1.0, 0), (16, 0.0, 16)])
def test_how_many_directions_are_left_out(length: int, ratio: float, strongest: int) -> None:
    """10 x (1 - 0.8) is a little less than 2 in floating point."""
    assert FedPHA(hollow("ViT-B-16"), FedPHAConfig(ratio=ratio), length).strongest == strongest


@pytest.mark.parametrize(
    ("option", "message"),
    [({"ratio": -0.1}, "ratio: must be at least 0"), ({"ratio": 1.1}, "ratio: must be at most 1"), ({"alpha": -1.0}, "alpha: must be")],
)
def test_settings_that_cannot_be(option: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FedPHAConfig(**option)


# The projection --------------------------------------------------------------------------------------------------------------------------


def axes(method: FedPHA, *sizes: float) -> Tensor:
    """A prompt [1,L,W] whose token i is ``sizes[i]`` times axis i."""
    prompt = torch.zeros(1, method.length, method.backbone.text.width)
    for axis, size in enumerate(sizes):
        prompt[0, axis, axis] = size
    return prompt


def test_the_projection_by_hand(tiny_clip: nn.Module) -> None:
    """Four tokens along axes 0 to 3, of sizes 4, 3, 2, 1; half of them are left out: axes 2 and 3 stay, or all but 0 and 1."""
    shared = axes(new_method(tiny_clip), 4.0, 3.0, 2.0, 1.0)
    own = drawn(*shared.shape)
    weakest, others = (new_method(tiny_clip, ratio=0.5, complement=which).projected(own, shared) for which in (False, True))
    kept = torch.arange(own.shape[-1])
    torch.testing.assert_close(weakest, own * ((kept == 2) | (kept == 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(others, own * (kept >= 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("complement", [False, True])
def test_the_trace_of_the_projector(complement: bool) -> None:
    """Of 16 tokens 3 directions are left out: 13 of 512 dimensions stay, or 509."""
    method = FedPHA(hollow("ViT-B-16"), FedPHAConfig(complement=complement), 16)
    projector = method.projected(torch.eye(512)[None], drawn(1, 16, 512))[0]
    assert projector.trace().item() == pytest.approx(509 if complement else 13, rel=1e-5)
    torch.testing.assert_close(projector @ projector, projector, rtol=1e-4, atol=1e-5)


def test_of_a_prompt_beside_the_shared_one_nothing_is_left(tiny_clip: nn.Module) -> None:
    method = new_method(tiny_clip)
    shared = axes(method, 4.0, 3.0, 2.0, 1.0)
    own = drawn(*shared.shape) * (torch.arange(shared.shape[-1]) >= 4)
    assert method.projected(own, shared).abs().max() < 1e-6 < own.abs().max()


def test_within_the_shared_ones_row_space_nothing_is_pulled(tiny_clip: nn.Module) -> None:
    """With ratio 1 no direction is left out."""
    method = new_method(tiny_clip, ratio=1.0)
    state = new_state(method)
    state |= {PRIVATE: drawn(2, 4, 4, key="mixed") @ state[SHARED]}
    own, _, projected = method.text_features(state, method.text_stem(method.backbone.prompts("{}", NAMES))).unbind(dim=1)
    assert pull(own, projected).max() < 1e-10
    state |= {PRIVATE: state[PRIVATE] + 0.3}
    own, _, projected = method.text_features(state, method.text_stem(method.backbone.prompts("{}", NAMES))).unbind(dim=1)
    assert pull(own, projected).min() > 1e-6


# The loss --------------------------------------------------------------------------------------------------------------------------------


def test_pull_and_push_by_hand() -> None:
    """Unit vectors at angles of 0, 60, 90 and 180 degrees: distances of 0, 1, sqrt(2) and 2, of which only the first is less than 1."""
    angles = torch.tensor([0.0, math.pi / 3, math.pi / 2, math.pi])
    turned = torch.stack([angles.cos(), angles.sin()], dim=1)[None]
    fixed = torch.tensor([1.0, 0.0]).expand(1, 4, 2)
    assert push(turned, fixed, 1.0).item() == pytest.approx(1 / 4, abs=1e-6)
    assert push(turned, fixed, 1.5).item() == pytest.approx((1.5 + 0.5 + 1.5 - math.sqrt(2)) / 4, abs=1e-6)
    assert pull(turned, fixed).item() == pytest.approx((0 + 1 + 2 + 4) / (4 * 2), abs=1e-6)  # at most 4 / D


@pytest.mark.parametrize("through_svd", [True, False])
def test_equal_prompts_are_pushed_by_alpha_with_a_finite_gradient(tiny_clip: nn.Module, through_svd: bool) -> None:
    method = new_method(tiny_clip, alpha=0.7, through_svd=through_svd)
    state = new_state(method)
    state |= {PRIVATE: state[SHARED].clone()}
    leaves = {name: state[name].requires_grad_() for name in (SHARED, PRIVATE)}
    stem = method.text_stem(method.backbone.prompts("{}", NAMES))
    own, shared, _ = method.text_features(state, stem).unbind(dim=1)
    torch.testing.assert_close(push(own, shared, 0.7), torch.full((2,), 0.7))
    for gradient in torch.autograd.grad(losses(method, state).sum(), list(leaves.values())):
        assert gradient.isfinite().all() and gradient.abs().max() > 1e-3


def plain_loss(method: FedPHA, clip: nn.Module, state: dict[str, Tensor], client: int) -> Tensor:
    """One client's loss from the formulas, text features through open_clip; the projector as an ordinary matrix."""
    own, shared = state[PRIVATE][client], state[SHARED][client]
    _, values, rows = torch.linalg.svd(shared, full_matrices=False)
    assert (values.diff() < 0).all()
    weakest = rows[method.strongest :].T
    tl, tg, tp = (text_features(clip, NAMES, context) for context in (own, shared, own @ (weakest @ weakest.T)))
    loss = torch.zeros(())
    for texts in (tl, tg):
        entropy = F.cross_entropy(clip.logit_scale.exp() * images()[client] @ texts.T, LABELS[client], reduction="none")
        loss = loss + (entropy * WEIGHTS[client]).sum()
    return loss + F.mse_loss(tl, tp) + F.relu(method.settings.alpha - (tl - tg).norm(dim=1)).mean()


def test_a_stack_is_as_many_clients_through_open_clip(tiny_clip: nn.Module) -> None:
    """Losses and gradients of two clients side by side, against each alone; the pull's through the decomposition among them."""
    method = new_method(tiny_clip, ratio=0.5, alpha=2.0)
    leaves = {name: tensor.requires_grad_() for name, tensor in new_state(method).items() if name != SEEDS}
    state = leaves | {SEEDS: torch.arange(2)}
    got = losses(method, state)
    gradients = dict(zip(leaves, torch.autograd.grad(got.sum(), list(leaves.values())), strict=True))
    for client in range(2):
        wanted = plain_loss(method, tiny_clip, state, client)
        torch.testing.assert_close(got[client], wanted, rtol=1e-5, atol=1e-5)
        for name, gradient in zip(leaves, torch.autograd.grad(wanted, list(leaves.values())), strict=True):
            largest = float(gradient[client].abs().max())
            assert largest > 1e-3
            torch.testing.assert_close(gradients[name][client], gradient[client], rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.parametrize("complement", [False, True])
def test_the_pull_reaches_the_shared_prompt_through_its_decomposition_or_not(tiny_clip: nn.Module, complement: bool) -> None:
    for through_svd in (True, False):
        method = new_method(tiny_clip, ratio=0.5, through_svd=through_svd, complement=complement)
        own, shared = (0.3 * drawn(1, 4, method.backbone.text.width, key=key).requires_grad_() for key in ("own", "shared"))
        found = torch.autograd.grad(method.projected(own, shared).square().sum(), [own, shared], allow_unused=True)
        assert found[0].abs().max() > 0 and (found[1] is not None and bool(found[1].abs().max() > 0)) == through_svd


@torch.no_grad()
def test_the_private_prompt_alone_answers(tiny_clip: nn.Module) -> None:
    method = new_method(tiny_clip)
    state = {name: tensor for name, tensor in new_state(method).items() if name != SEEDS}
    stem = method.text_stem(method.backbone.prompts("{}", NAMES))
    texts = method.text_features(state, stem)
    assert torch.equal(method.text_features(state | {SHARED: -state[SHARED]}, stem), texts)
    for client in range(2):
        torch.testing.assert_close(texts[client], text_features(tiny_clip, NAMES, state[PRIVATE][client]), rtol=0, atol=1e-5)
