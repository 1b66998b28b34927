"""FedOTP: its sizes, the plan against its constraints and a linear program, and a plain client through open_clip's own modules."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.methods import registry
from pfedmma.methods.fedotp import FedOTP, FedOTPConfig, transport
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack.layout import Layout
from pfedmma.system.errors import UserError
from tests.support.open_clip_prompts import NAMES, hollow, text_features

TEMPLATE = "a photo of a {}."


def new_method(clip: nn.Module, **options: Any) -> FedOTP:
    precision = options.pop("precision", "fp32")
    return FedOTP.from_settings(FedOTPConfig(**options), Backbone.freeze(clip, "tiny", precision))


def drawn(*shape: int, key: str) -> Tensor:
    return torch.randn(shape, generator=rng.generator(0, key))


def new_state(method: FedOTP, clients: int = 2) -> dict[str, Tensor]:
    """Every client with two prompts of its own, unlike each other."""
    return {name: 0.5 * drawn(clients, *shape, key=name) for name, shape in method.shapes.items()}


def cosines(*shape: int, key: str = "cosines") -> Tensor:
    return drawn(*shape, key=key).mul(0.4).clamp(-1, 1)


def test_sizes_at_vit_b_16() -> None:
    method = registry.build(MethodConfig(name="fedotp"), hollow("ViT-B-16"))
    assert isinstance(method, FedOTP)
    assert (method.settings.gamma, method.settings.eps, method.settings.iterations, method.settings.balanced) == (0.8, 0.1, 100, False)
    assert method.shapes == {"shared.prompt": (16, 512), "private.prompt": (16, 512)}
    layout = Layout(method.shapes, method.exchange)
    assert layout.size == 16_384 and layout.exchanged_size == 8_192
    assert layout.exchanged_size * torch.float32.itemsize == 32_768  # bytes up, and down, per client and round
    assert method.exchange == {"shared.prompt": "mean"}


def test_initial_values() -> None:
    method = registry.build(MethodConfig(name="fedotp"), hollow("ViT-B-16"))
    shared, private = method.initial(rng.generator(0, "init")).values()
    for tensor in (shared, private):
        assert tensor.std() == pytest.approx(0.02, rel=4 / math.sqrt(2 * tensor.numel()))
    assert not torch.equal(shared, private)
    again = method.initial(rng.generator(0, "init"))
    assert torch.equal(again["shared.prompt"], shared) and torch.equal(again["private.prompt"], private)


@pytest.mark.parametrize("gamma", [0.3, 0.8])
def test_a_partial_plan_keeps_its_constraints(gamma: float) -> None:
    plan = transport(cosines(3, 16, 2, 5), gamma, 0.1, 300)
    assert plan.shape == (3, 16, 2, 5) and bool((plan > 0).all())
    torch.testing.assert_close(plan.sum(dim=1), torch.full((3, 2, 5), gamma / 2), rtol=1e-5, atol=0)  # b of each prompt
    torch.testing.assert_close(plan.sum(dim=(1, 2)), torch.full((3, 5), gamma), rtol=1e-5, atol=0)
    rows = plan.sum(dim=2)
    assert rows.max() <= 1 / 16 * (1 + 1e-3)
    # Patches like no prompt give less: rows are not simply gamma / M.
    assert rows.min() < 0.5 * gamma / 16


def test_a_balanced_plan_has_both_marginals() -> None:
    plan = transport(cosines(3, 16, 2, 5), 1.0, 0.1, 300, balanced=True)
    torch.testing.assert_close(plan.sum(dim=1), torch.full((3, 2, 5), 1 / 2), rtol=1e-5, atol=0)
    torch.testing.assert_close(plan.sum(dim=2), torch.full((3, 16, 5), 1 / 16), rtol=1e-4, atol=0)


def test_the_first_iteration_by_hand() -> None:
    """Two patches, one of them close to both prompts: its u = 1/2 / (K v) is far below 1; the other's is above, and is held to 1."""
    similarity = [[1.0, 0.8], [-0.4, 0.0]]
    eps, gamma = 0.5, 0.8
    kernel = [[math.exp(-(1 - s) / eps) for s in row] for row in similarity]
    u = [min(0.5 / sum(row), 1.0) for row in kernel]
    assert u[0] < 0.5 and u[1] == 1.0
    v = [gamma / 2 / (kernel[0][n] * u[0] + kernel[1][n] * u[1]) for n in range(2)]
    wanted = torch.tensor([[u[m] * kernel[m][n] * v[n] for n in range(2)] for m in range(2)])
    torch.testing.assert_close(transport(torch.tensor(similarity).unsqueeze(-1), gamma, eps, 1)[..., 0], wanted)


@pytest.mark.parametrize(("gamma", "balanced"), [(0.6, False), (1.0, True)])
def test_a_tiny_plan_at_small_eps_solves_the_linear_program(gamma: float, balanced: bool) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    similarity = cosines(6, 2, 1, key="program")[..., 0]
    rows = np.kron(np.eye(6), np.ones(2))  # of the plan, flattened patch by patch
    columns = np.kron(np.ones(6), np.eye(2))
    cost, give, take = (1 - similarity).flatten().numpy(), np.full(6, 1 / 6), np.full(2, gamma / 2)
    if balanced:
        best = optimize.linprog(cost, A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([give, take]))
    else:
        best = optimize.linprog(cost, A_ub=rows, b_ub=give, A_eq=columns, b_eq=take)
    assert best.success
    plan = transport(similarity.unsqueeze(-1), gamma, 0.005, 3000, balanced)[..., 0]
    wanted = torch.tensor(best.x, dtype=torch.float32).view(6, 2)
    torch.testing.assert_close(plan, wanted, rtol=0, atol=2e-3)
    assert float((plan * (1 - similarity)).sum()) == pytest.approx(best.fun, abs=1e-3)


@pytest.mark.parametrize("balanced", [False, True])
def test_small_eps_gives_no_nan(balanced: bool) -> None:
    """At eps 0.001 and cosine -1 an entry of exp(-(1 - S) / eps) is e^-2000: 0 in fp32, were it ever computed."""
    similarity = torch.stack([cosines(16, 2), -torch.ones(16, 2), torch.ones(16, 2)], dim=-1)
    plan = transport(similarity, 0.8, 1e-3, 100, balanced)
    assert bool(torch.isfinite(plan).all())
    torch.testing.assert_close(plan.sum(dim=(0, 1)), torch.full((3,), 0.8), rtol=1e-3, atol=0)


def plain_logits(method: FedOTP, clip: nn.Module, pixels: Tensor, prompts: list[Tensor]) -> Tensor:
    """One client's logits [B,K], image by image and class by class, with the plan's formula as it is written."""
    settings = method.settings
    visual = clip.visual
    tokens = visual._embeds(pixels)
    patches = F.normalize(visual.ln_post(visual.transformer(tokens))[:, 1:] @ visual.proj, dim=-1)
    texts = torch.stack([text_features(clip, NAMES, prompt) for prompt in prompts])  # [N,K,D]
    rows = []
    for image in patches:
        for label in range(len(NAMES)):
            s = image @ texts[:, label].T
            kernel = torch.exp(-(1 - s.detach().double()) / settings.eps)
            u, v = torch.ones(len(s), dtype=torch.double), torch.ones(2, dtype=torch.double)
            gamma = 1.0 if settings.balanced else settings.gamma
            for _ in range(settings.iterations):
                u = 1 / (kernel * len(s) @ v)
                u = u if settings.balanced else u.clamp(max=1)
                v = 1 / (kernel.T * (2 / gamma) @ u)
            rows.append((u[:, None] * kernel * v * s).sum())
    return clip.logit_scale.exp() * torch.stack(rows).view(len(pixels), -1)


@pytest.mark.parametrize("options", [{}, {"gamma": 0.4, "eps": 0.05, "iterations": 20}, {"balanced": True, "iterations": 30}])
def test_a_stack_is_as_many_clients_through_open_clip(tiny_clip, options: dict[str, Any]) -> None:
    """Logits and gradients of two clients side by side, against each alone: T is a constant there, and so it must be here."""
    method = new_method(tiny_clip, **options)
    state = {name: tensor.requires_grad_() for name, tensor in new_state(method).items()}
    pixels = drawn(2 * 2, 3, 32, 32, key="pixels")
    texts = method.text_features(state, method.text_stem(method.backbone.prompts(TEMPLATE, NAMES)))
    images = method.image_features(state, method.image_stem(pixels))
    assert images.shape == (2, 2, 16, 64) and texts.shape == (2, 2, 3, 64) and not images.requires_grad
    got = method.logits(state, images, texts)
    direction = drawn(2, 2, 3, key="direction")
    gradients = torch.autograd.grad((got * direction).sum(), list(state.values()))
    for client in range(2):
        own = [state[name][client] for name in ("shared.prompt", "private.prompt")]
        for prompt, found in zip(own, texts[client], strict=True):
            torch.testing.assert_close(found, text_features(tiny_clip, NAMES, prompt), rtol=0, atol=1e-5)
        wanted = plain_logits(method, tiny_clip, pixels[2 * client : 2 * client + 2], own)
        torch.testing.assert_close(got[client], wanted.float(), rtol=1e-5, atol=1e-4)
        leaves = torch.autograd.grad((wanted * direction[client]).sum(), own)
        for mine, theirs in zip(gradients, leaves, strict=True):
            assert theirs.abs().max() > 1e-3
            torch.testing.assert_close(mine[client], theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
    assert (got[0] - got[1]).abs().max() > 1e-2  # the test can fail: the clients differ


def test_no_gradient_passes_through_the_plan(tiny_clip) -> None:
    """d logit / d w is s x sum over patches of T z, T as it stands; through T there would be more."""
    method = new_method(tiny_clip)
    images = F.normalize(drawn(1, 2, 16, 64, key="images"), dim=-1)
    texts = F.normalize(drawn(1, 2, 3, 64, key="texts"), dim=-1).requires_grad_()
    got = torch.autograd.grad(method.logits({}, images, texts).sum(), texts)[0]
    plan = transport(torch.einsum("cbmd,cnkd->cbmnk", images, texts.detach()), 0.8, 0.1, 100)
    wanted = method.backbone.logit_scale * torch.einsum("cbmnk,cbmd->cnkd", plan, images)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_a_prediction_does_not_depend_on_its_batch(tiny_clip) -> None:
    method = new_method(tiny_clip)
    state = new_state(method)
    texts = method.text_features(state, method.text_stem(method.backbone.prompts(TEMPLATE, NAMES)))
    images = F.normalize(drawn(2, 5, 16, 64, key="images"), dim=-1)
    together = method.logits(state, images, texts)
    apart = torch.cat([method.logits(state, images[:, i : i + 1], texts) for i in range(5)], dim=1)
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)


def test_equal_prompts_share_alike(tiny_clip) -> None:
    """With the private prompt equal to the shared one, both take half of the plan, and changing places changes nothing."""
    method = new_method(tiny_clip)
    state = new_state(method)
    same = state | {"private.prompt": state["shared.prompt"]}
    stem = method.text_stem(method.backbone.prompts(TEMPLATE, NAMES))
    texts = method.text_features(same, stem)
    assert torch.equal(texts[:, 0], texts[:, 1])
    plan = transport(cosines(16, 1, 3).expand(16, 2, 3), 0.8, 0.1, 100)
    torch.testing.assert_close(plan[:, 0], plan[:, 1])
    swapped = dict(zip(state, reversed(state.values()), strict=True))
    torch.testing.assert_close(method.text_features(swapped, stem), method.text_features(state, stem).flip(1), rtol=0, atol=1e-6)


def test_the_plan_is_fp32_under_mixed_precision(tiny_clip) -> None:
    method = new_method(tiny_clip, precision="bf16")
    images, texts = (F.normalize(drawn(1, n, m, 64, key="features"), dim=-1) for n, m in ((2, 16), (2, 3)))
    wanted = method.logits({}, images, texts)
    with method.backbone.autocast():
        got = method.logits({}, images, texts)
    assert got.dtype == torch.float32
    assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gamma": 0.0}, r"gamma: must be greater than 0 and at most 1, not 0"),
        ({"gamma": 1.5}, r"gamma: must be greater than 0 and at most 1, not 1\.5"),
        ({"eps": 0.0}, r"eps: must be at least 0\.001, not 0"),
        ({"iterations": 0}, r"iterations: must be at least 1, not 0"),
    ],
)
def test_settings_that_cannot_be(option: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FedOTPConfig(**option)
