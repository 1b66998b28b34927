"""FedMaPLe against open_clip's own modules, one client at a time, with the prompts put in by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.methods import registry
from pfedmma.methods.fedmaple import FedMaPLe, FedMaPLeConfig
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack.layout import Layout
from pfedmma.system.errors import UserError
from tests.support.random_clip import random_clip

NAMES = ("cat", "red_fish", "very long name of a thing", "fern")  # prompts of several lengths
GENERIC = "a picture of the {}."  # not what FedMaPLe reads
VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 4}
TEXT = {"context_length": 20, "width": 24, "heads": 2, "layers": 4}
# Each is a change to an ordinary small CLIP.
VARIANTS: dict[str, tuple[dict, dict]] = {
    "plain": ({}, {}),
    "deeper text": ({"layers": 3}, {"layers": 5}),
    "average pooling": ({"pool_type": "avg"}, {}),
    "no norm before": ({"no_ln_pre": True}, {}),
    "no mask": ({}, {"no_causal_mask": True}),
}


def small_clip(vision: dict, text: dict) -> nn.Module:
    return random_clip(VISION | vision, TEXT | text)


def build(backbone: Backbone, **settings) -> FedMaPLe:
    method = registry.build(MethodConfig("fedmaple", own=FedMaPLeConfig(**settings)), backbone)
    assert isinstance(method, FedMaPLe)
    return method


def drawn(method: FedMaPLe, clients: int) -> dict[str, Tensor]:
    """Random tensors [C, *shape], another for every name and client, large enough to matter."""
    generator = rng.generator(0, "drawn")
    return {name: (0.3 * torch.randn(clients, *shape, generator=generator)).requires_grad_() for name, shape in method.shapes.items()}


def plain_images(clip: nn.Module, own: Mapping[str, Tensor], depth: int, pixels: Tensor) -> Tensor:
    """Image features of one client."""
    visual = clip.visual
    n = own["context"].shape[0]

    def prompt(number: int) -> Tensor:
        tokens = own["context" if number == 0 else f"deep.{number}"]
        weight, bias = own[f"projection.{number}.weight"], own[f"projection.{number}.bias"]
        return F.linear(tokens, weight, bias).expand(len(pixels), -1, -1)

    x = visual.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(pixels), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, prompt(0)], dim=1))
    for number, block in enumerate(visual.transformer.resblocks):
        if 0 < number < depth:
            x = torch.cat([x[:, :-n], prompt(number)], dim=1)
        x = block(x)
    x = visual.ln_post(x[:, :-n])
    pooled = x[:, 0] if visual.pool_type == "tok" else x[:, 1:].mean(dim=1)
    return F.normalize(pooled @ visual.proj, dim=-1)


def plain_texts(clip: nn.Module, own: Mapping[str, Tensor], depth: int) -> Tensor:
    """Text features of one client, over the full context."""
    tokenizer = open_clip.SimpleTokenizer(context_length=clip.context_length)
    ids = tokenizer([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    n = own["context"].shape[0]
    x = clip.token_embedding(ids)
    x = torch.cat([x[:, :1], own["context"].expand(len(ids), -1, -1), x[:, 1 + n :]], dim=1) + clip.positional_embedding
    for number, block in enumerate(clip.transformer.resblocks):
        if 0 < number < depth:
            x = torch.cat([x[:, :1], own[f"deep.{number}"].expand(len(ids), -1, -1), x[:, 1 + n :]], dim=1)
        x = block(x, attn_mask=clip.attn_mask)
    pooled = clip.ln_final(x)[torch.arange(len(ids)), ids.argmax(dim=1)]
    return F.normalize(pooled @ clip.text_projection, dim=-1)


def features(method: FedMaPLe, state: Mapping[str, Tensor], pixels: Tensor) -> tuple[Tensor, Tensor]:
    prompts = method.backbone.prompts(GENERIC, NAMES)
    return method.image_features(state, method.image_stem(pixels)), method.text_features(state, method.text_stem(prompts))


def assert_close(got: Tensor, wanted: Tensor, name: str = "") -> None:
    """Within 1e-5 of the element and of the tensor's largest."""
    atol = 1e-5 * float(wanted.detach().abs().max())
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=atol, msg=lambda text: f"{name}: {text}")


def assert_as_plain(clip: nn.Module, side: int, **settings) -> None:
    """Features and gradients of two stacked clients, each with its own tensors and images."""
    method = build(Backbone.freeze(clip), **settings)
    state = drawn(method, clients=2)
    pixels = torch.randn(2 * 3, 3, side, side, generator=rng.generator(0, "images"))
    images, texts = features(method, state, pixels)
    own = [{name: tensor[client] for name, tensor in state.items()} for client in range(2)]
    wanted_images = torch.stack([plain_images(clip, own[c], method.depth, pixels[3 * c : 3 * c + 3]) for c in range(2)])
    wanted_texts = torch.stack([plain_texts(clip, own[c], method.depth) for c in range(2)])
    torch.testing.assert_close(images, wanted_images, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(texts, wanted_texts, rtol=1e-5, atol=1e-5)
    # The test can fail: clients differ.
    assert (wanted_texts[0] - wanted_texts[1]).abs().max() > 1e-3

    directions = [torch.randn(x.shape, generator=rng.generator(0, "direction")) for x in (images, texts)]
    got, wanted = (
        torch.autograd.grad(sum((x * direction).sum() for x, direction in zip(pair, directions, strict=True)), list(state.values()))
        for pair in ((images, texts), (wanted_images, wanted_texts))
    )
    for name, mine, theirs in zip(state, got, wanted, strict=True):
        assert theirs.abs().max() > 1e-5, name
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()), msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_and_gradients_are_those_of_open_clips_modules(variant: str) -> None:
    assert_as_plain(small_clip(*VARIANTS[variant]), 32)


@pytest.mark.parametrize(("context", "depth"), [(1, 1), (2, 1), (2, 2), (2, 3), (4, 4)])
def test_any_context_and_depth(context: int, depth: int) -> None:
    assert_as_plain(small_clip({}, {}), 32, context=context, depth=depth)


def test_on_tiny(tiny_clip) -> None:
    assert_as_plain(tiny_clip, 32)


def test_counts_at_vit_b_16() -> None:
    with torch.device("meta"):
        backbone = Backbone.freeze(open_clip.create_model("ViT-B-16", device="meta"), "ViT-B-16")
    method = build(backbone)
    layout = Layout(method.shapes, method.exchange)
    assert method.depth == 9
    # For each of nine blocks: two text tokens, and a linear layer from 512 to 768.
    assert layout.size == 9 * (2 * 512 + 512 * 768 + 768) == 3_555_072
    assert layout.exchanged_size == layout.size and set(layout.columns) == {"mean"}
    assert layout.exchanged_size * torch.float32.itemsize == 14_220_288  # bytes up, and down, per client and round
    assert sorted(name for name in method.shapes if name.startswith("deep")) == [f"deep.{number}" for number in range(1, 9)]


def test_initial_values(tiny_clip) -> None:
    method = build(Backbone.freeze(tiny_clip))
    assert method.depth == 6  # all that tiny has
    tensors = method.initial(rng.generator(0, "init"))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == method.shapes
    words = method.backbone.tokenizer.encode("a photo")
    assert torch.equal(tensors["context"], tiny_clip.token_embedding.weight[words])
    deep = torch.cat([tensors[f"deep.{number}"].flatten() for number in range(1, 6)])
    # The standard deviation of n numbers is known to about 1 / sqrt(2 n) of itself; four times that may happen.
    assert deep.std() == pytest.approx(0.02, rel=4.0 / math.sqrt(2 * len(deep)))
    assert deep.abs().max() > 3 * 0.02 and len(deep.unique()) == len(deep)
    for kind in ("weight", "bias"):
        layers = [tensors[f"projection.{number}.{kind}"] for number in range(6)]
        assert all(torch.equal(layers[1], layer) for layer in layers[2:])
        assert not torch.equal(layers[0], layers[1])
        for layer in layers[:2]:
            assert 0.9 / math.sqrt(64) < layer.abs().max() <= 1.0 / math.sqrt(64)
            # A uniform distribution within b has the deviation b / sqrt(3).
            assert layer.std() == pytest.approx(1.0 / math.sqrt(3 * 64), rel=4.0 / math.sqrt(2 * layer.numel()))


def test_initial_values_follow_from_the_seed(tiny_clip) -> None:
    method = build(Backbone.freeze(tiny_clip))
    first, again, other = (method.initial(rng.generator(seed, "init")) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [name for name in first if torch.equal(first[name], other[name])] == ["context"]


def test_the_first_prompt_reads_as_words(tiny_clip) -> None:
    """As initialised, a text tower with prompts in block 1 alone reads "a photo of a {class}."."""
    method = build(Backbone.freeze(tiny_clip), depth=1)
    state = {name: tensor.unsqueeze(0) for name, tensor in method.initial(rng.generator(0, "init")).items()}
    got = method.text_features(state, method.text_stem(method.backbone.prompts(GENERIC, NAMES)))[0]
    wanted = tiny_clip.encode_text(method.backbone.prompts("a photo of a {}.", NAMES).tokens, normalize=True)
    assert_close(got, wanted)


@pytest.mark.parametrize("depth", [1, 2])
def test_deep_prompts_replace_what_comes_from_below(depth: int) -> None:
    """Whatever block 1 makes of the context tokens is dropped with a prompt in block 2, and read without."""
    seen = []
    for strength in (0.0, 10.0):
        frozen = Backbone.freeze(small_clip({}, {}))
        method = build(frozen, depth=depth)
        for tower, places in ((frozen.visual, slice(-2, None)), (frozen.text, slice(1, 3))):
            # Not the same in every channel: a layer norm would take that away.
            disturbance = strength * torch.randn(2, tower.width, generator=rng.generator(0, "disturbance"))

            def disturbed(*args, block=tower.blocks[0], places=places, disturbance=disturbance):
                normed, x, out = block(*args)
                x = x.clone()
                x[:, places] += disturbance
                return normed, x, out

            tower.blocks[0] = disturbed
        pixels = torch.randn(3, 3, 32, 32, generator=rng.generator(0, "images"))
        with torch.no_grad():
            seen.append(features(method, drawn(method, clients=1), pixels))
    for calm, rough in zip(*seen, strict=True):
        if depth == 2:
            assert torch.equal(calm, rough)
        else:
            assert (calm - rough).abs().max() > 1e-3


def test_an_underscore_in_words_is_a_space(tiny_clip) -> None:
    frozen = Backbone.freeze(tiny_clip)
    state = {name: tensor.unsqueeze(0) for name, tensor in build(frozen).initial(rng.generator(0, "init")).items()}
    plain, other = (build(frozen, words=words) for words in ("a photo of a", "a_photo_of_a"))
    prompts = frozen.prompts(GENERIC, NAMES)
    stems = [method.text_stem(prompts).parts[0].stem for method in (plain, other)]
    assert torch.equal(stems[0].output, stems[1].output)
    assert torch.equal(other.initial(rng.generator(0, "init"))["context"], state["context"][0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 0}, r"^context: must be at least 1, not 0$"),
        ({"depth": -1}, r"^depth: must be at least 0, not -1$"),
        ({"depth": 7}, r"^method\.fedmaple\.depth: tiny has only 6 blocks in its shallower tower, fewer than 7$"),
        ({"context": 5}, r"^method\.fedmaple\.context: 'a photo of a' has only 4 tokens, fewer than 5$"),
        ({"words": ""}, r"^method\.fedmaple\.context: '' has only 0 tokens, fewer than 2$"),
    ],
)
def test_settings_that_cannot_be(tiny_clip, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(Backbone.freeze(tiny_clip, "tiny"), **settings)


def test_a_name_that_is_too_long(tiny_clip) -> None:
    method = build(Backbone.freeze(tiny_clip, "tiny"))
    fits = "one two three four five six seven eight nine"  # with "a photo of a", full stop, start and end: 16
    method.text_stem(method.backbone.prompts("{}", (fits,)))
    with pytest.raises(UserError, match=r"^method: the prompt of class 'one .* ten' with 4 context tokens has 17 tokens; tiny reads 16$"):
        method.text_stem(method.backbone.prompts("{}", (f"{fits} ten",)))
