"""The towers, run block by block with their shortcuts, give open_clip's own features; what they cannot run is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip import loading
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.clip.towers import Places, laid_out
from pfedmma.data.sources.base import GENERIC_TEMPLATE
from pfedmma.methods import registry
from pfedmma.methods.registry import MethodConfig
from pfedmma.system.errors import UserError

CPU = torch.device("cpu")
NAMES = ("cat", "red_fish", "very long name of a thing", "fern")  # prompts of several lengths
EOT = 49407

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 4}
TEXT = {"context_length": 20, "width": 24, "heads": 2, "layers": 3}
# Each is a change to an ordinary small CLIP: (vision, text, of the model).
VARIANTS: dict[str, tuple[dict, dict, dict]] = {
    "plain": ({}, {}, {}),
    "deeper text": ({"layers": 2}, {"layers": 5}, {}),
    "quick gelu": ({}, {}, {"quick_gelu": True}),
    "layer scale": ({"ls_init_value": 0.3}, {"ls_init_value": 0.2}, {}),
    "average pooling": ({"pool_type": "avg"}, {}, {}),
    "average, then norm": ({"pool_type": "avg", "final_ln_after_pool": True}, {}, {}),
    "no norm before": ({"no_ln_pre": True}, {}, {}),
    "other norms": ({"norm_kwargs": {"eps": 1e-2}}, {"norm_kwargs": {"eps": 1e-2}}, {}),
    "sine positions": ({"pos_embed_type": "sin_cos_2d"}, {}, {}),
    "projection with bias": ({}, {"proj_bias": True}, {}),
    "no text projection": ({}, {"proj_type": "none", "width": 16}, {}),
    "eos": ({}, {"pool_type": "eos", "eos_id": EOT}, {}),
    "first": ({}, {"pool_type": "first"}, {}),
    "first, no mask": ({}, {"pool_type": "first", "no_causal_mask": True}, {}),
    "last": ({}, {"pool_type": "last"}, {}),
    "eos, no mask": ({}, {"pool_type": "eos", "eos_id": EOT, "no_causal_mask": True}, {}),
    "last, no mask": ({}, {"pool_type": "last", "no_causal_mask": True}, {}),
}


def small_clip(vision: dict, text: dict, model: dict, kind: type[nn.Module] = open_clip.CLIP) -> nn.Module:
    """A small CLIP whose every tensor is random: layer norms and biases too, which start as ones and zeros."""
    clip = kind(embed_dim=16, vision_cfg=VISION | vision, text_cfg=TEXT | text, **model).eval().requires_grad_(False)
    generator = rng.generator(0, "weights")
    for parameter in clip.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return clip


def images(size: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, size, size, generator=rng.generator(0, "images"))


def assert_close(got: Tensor, wanted: Tensor, name: str = "") -> None:
    """Within 1e-5 of the element and of the tensor's largest."""
    atol = 1e-5 * float(wanted.detach().abs().max())
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=atol, msg=lambda text: f"{name}: {text}")


def assert_features_are_open_clips(clip: nn.Module, size: int) -> None:
    """Zero-shot, and with adapters whose scale is 0, for the tower and its adapters in one or all blocks."""
    frozen = Backbone.freeze(clip)
    pixels, prompts = images(size), frozen.prompts(GENERIC_TEMPLATE, NAMES)
    wanted_images, wanted_texts = clip.encode_image(pixels, normalize=True), clip.encode_text(prompts.tokens, normalize=True)
    depth = min(frozen.visual.depth, frozen.text.depth)
    configs = [MethodConfig(name="zeroshot"), *(MethodConfig(scale=0.0, blocks=blocks, dim=4) for blocks in (1, depth))]
    for config in configs:
        method = registry.build(config, frozen)
        state = {name: tensor.unsqueeze(0) for name, tensor in method.initial(rng.generator(0, "init")).items()}
        assert_close(method.image_features(state, method.image_stem(pixels))[0], wanted_images, f"images, {config}")
        assert_close(method.text_features(state, method.text_stem(prompts))[0], wanted_texts, f"texts, {config}")
    # The test can fail: neither all images nor all prompts look alike (but for a first token that sees itself alone).
    assert (wanted_images[0] - wanted_images[1]).abs().max() > 1e-3
    assert (wanted_texts[0] - wanted_texts[1]).abs().max() > 1e-3 or (frozen.text.pool_type == "first" and frozen.text.causal)


def test_tiny_has_open_clips_features(tiny_clip) -> None:
    assert_features_are_open_clips(tiny_clip, size=32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_small_clip_has_open_clips_features(variant: str) -> None:
    assert_features_are_open_clips(small_clip(*VARIANTS[variant]), size=32)


@pytest.mark.parametrize(
    ("name", "tag", "quick"),
    [("ViT-B-32", "metaclip_400m", True), ("ViT-B-16", "dfn2b", True), ("ViT-L-14", "datacomp_xl_s13b_b90k", False)],
)
def test_metaclip_dfn_and_datacomp_are_clips_and_bring_their_activation(name: str, tag: str, quick: bool) -> None:
    """Their shapes at a small size."""
    assert loading._weights(BackboneConfig(name, tag)) == {"pretrained": tag, "force_quick_gelu": quick}
    config = open_clip.get_model_config(name)
    clip = small_clip(config["vision_cfg"] | VISION, config["text_cfg"] | TEXT, {"quick_gelu": quick})
    assert_features_are_open_clips(clip, size=32)


def test_a_text_tower_of_its_own_has_open_clips_features() -> None:
    """``CustomTextCLIP`` keeps its text tower in ``text``, not in itself."""
    assert_features_are_open_clips(small_clip({}, {"pool_type": "eos", "eos_id": EOT}, {}, open_clip.CustomTextCLIP), size=32)


def test_vit_b_32_has_open_clips_features() -> None:
    """The real size, random weights."""
    config = BackboneConfig("ViT-B-32", "none")
    clip = create_model(config, seed=0)
    frozen = Backbone.freeze(clip)
    method = registry.build(MethodConfig(scale=0.0), frozen)
    state = {name: tensor.unsqueeze(0) for name, tensor in method.initial(rng.generator(0, "init")).items()}
    pixels, prompts = images(224, count=2), frozen.prompts(GENERIC_TEMPLATE, NAMES)
    assert prompts.tokens.shape == (4, 77)
    assert_close(method.image_features(state, method.image_stem(pixels))[0], clip.encode_image(pixels, normalize=True))
    assert_close(method.text_features(state, method.text_stem(prompts))[0], clip.encode_text(prompts.tokens, normalize=True))


def strange_place(width: int, acts: int) -> Callable[[int, Tensor], Tensor]:
    """Something at the output of the blocks from ``acts`` on, nothing below: another linear map of LN1(x) for each block."""
    maps = {number: torch.randn(width, width, generator=rng.generator(0, "place", number)) / width**0.5 for number in range(1, 10)}
    return lambda number, normed: normed @ maps[number] if number >= acts else 0.0 * normed


@pytest.mark.parametrize("variant", ["plain", "average pooling", "last, no mask", "layer scale"])
def test_a_stem_may_end_at_any_block(variant: str) -> None:
    """A place that does nothing below block ``acts`` gives the same features from every stem that ends there or before."""
    frozen = Backbone.freeze(small_clip(*VARIANTS[variant]))
    pixels, prompts = images(32), frozen.prompts(GENERIC_TEMPLATE, NAMES)
    for tower, take_stem, inputs in ((frozen.visual, frozen.image_stem, pixels), (frozen.text, frozen.text_stem, prompts)):
        for acts in range(1, tower.depth + 1):
            places = Places(output=strange_place(tower.width, acts))
            wanted = tower.features(tower.finish(take_stem(inputs, 0), places))
            for blocks in range(1, acts + 1):
                got = tower.features(tower.finish(take_stem(inputs, blocks), places))
                assert_close(got, wanted, f"{type(tower).__name__}, stem {blocks}, acts from {acts}")
        whole = tower.features(tower.finish(take_stem(inputs, tower.depth), Places()))
        assert_close(tower.features(tower.finish(take_stem(inputs, 0), Places())), whole, f"{type(tower).__name__}, no place in use")


def hooked(blocks: nn.ModuleList, place: Callable[[int, Tensor], Tensor]) -> None:
    """Let ``place`` act at the output of every block of an open_clip tower: out = block(x) + place(number, LN1(x))."""
    for number, block in enumerate(blocks, start=1):
        block.register_forward_hook(lambda block, args, out, number=number: out + place(number, block.ln_1(args[0])))


@pytest.mark.parametrize("variant", ["plain", "deeper text", "eos", "first", "last", "eos, no mask", "average pooling"])
def test_shortcuts_change_neither_features_nor_gradients(variant: str) -> None:
    """Cut context and pooled token alone, against open_clip's full path with hooks; gradients of a map at each block's output."""
    clip = small_clip(*VARIANTS[variant])
    frozen = Backbone.freeze(clip)
    pixels, prompts = images(32), frozen.prompts(GENERIC_TEMPLATE, NAMES)
    for tower, stem, blocks, full in (
        (frozen.visual, frozen.image_stem(pixels, 1), clip.visual.transformer.resblocks, lambda: clip.encode_image(pixels)),
        (frozen.text, frozen.text_stem(prompts, 1), clip.transformer.resblocks, lambda: clip.encode_text(prompts.tokens)),
    ):
        maps = [
            torch.randn(tower.width, tower.width, generator=rng.generator(0, "map", number)).div_(tower.width**0.5).requires_grad_()
            for number in range(tower.depth)
        ]
        place = lambda number, normed, maps=maps: torch.relu(normed @ maps[number - 1])  # noqa: E731
        got = tower.features(tower.finish(stem, Places(output=place)))
        hooked(blocks, place)
        wanted = full()
        assert_close(got, wanted, type(tower).__name__)
        direction = torch.randn(wanted.shape, generator=rng.generator(0, "direction"))
        gradients = [torch.autograd.grad((features * direction).sum(), maps) for features in (got, wanted)]
        for number, (mine, theirs) in enumerate(zip(*gradients, strict=True), start=1):
            assert theirs.abs().max() > 1e-3
            assert_close(mine, theirs, f"{type(tower).__name__}, gradient at block {number}")


@pytest.mark.parametrize(("size", "high", "wide"), [((8, 8), 4, 4), ((11, 14), 5, 3)])
def test_patches_as_one_product_are_those_of_the_convolution(size: tuple[int, int], high: int, wide: int) -> None:
    """Also where they do not cover the image."""
    gen = rng.generator(0, "patches")
    pixels, weight = torch.randn(2, 3, *size, generator=gen), torch.randn(6, 3, high, wide, generator=gen)
    wanted = F.conv2d(pixels, weight, stride=(high, wide)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(laid_out(pixels, high, wide) @ weight.flatten(1).T, wanted, rtol=1e-5, atol=1e-5)


def test_context_is_cut_to_the_longest_prompt() -> None:
    frozen = Backbone.freeze(small_clip({}, {}, {}))
    tokens = frozen.prompts(GENERIC_TEMPLATE, NAMES).tokens
    ends = (tokens == EOT).int().argmax(dim=1)
    assert ends.tolist() == [7, 8, 12, 7]  # before it: the start, "a photo of a", 1 / 2 / 6 / 1 words, "."
    assert torch.equal(frozen.text.cut(tokens), tokens[:, :13])


def test_context_is_cut_to_one_token_where_the_first_is_pooled() -> None:
    frozen = Backbone.freeze(small_clip(*VARIANTS["first"]))
    assert frozen.text.cut(frozen.prompts(GENERIC_TEMPLATE, NAMES).tokens).shape == (4, 1)


@pytest.mark.parametrize("variant", ["last", "last, no mask", "eos, no mask", "first, no mask"])
def test_context_is_not_cut_where_later_tokens_are_read(variant: str) -> None:
    frozen = Backbone.freeze(small_clip(*VARIANTS[variant]))
    tokens = frozen.prompts(GENERIC_TEMPLATE, NAMES).tokens
    assert torch.equal(frozen.text.cut(tokens), tokens)


def test_the_last_block_keeps_the_pooled_token_alone() -> None:
    """The shortcut is taken: one token leaves the stem of the last block, all of them that of the block before."""
    frozen = Backbone.freeze(small_clip({}, {}, {}))
    prompts = frozen.prompts(GENERIC_TEMPLATE, NAMES)
    assert frozen.image_stem(images(32), 4).output.shape == (3, 1, 32)
    assert frozen.image_stem(images(32), 3).output.shape == (3, 17, 32)
    for blocks, tokens in ((3, 1), (2, 13)):
        (part,) = frozen.text_stem(prompts, blocks).parts
        assert part.stem.output.shape == (4, tokens, 24)


def test_a_stem_takes_no_gradient_and_is_repeated_client_by_client() -> None:
    frozen = Backbone.freeze(small_clip({}, {}, {}))
    stem = frozen.text_stem(frozen.prompts(GENERIC_TEMPLATE, NAMES), 2).parts[0].stem
    assert not stem.normed.requires_grad and not stem.output.requires_grad
    twice = stem.repeat(2)
    for part in ("output", "normed", "pool"):
        one, two = getattr(stem, part), getattr(twice, part)
        assert torch.equal(two, torch.cat([one, one])), part
    assert twice.blocks == stem.blocks == 2
    embedded = frozen.text_stem(frozen.prompts(GENERIC_TEMPLATE, NAMES), 0).parts[0].stem
    assert embedded.normed is None and embedded.repeat(2).output.shape == (8, 13, 24)


def hollow(name: str) -> nn.Module:
    """An open_clip model without memory for its weights."""
    with torch.device("meta"):
        return open_clip.create_model(name, device="meta")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50", "the image tower of RN50 is a ModifiedResNet"),
        ("MobileCLIP-S1", "the image tower of MobileCLIP-S1 is timm's FastVit"),
        ("EVA02-E-14", "the image tower of EVA02-E-14 has custom blocks"),
        ("coca_ViT-B-32", "the image tower of coca_ViT-B-32 pools by attention"),
    ],
)
def test_other_towers_are_refused_in_one_sentence(name: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        Backbone.freeze(hollow(name), name)
    assert str(caught.value) == f"backbone.name: {reason}; adapters need a plain ViT such as ViT-B-16"


@pytest.mark.parametrize(
    ("vision", "text", "reason"),
    [
        ({"qk_norm": True}, {}, "the image tower of mine has custom blocks"),
        ({}, {"scale_heads": True}, "the text tower of mine has custom blocks"),
        ({}, {"embed_cls": True}, "the text tower of mine has a class token of its own"),
        ({"attentional_pool": True, "attn_pooler_heads": 2}, {}, "the image tower of mine pools by attention"),
    ],
)
def test_other_blocks_are_refused_in_one_sentence(vision: dict, text: dict, reason: str) -> None:
    clip = open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=VISION | vision, text_cfg=TEXT | text)
    with pytest.raises(UserError, match=rf"^backbone\.name: {reason}; adapters need [^.\n]*$"):
        Backbone.freeze(clip, "mine")


def test_the_command_line_refuses_a_resnet() -> None:
    """The whole way of ``backbone.name=RN50``."""
    with pytest.raises(UserError, match=r"^backbone\.name: the image tower of RN50 is a ModifiedResNet"):
        loading.load(BackboneConfig("RN50", "none"), 0, CPU)


@pytest.mark.parametrize(("name", "near"), [("ViT-B-61", "ViT-B-16"), ("ViT-L14", "ViT-L-14"), ("tini", None)])
def test_an_unknown_name_names_near_ones(name: str, near: str | None) -> None:
    with pytest.raises(UserError) as caught:
        create_model(BackboneConfig(name, "none"), 0)
    message = str(caught.value)
    assert message.startswith(f"backbone.name: '{name}' is neither 'tiny' nor an open_clip model")
    assert near is None or (near in message.partition("near names: ")[2])


def test_random_weights_follow_from_the_seed() -> None:
    one, same, other = (create_model(BackboneConfig("tiny", "none"), seed).visual.proj for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_creating_a_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    create_model(BackboneConfig("tiny", "none"), 0)
    assert torch.equal(torch.rand(3), wanted)


def test_a_local_checkpoint_file_gives_the_same_model(tiny_clip, tmp_path: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    save_file(tiny_clip.state_dict(), file)
    loaded = create_model(BackboneConfig("tiny", str(file)), seed=9)
    wanted = tiny_clip.state_dict()
    assert loaded.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.state_dict().items())
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_checkpoint_file_that_is_not_there(tmp_path: Path) -> None:
    for name, wanted in (("tiny", "there is no file"), ("ViT-B-32", "is neither a file nor a tag of ViT-B-32")):
        with pytest.raises(UserError, match=wanted) as caught:
            create_model(BackboneConfig(name, str(tmp_path / "none.safetensors")), 0)
        assert "none.safetensors" in str(caught.value)
    assert "laion2b_s34b_b79k" in str(caught.value)  # the tags that it does know


def test_a_checkpoint_file_of_other_shapes(tiny_clip, tmp_path: Path) -> None:
    state = tiny_clip.state_dict()
    state["text_projection"] = torch.zeros(3, 3)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"backbone\.pretrained: cannot load '.*other\.safetensors' into tiny: ") as caught:
        create_model(BackboneConfig("tiny", str(tmp_path / "other.safetensors")), 0)
    assert "size mismatch for text_projection" in str(caught.value)


def test_a_checkpoint_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match=r"backbone\.pretrained: cannot load '.*text\.safetensors' into tiny"):
        create_model(BackboneConfig("tiny", str(tmp_path / "text.safetensors")), 0)


def test_openai_weights_bring_their_activation() -> None:
    """They were trained with QuickGELU under the plain name; LAION's of the same name were not."""
    for pretrained in ("auto", "openai"):
        assert loading._weights(BackboneConfig("ViT-B-16", pretrained)) == {"pretrained": "openai", "force_quick_gelu": True}
    laion = loading._weights(BackboneConfig("ViT-B-16", "laion2b_s34b_b88k"))
    assert laion == {"pretrained": "laion2b_s34b_b88k", "force_quick_gelu": False}
    assert loading._weights(BackboneConfig("ViT-B/16", "openai"))["force_quick_gelu"] is True
    assert loading._weights(BackboneConfig("ViT-B-16", "none")) == {}


@pytest.mark.parametrize(("name", "message"), [("MobileCLIP-S1", "FastVit"), ("RN50", "ModifiedResNet")])
def test_an_unsupported_tower_is_refused_before_its_tokenizer_is_asked_for(name: str, message: str):
    with pytest.raises(UserError, match=message):
        loading.load(BackboneConfig(name, "none"), 0, torch.device("cpu"))
