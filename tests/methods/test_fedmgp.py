"""FedMGP: its sizes and start, the term between groups and the draw by hand, a client through open_clip's own modules, limits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.methods import registry
from pfedmma.methods.fedmgp import DISTANCES, FedMGP, FedMGPConfig, between_groups, draw, likeness
from pfedmma.methods.registry import MethodConfig
from pfedmma.system.errors import UserError
from tests.support.open_clip_prompts import NAMES, hollow
from tests.support.random_clip import random_clip

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 3}
TEXT = {"context_length": 20, "width": 24, "heads": 2, "layers": 3}
LABELS, WEIGHTS = torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]])


def new_method(clip: nn.Module, **options: Any) -> FedMGP:
    return FedMGP.from_settings(FedMGPConfig(**options), Backbone.freeze(clip, "small"))


def drawn(*shape: int, key: str = "drawn") -> Tensor:
    return torch.randn(shape, generator=rng.generator(0, key))


def new_state(method: FedMGP) -> dict[str, Tensor]:
    """Two clients with prompts of their own, large enough to matter."""
    return {name: 0.3 * drawn(2, *shape, key=name) for name, shape in method.shapes.items()}


def pixels() -> Tensor:
    return drawn(2 * 3, 3, 32, 32, key="pixels")


def features(method: FedMGP, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Of images [C,B,G,D] and classes [C,G,K,D]."""
    texts = method.text_features(state, method.text_stem(method.backbone.prompts("{}", NAMES)))
    return method.image_features(state, method.image_stem(pixels())), texts


# Sizes and start -------------------------------------------------------------------------------------------------------------------------


def test_sizes_at_vit_b_16() -> None:
    method = registry.build(MethodConfig("fedmgp"), hollow("ViT-B-16"))
    assert method.shapes["text.prompts"] == (5, 2, 512) and method.shapes["visual.prompts"] == (5, 2, 768)
    assert (method.layout.trained_count, 4 * method.layout.exchanged_size) == (12_800, 20_480)
    assert method.exchange == {"text.sent": "uniform", "visual.sent": "uniform"}


def test_it_begins_around_the_words_another_noise_a_group(tiny_clip: nn.Module) -> None:
    method = new_method(tiny_clip, groups=200)
    start = method.initial(rng.generator(0, "init"))
    words = tiny_clip.token_embedding(torch.tensor(method.replaced_words()))  # of "a photo"
    off = start["text.prompts"] - words
    assert off.std().item() == pytest.approx(0.01, rel=0.03) and start["visual.prompts"].std().item() == pytest.approx(0.02, rel=0.03)
    assert off.mean(dim=0).abs().max() < 0.004 and len(off.flatten(1).unique(dim=0)) == 200
    assert not start["text.sent"].any() and not start["visual.sent"].any()  # the server has no mean yet


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"groups": 0}, "groups: must be at least 1"),
        ({"sent": 6}, "sent: must be at most 5"),
        ({"tau": 0.0}, "tau: must be"),
        ({"diversity": -1.0}, "diversity: must be"),
        ({"distance": "l3"}, "distance: .*l1"),
    ],
)
def test_settings_that_cannot_be(option: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FedMGPConfig(**option)


def test_words_must_hold_the_prompts(tiny_clip: nn.Module) -> None:
    with pytest.raises(UserError, match=r"method\.fedmgp\.context: 'a photo' has only 2 tokens, fewer than 3"):
        new_method(tiny_clip, words="a photo", context=3)


# The forward pass ------------------------------------------------------------------------------------------------------------------------


def plain_images(clip: nn.Module, own: Tensor, images: Tensor) -> Tensor:
    """Features of images [B,D] with the tokens ``own`` [n,W] of one group behind the patches."""
    visual = clip.visual
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(images), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.transformer(visual.ln_pre(torch.cat([x, own.expand(len(images), -1, -1)], dim=1)))
    x = visual.ln_post(x[:, : x.shape[1] - len(own)])
    pooled = x[:, 0] if visual.pool_type == "tok" else x[:, 1:].mean(dim=1)
    return F.normalize(pooled @ visual.proj, dim=-1)


def plain_texts(method: FedMGP, clip: nn.Module, own: Tensor) -> Tensor:
    """Features of classes [K,D] with ``own`` [n,W] in place of the first words of "a photo of a {name}."."""
    ids = method.backbone.prompts("a photo of a {}.", NAMES).tokens
    x = clip.token_embedding(ids)
    x = torch.cat([x[:, :1], own.expand(len(ids), -1, -1), x[:, 1 + len(own) :]], dim=1)
    x = clip.ln_final(clip.transformer(x + clip.positional_embedding[: ids.shape[1]], attn_mask=clip.attn_mask))
    return F.normalize(x[torch.arange(len(ids)), ids.argmax(dim=1)] @ clip.text_projection, dim=-1)


def plain_loss(method: FedMGP, clip: nn.Module, state: dict[str, Tensor], client: int) -> Tensor:
    """One client's loss from the formulas, group by group."""
    images = pixels()[3 * client : 3 * client + 3]
    z = [plain_images(clip, own, images) for own in state["visual.prompts"][client]]
    w = [plain_texts(method, clip, own) for own in state["text.prompts"][client]]
    entropies = [F.cross_entropy(clip.logit_scale.exp() * a @ b.T, LABELS[client], reduction="none") for a, b in zip(z, w, strict=True)]
    pairs = list(itertools.combinations(range(len(z)), 2))
    between_texts = sum((w[g] - w[h]).abs().mean() for g, h in pairs) / len(pairs)
    between_images = sum(((z[g] - z[h]).abs().mean(dim=1) * WEIGHTS[client]).sum() for g, h in pairs) / len(pairs)
    fit = sum((each * WEIGHTS[client]).sum() for each in entropies) / len(z)
    return fit - 1.5 * (between_texts + between_images) / 2


@pytest.mark.parametrize("vision", [{}, {"pool_type": "avg"}], ids=["class token", "average"])
def test_a_stack_is_as_many_clients_through_open_clip(vision: dict[str, Any]) -> None:
    """Losses and gradients of two clients side by side, three groups each, against each client and group alone."""
    clip = random_clip(VISION | vision, TEXT)
    method = new_method(clip, groups=3, diversity=1.5)
    state = {name: tensor.requires_grad_() for name, tensor in new_state(method).items() if "prompts" in name}
    got = method.loss(state, *features(method, state), LABELS, WEIGHTS)
    gradients = dict(zip(state, torch.autograd.grad(got.sum(), list(state.values())), strict=True))
    for client in range(2):
        wanted = plain_loss(method, clip, state, client)
        torch.testing.assert_close(got[client], wanted, rtol=1e-5, atol=1e-5)
        for name, gradient in zip(state, torch.autograd.grad(wanted, list(state.values())), strict=True):
            largest = float(gradient[client].abs().max())
            assert largest > 1e-3
            torch.testing.assert_close(gradients[name][client], gradient[client], rtol=1e-4, atol=1e-4 * largest)


@torch.no_grad()
def test_the_answer_is_the_mean_of_the_groups_logits() -> None:
    """And of the image features of a group none meets the text features of another."""
    clip = random_clip(VISION, TEXT)
    method = new_method(clip)
    images, texts = features(method, new_state(method))
    by_hand = sum(clip.logit_scale.exp() * images[:, :, g] @ texts[:, g].mT for g in range(5)) / 5
    torch.testing.assert_close(method.logits({}, images, texts), by_hand, rtol=1e-5, atol=1e-5)
    one = texts.clone()
    one[:, 3] = -one[:, 3]
    changed = (method.logits_of_groups(images, one) - method.logits_of_groups(images, texts)).abs().amax(dim=(0, 2, 3))
    assert changed.nonzero().flatten().tolist() == [3]


@torch.no_grad()
def test_words_without_noise_are_the_hand_written_prompt_in_every_group(tiny_clip: nn.Module) -> None:
    method = new_method(tiny_clip)
    state = new_state(method)
    state["text.prompts"] = tiny_clip.token_embedding(torch.tensor(method.replaced_words())).expand(2, 5, -1, -1)
    written = F.normalize(method.backbone.text_features(method.backbone.prompts("a photo of a {}.", NAMES)).value, dim=-1)
    torch.testing.assert_close(features(method, state)[1], written.expand(2, 5, *written.shape), rtol=0, atol=1e-5)


@torch.no_grad()
def test_zero_shot_without_tokens_in_the_image_tower(tiny_clip: nn.Module) -> None:
    """With any they are attended to, whatever they hold."""
    method = new_method(tiny_clip)
    state = new_state(method)
    state["text.prompts"] = tiny_clip.token_embedding(torch.tensor(method.replaced_words())).expand(2, 5, -1, -1)
    images, texts = features(method, state | {"visual.prompts": torch.zeros(2, 5, 0, tiny_clip.visual.transformer.width)})
    z = F.normalize(tiny_clip.encode_image(pixels()), dim=-1).unflatten(0, (2, 3))
    w = tiny_clip.encode_text(method.backbone.prompts("a photo of a {}.", NAMES).tokens, normalize=True)
    wanted = tiny_clip.logit_scale.exp() * z @ w.T
    torch.testing.assert_close(method.logits(state, images, texts), wanted, rtol=1e-5, atol=1e-5)
    zero = features(method, state | {"visual.prompts": torch.zeros(2, 5, 2, tiny_clip.visual.transformer.width)})
    assert (method.logits(state, *zero) - wanted).abs().max() > 1e-3


# Between groups --------------------------------------------------------------------------------------------------------------------------


def test_distances_by_hand() -> None:
    """Three groups of one feature each: x axis, y axis, and the x axis again."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).view(1, 3, 1, 2)
    wanted = {"l1": (1 + 0 + 1) / 3, "l2": 2 * math.sqrt(2) / 3, "cos": 2 / 3}
    assert {name: between_groups(x, d).item() for name, d in DISTANCES.items()} == pytest.approx(wanted)


def test_l1_is_small_beside_a_cross_entropy() -> None:
    """2 / sqrt(512) at most, between a unit vector and its negative of like numbers."""
    x = torch.full((512,), 512**-0.5)
    assert DISTANCES["l1"](x, -x).item() == pytest.approx(2 / math.sqrt(512)) and 2 / math.sqrt(512) < 0.0884


@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_groups_are_not_apart_and_answer_as_one(tiny_clip: nn.Module, distance: str) -> None:
    method, one = new_method(tiny_clip, distance=distance), new_method(tiny_clip, groups=1, sent=1)
    alone = {name: tensor[:, :1] for name, tensor in new_state(method).items()}
    equal = {name: tensor.expand(-1, 5, -1, -1).clone().requires_grad_() for name, tensor in alone.items() if "prompts" in name}
    images, texts = features(method, equal)
    torch.testing.assert_close(method.apart(images, texts, WEIGHTS), torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(method.logits(equal, images, texts), one.logits(alone, *features(one, alone)), rtol=1e-5, atol=1e-5)
    loss = method.loss(equal, images, texts, LABELS, WEIGHTS)
    torch.testing.assert_close(loss, one.loss(alone, *features(one, alone), LABELS, WEIGHTS), rtol=1e-5, atol=1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss.sum(), list(equal.values())))


@torch.no_grad()
def test_groups_are_pushed_apart_or_as_published_pulled_together(tiny_clip: nn.Module) -> None:
    """Images that pad a batch, of weight 0, are not read."""
    losses = {}
    for sign, options in {0: {"diversity": 0.0}, -1: {}, 1: {"published_sign": True}}.items():
        method = new_method(tiny_clip, **options)
        images, texts = features(method, new_state(method))
        losses[sign] = method.loss({}, images, texts, LABELS, WEIGHTS)
        apart = method.apart(images, texts, WEIGHTS)
        torch.testing.assert_close(losses[sign], losses[0] + sign * apart)
    assert (apart > 1e-3).all()
    images[1, 2] = images[1, 2].flip(-1)
    assert torch.equal(method.apart(images, texts, WEIGHTS), apart)


# The draw --------------------------------------------------------------------------------------------------------------------------------


def test_rows_are_drawn_one_by_one_without_replacement() -> None:
    """Of probabilities 1/2, 1/4, 1/8, 1/8: row i and then j in p_i p_j / (1 - p_i) of 40,000 draws."""
    p, count = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64), 40_000
    uniforms = torch.rand(count, 4, generator=rng.generator(0, "uniforms"), dtype=torch.float64)
    found = draw(p.log().expand(count, 4), uniforms, 2)
    for i, j in itertools.product(range(4), repeat=2):
        share = ((found[:, 0] == i) & (found[:, 1] == j)).double().mean().item()
        wanted = 0.0 if i == j else (p[i] * p[j] / (1 - p[i])).item()
        assert share == pytest.approx(wanted, abs=4 * math.sqrt(0.25 / count))


def test_likeness_by_hand() -> None:
    """Of two rows of the server's the nearer one counts; as vectors of all tokens, so that their size says nothing."""
    own = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, -1.0]]).view(1, 3, 1, 2)
    servers = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2)
    torch.testing.assert_close(likeness(own, servers), torch.tensor([[1.0, 0.5**0.5, 0.0]], dtype=torch.float64))
    assert torch.equal(likeness(own, torch.zeros_like(servers)), torch.zeros(1, 3, dtype=torch.float64))  # before the first mean


def picking(clip: nn.Module, **options: Any) -> tuple[FedMGP, dict[str, Tensor]]:
    """A client whose prompts are ever less like the server's, in text from row 4 down, in images from row 0 up."""
    method = new_method(clip, **options)
    state = {name: torch.zeros(1, *shape) for name, shape in method.shapes.items()}
    for part, order in (("text", range(4, -1, -1)), ("visual", range(5))):
        state[f"{part}.sent"][..., 0] = 1.0
        for turned, row in enumerate(order):
            state[f"{part}.prompts"][0, row, :, 0], state[f"{part}.prompts"][0, row, :, 1] = math.cos(turned / 4), math.sin(turned / 4)
    return method, state


def test_near_temperature_zero_the_most_alike_are_drawn_nearest_first(tiny_clip: nn.Module) -> None:
    method, state = picking(tiny_clip, tau=1e-6)
    rows = method.pick(state, [7])
    assert {name: each.tolist() for name, each in rows.items()} == {"text.sent": [[4, 3]], "visual.sent": [[0, 1]]}


def test_a_joint_draw_is_by_the_mean_of_both(tiny_clip: nn.Module) -> None:
    """Likenesses that fall in one tower and rise in the other are together greatest in the middle."""
    method, state = picking(tiny_clip, tau=1e-6, joint=True)
    rows = method.pick(state, [7])
    assert torch.equal(rows["text.sent"], rows["visual.sent"]) and rows["text.sent"][0, 0] == 2


def draws(clip: nn.Module, keys: list[int], **options: Any) -> dict[str, list[list[int]]]:
    """Before the first mean, when all rows are alike."""
    method = new_method(clip, **options)
    start = {name: tensor.expand(len(keys), *tensor.shape) for name, tensor in method.initial(rng.generator(0, "init")).items()}
    return {name: rows.tolist() for name, rows in method.pick(start, keys).items()}


def test_modalities_rounds_and_clients_draw_apart(tiny_clip: nn.Module) -> None:
    """Among others client 3 in round 5 does not draw as client 4 in round 4; before the first mean each row is as likely."""
    keys = [rng.key(0, "rows", round_, client) for round_ in range(40) for client in range(40)]
    found = draws(tiny_clip, keys)
    text, visual = found["text.sent"], found["visual.sent"]
    same = sum(a == b for a, b in zip(text, visual, strict=True)) / len(text)
    assert same == pytest.approx(1 / 20, abs=0.02)  # of 5 x 4 ordered pairs
    later = [text[40 * (r - 1) + c + 1] == text[40 * r + c] for r in range(1, 40) for c in range(39)]
    assert sum(later) / len(later) == pytest.approx(1 / 20, abs=0.02)
    for row in range(5):
        assert sum(pair[0] == row for pair in text) / len(text) == pytest.approx(1 / 5, abs=0.04)
    joint = draws(tiny_clip, keys[:9], joint=True)
    assert joint["text.sent"] == joint["visual.sent"]
    assert draws(tiny_clip, keys[3:4])["text.sent"] == text[3:4]  # whoever else shares the pass
