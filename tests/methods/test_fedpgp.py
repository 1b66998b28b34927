"""FedPGP: its sizes, the contrastive term and its gradients, the anchor, and a plain client through open_clip's own modules."""

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
from pfedmma.methods.base import SEEDS
from pfedmma.methods.fedpgp import FedPGP, FedPGPConfig, contrast
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import NOTHING
from pfedmma.system.errors import UserError
from tests.support.open_clip_prompts import NAMES, hollow, text_features

TEMPLATE = "a photo of a {}."
LABELS, WEIGHTS = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]]), torch.tensor([[0.25] * 4, [0.5, 0.5, 0.0, 0.0]])


def new_method(clip: nn.Module, **options: Any) -> FedPGP:
    return FedPGP.from_settings(FedPGPConfig(**options), Backbone.freeze(clip, "tiny"))


def new_state(method: FedPGP, clients: int = 2) -> dict[str, Tensor]:
    """Every client with tensors of its own, so strong that u v counts as much as sigma."""
    generator = rng.generator(0, "state")
    strength = {"sigma": 0.3, "u": 0.5, "v": 0.3}
    return {n: strength[n] * torch.randn(clients, *shape, generator=generator) for n, shape in method.shapes.items()}


def images(clients: int = 2, count: int = 4) -> Tensor:
    return F.normalize(torch.randn(clients, count, 64, generator=rng.generator(0, "images")), dim=-1)


def losses(method: FedPGP, state: dict[str, Tensor], clients: int = 2) -> Tensor:
    """As the engine computes them in a step."""
    stem = method.text_stem(method.backbone.prompts(TEMPLATE, NAMES))
    seen = {**state, **method.fixed(state, NOTHING, stem), SEEDS: torch.arange(clients)}
    return method.loss(seen, images()[:clients], method.text_features(seen, stem), LABELS[:clients], WEIGHTS[:clients])


def test_sizes_at_vit_b_16() -> None:
    method = registry.build(MethodConfig(name="fedpgp"), hollow("ViT-B-16"))
    assert isinstance(method, FedPGP)
    assert (method.settings.mu, method.settings.tau, method.settings.rank, method.settings.anchor) == (0.5, 0.5, 8, "template")
    assert method.shapes == {"sigma": (16, 512), "u": (16, 8), "v": (8, 512)}
    layout = Layout(method.shapes, method.exchange)
    assert layout.size == 16 * 512 + 16 * 8 + 8 * 512 == 12_416
    assert layout.exchanged_size == 16 * 512 == 8_192
    assert layout.exchanged_size * torch.float32.itemsize == 32_768  # bytes up, and down, per client and round
    assert method.exchange == {"sigma": "mean"}


def test_initial_values() -> None:
    method = registry.build(MethodConfig(name="fedpgp"), hollow("ViT-B-16"))
    first, again, other = (method.initial(rng.generator(seed, "init")) for seed in (0, 0, 1))
    for name, tensor in first.items():
        assert tuple(tensor.shape) == method.shapes[name]
        # Known to about 1 / sqrt(2 n) of itself; four times that may happen.
        assert tensor.std() == pytest.approx(0.02, rel=4 / math.sqrt(2 * tensor.numel()))
        assert abs(tensor.mean()) < 4 * 0.02 / math.sqrt(tensor.numel())
        assert torch.equal(tensor, again[name]) and not torch.equal(tensor, other[name])


def test_sigma_may_begin_with_words(tiny_clip) -> None:
    method = new_method(tiny_clip, words="a photo of a")
    initial = method.initial(rng.generator(0, "init"))
    tokens = method.backbone.prompts("{}", ("a photo of a",)).tokens[0, 1:5]
    assert torch.equal(initial["sigma"], tiny_clip.token_embedding(tokens))
    assert initial["u"].std() > 0 and initial["v"].std() > 0


def test_the_contrastive_term_by_hand() -> None:
    """Three classes in the plane, given by angles: cosines are those of differences of angles."""
    angles = {"anchor": (0.0, 0.3, 2.0), "sigma": (0.5, 0.3, 1.0), "own": (2.0, 1.8, 1.1)}
    tau = 0.5
    wanted = 0.0
    for anchor, sigma, own in zip(*angles.values(), strict=True):
        positive, negative = math.exp(math.cos(anchor - sigma) / tau), math.exp(math.cos(sigma - own) / tau)
        wanted -= math.log(positive / (positive + negative)) / 3
    stacked = {name: torch.tensor([[[math.cos(a), math.sin(a)] for a in of]]) for name, of in angles.items()}
    got = contrast(stacked["anchor"], stacked["sigma"], stacked["own"], tau)
    assert got.shape == (1,)
    assert got.item() == pytest.approx(wanted, rel=1e-5)
    # Sigma at the anchor and opposite to the client's own: p = 1, n = -1.
    one = torch.tensor([[[1.0, 0.0]]])
    assert contrast(one, one, -one, 1.0).item() == pytest.approx(math.log(1 + math.exp(-2.0)))


def plain_loss(method: FedPGP, clip: nn.Module, state: dict[str, Tensor], client: int, anchor: Tensor) -> Tensor:
    """One client's loss from the paper's formulas, text features through open_clip."""
    sigma, own = state["sigma"][client], state["sigma"][client] + state["u"][client] @ state["v"][client]
    ts, t = text_features(clip, NAMES, sigma), text_features(clip, NAMES, own)
    logits = clip.logit_scale.exp() * images()[client] @ t.T
    entropy = (F.cross_entropy(logits, LABELS[client], reduction="none") * WEIGHTS[client]).sum()
    pairs = torch.stack([F.cosine_similarity(anchor, ts), F.cosine_similarity(ts, t)], dim=1) / method.settings.tau
    return entropy + method.settings.mu * F.cross_entropy(pairs, torch.zeros(len(NAMES), dtype=torch.long))


@pytest.mark.parametrize("anchor", ["template", "placeholder"])
def test_a_stack_is_as_many_clients_through_open_clip(tiny_clip, anchor: str) -> None:
    """Features, losses and gradients of two clients side by side, against each alone."""
    method = new_method(tiny_clip, mu=0.7, tau=0.4, anchor=anchor)
    assert method.length == 4  # a quarter of 16 tokens
    template = TEMPLATE if anchor == "template" else "X X X X {}."
    t0 = tiny_clip.encode_text(method.backbone.prompts(template, NAMES).tokens, normalize=True)
    state = {name: tensor.requires_grad_() for name, tensor in new_state(method).items()}
    stem = method.text_stem(method.backbone.prompts(TEMPLATE, NAMES))
    texts = method.text_features(state, stem)
    assert texts.shape == (2, 3, 64)
    got = losses(method, state)
    gradients = dict(zip(state, torch.autograd.grad(got.sum(), list(state.values())), strict=True))
    for client in range(2):
        context = state["sigma"][client] + state["u"][client] @ state["v"][client]
        torch.testing.assert_close(texts[client], text_features(tiny_clip, NAMES, context), rtol=0, atol=1e-5)
        wanted = plain_loss(method, tiny_clip, state, client, t0)
        torch.testing.assert_close(got[client], wanted, rtol=1e-5, atol=1e-5)
        for name, gradient in zip(state, torch.autograd.grad(wanted, list(state.values())), strict=True):
            assert gradient[client].abs().max() > 1e-3
            largest = float(gradient.abs().max())
            torch.testing.assert_close(gradients[name][client], gradient[client], rtol=1e-4, atol=1e-5 * largest)
    # The test can fail: the clients differ, and so do the anchors.
    assert (texts[0] - texts[1]).abs().max() > 1e-2
    other = new_method(tiny_clip, mu=0.7, tau=0.4, anchor="placeholder" if anchor == "template" else "template")
    assert (losses(other, state) - got).abs().min() > 1e-4


def test_the_term_reaches_sigma_twice_and_never_the_anchor(tiny_clip) -> None:
    method = new_method(tiny_clip)
    state = {name: tensor.requires_grad_() for name, tensor in new_state(method).items()}
    stem = method.text_stem(method.backbone.prompts(TEMPLATE, NAMES))
    seen = {**state, **method.fixed(state, NOTHING, stem), SEEDS: torch.arange(2)}
    assert not seen["anchor"].requires_grad
    own, sigma = method.text_features(seen, stem).unbind(dim=1)
    assert own.shape == (2, 3, 64)
    value = lambda ts, t: contrast(seen["anchor"], ts, t, 0.5).sum()  # noqa: E731
    ways = [value(sigma, own.detach()), value(sigma.detach(), own), value(sigma, own)]
    by_sigma, by_own, both = (torch.autograd.grad(way, state["sigma"], retain_graph=True)[0] for way in ways)
    assert by_sigma.abs().max() > 1e-4 and by_own.abs().max() > 1e-4
    torch.testing.assert_close(both, by_sigma + by_own, rtol=1e-4, atol=1e-7)
    assert not torch.autograd.grad(ways[0], state["u"])[0].any()  # u has no part in the features of sigma


def test_without_u_v_both_texts_are_the_same(tiny_clip) -> None:
    """Then the second cosine is 1 in each class, and the features are those of sigma."""
    method = new_method(tiny_clip)
    state = new_state(method) | {"u": torch.zeros(2, 4, 8)}
    stem = method.text_stem(method.backbone.prompts(TEMPLATE, NAMES))
    own, sigma = method.text_features({**state, SEEDS: torch.arange(2)}, stem).unbind(dim=1)
    torch.testing.assert_close(own, sigma, rtol=0, atol=1e-6)
    torch.testing.assert_close(method.text_features(state, stem), own, rtol=0, atol=1e-6)


def test_mu_zero_is_cross_entropy_alone(tiny_clip) -> None:
    state = new_state(new_method(tiny_clip))
    without, half, one = (losses(new_method(tiny_clip, mu=mu), state) for mu in (0.0, 0.5, 1.0))
    assert ((half - without) > 1e-2).all()
    torch.testing.assert_close(one - without, 2 * (half - without), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"rank": 0}, r"rank: must be at least 1, not 0"),
        ({"mu": -1.0}, r"mu: must be at least 0, not -1"),
        ({"tau": 0.0}, r"tau: must be greater than 0, not 0"),
        ({"anchor": "mean"}, r"anchor: 'mean' is not known; choose one of template, placeholder"),
    ],
)
def test_settings_that_cannot_be(option: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FedPGPConfig(**option)
