"""Image towers of timm, run block by block, give open_clip's own logits: with adapters, with LoRA and without."""

from __future__ import annotations

from collections.abc import Callable

import open_clip
import pytest
import torch
from torch import Tensor, nn

from pfedmma import rng
from pfedmma.clip import fitting
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.file_kinds import NoWeights
from pfedmma.clip.fingerprint import FrozenWeights
from pfedmma.clip.stems import TowerStem
from pfedmma.clip.towers import Places
from pfedmma.data.sources.base import GENERIC_TEMPLATE
from pfedmma.methods import registry
from pfedmma.methods.base import Method
from pfedmma.methods.fedlora import FedLoRAConfig
from pfedmma.methods.registry import MethodConfig
from pfedmma.portable.adapted_clip import AdaptedCLIP
from pfedmma.portable.made_for import MadeFor
from pfedmma.portable.personal_clip import PersonalCLIP
from pfedmma.system.errors import UserError
from tests.support.timm_clip import SIGLIP, SIGLIP_TEXT, eva01, eva02, mobileclip, siglip, timm_clip

NAMES = ("cat", "red_fish", "very long name of a thing", "fern")


class Tanh(nn.GELU):
    """SigLIP 2's GELU."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "siglip": siglip,
    "siglip 2": lambda: siglip(Tanh, act_kwargs={"approximate": "tanh"}),
    "mobileclip-b": mobileclip,
    "eva01": eva01,
    "eva02": eva02,
    "eva, layer scale": lambda: eva02(init_values=0.3, qkv_fused=True, scale_mlp=False, swiglu_align_to=8),
    "no class token, averaged": lambda: timm_clip(
        {**SIGLIP, "fc_norm": False, "global_pool": "avg"}, {}, {"timm_pool": "avg", "timm_proj": "linear"}
    ),
    "layer scale, norm before": lambda: timm_clip({"init_values": 0.3, "pre_norm": True}, {}, {"timm_pool": "token", "timm_proj": None}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def clip(request: pytest.FixtureRequest) -> nn.Module:
    return FAMILIES[request.param]()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=rng.generator(0, "images"))


def assert_close(got: Tensor, wanted: Tensor) -> None:
    """Within 1e-5 of the element and of the tensor's largest."""
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.detach().abs().max()))


def drawn(method: Method) -> dict[str, Tensor]:
    """One client's tensors, large enough to matter."""
    generator = rng.generator(0, "drawn")
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in method.shapes.items()}


def logits(method: Method, own: dict[str, Tensor]) -> Tensor:
    return PersonalCLIP.from_tensors(method, own, {}, GENERIC_TEMPLATE).classifier(NAMES)(images())


def open_clips(clip: nn.Module) -> Tensor:
    return clip.get_logits(images(), Backbone.freeze(clip).prompts(GENERIC_TEMPLATE, NAMES).tokens)[0]


def towers(clip: nn.Module) -> list[tuple[str, nn.ModuleList, str]]:
    return [("visual", clip.visual.trunk.blocks, "norm1"), ("text", clip.text.transformer.resblocks, "ln_1")]


def test_zero_shot_logits_are_open_clips(clip: nn.Module) -> None:
    method = registry.build(MethodConfig("zeroshot"), Backbone.freeze(clip))
    wanted = open_clips(clip)
    assert_close(logits(method, drawn(method)), wanted)
    assert (wanted[0] - wanted[1]).abs().max() > 1e-3 and (wanted[:, 0] - wanted[:, 1]).abs().max() > 1e-3


def test_logits_with_adapters_are_open_clips_with_hooks(clip: nn.Module) -> None:
    method = registry.build(MethodConfig(blocks=3, dim=4, scale=0.5), Backbone.freeze(clip))
    own = drawn(method)
    before, hooks = open_clips(clip), []
    state = {name: tensor.unsqueeze(0) for name, tensor in own.items()}
    for tower, blocks, norm in towers(clip):
        for number in range(len(blocks) - 2, len(blocks) + 1):

            def added(block: nn.Module, args: tuple, out: Tensor, tower=tower, number=number, norm=norm) -> Tensor:
                return out + method.spec(state, tower, number, getattr(block, norm)(args[0]))

            hooks.append(blocks[number - 1].register_forward_hook(added))
    try:
        wanted = open_clips(clip)
    finally:
        for hook in hooks:
            hook.remove()
    assert (wanted - before).abs().max() > 1e-2
    assert_close(logits(method, own), wanted)


def test_logits_with_lora_are_open_clips_with_merged_weights(clip: nn.Module) -> None:
    method = registry.build(MethodConfig("fedlora", own=FedLoRAConfig(rank=4, alpha=2.0)), Backbone.freeze(clip))
    own, merged, before = drawn(method), {}, open_clips(clip)
    for tower, blocks, _ in towers(clip):
        for number, block in enumerate(blocks, start=1):
            added = [own[f"{tower}.{number}.{part}.b"] @ own[f"{tower}.{number}.{part}.a"] for part in "qkv"]  # alpha / sqrt(rank) is 1
            if getattr(block.attn, "q_proj", None) is not None:
                weights = [block.attn.q_proj.weight, block.attn.k_proj.weight, block.attn.v_proj.weight]
            else:
                weights, added = [block.attn.qkv.weight if tower == "visual" else block.attn.in_proj_weight], [torch.cat(added)]
            for weight, more in zip(weights, added, strict=True):
                merged[next(name for name, tensor in clip.named_parameters() if tensor is weight)] = weight + more
    names = (images(), Backbone.freeze(clip).prompts(GENERIC_TEMPLATE, NAMES).tokens)
    found = torch.func.functional_call(clip, merged, names)
    wanted = found[2] * found[0] @ found[1].T + (found[3] if len(found) == 4 else 0.0)
    assert (wanted - before).abs().max() > 1e-2
    assert_close(logits(method, own), wanted)


def test_gradients_are_those_of_open_clip_with_hooks(clip: nn.Module) -> None:
    """Of a map at the output of each block of the image tower."""
    frozen = Backbone.freeze(clip)
    tower, blocks = frozen.visual, clip.visual.trunk.blocks
    maps = [torch.randn(32, 32, generator=rng.generator(0, "map", n)).div_(6.0).requires_grad_() for n in range(tower.depth)]
    got = tower.features(tower.finish(frozen.image_stem(images(), 1), Places(output=lambda n, x: torch.relu(x @ maps[n - 1]))))
    hooks = [
        block.register_forward_hook(lambda block, args, out, own=own: out + torch.relu(block.norm1(args[0]) @ own))
        for block, own in zip(blocks, maps, strict=True)
    ]
    wanted = clip.encode_image(images())
    for hook in hooks:
        hook.remove()
    assert_close(got, wanted)
    direction = torch.randn(wanted.shape, generator=rng.generator(0, "direction"))
    mine, theirs = (torch.autograd.grad((features * direction).sum(), maps) for features in (got, wanted))
    for one, other in zip(mine, theirs, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-4, atol=5e-5 * float(other.abs().max()))


def test_a_stem_may_end_at_any_block(clip: nn.Module) -> None:
    frozen = Backbone.freeze(clip)
    wanted = clip.encode_image(images())
    for blocks in range(frozen.visual.depth + 1):
        assert_close(frozen.visual.features(frozen.visual.finish(frozen.image_stem(images(), blocks), Places())), wanted)


def test_a_half_precision_tower_is_near(clip: nn.Module) -> None:
    frozen, wanted = Backbone.freeze(clip, precision="bf16"), clip.encode_image(images(), normalize=True)
    with frozen.autocast():
        got = frozen.image_features(images()).value
    assert got.dtype == torch.float32
    assert (nn.functional.normalize(got, dim=-1) - wanted).abs().max() < 0.03


def test_the_bias_is_part_of_the_logits_and_of_no_loss() -> None:
    clip = siglip()
    with_bias, without = Backbone.freeze(clip), Backbone.freeze(clip)
    object.__setattr__(without, "logit_bias", None)
    assert with_bias.logit_bias is not None
    one, other = (registry.build(MethodConfig(), backbone) for backbone in (with_bias, without))
    own = drawn(one)
    torch.testing.assert_close(logits(one, own), logits(other, own) + clip.logit_bias)
    state = {name: tensor.unsqueeze(0).requires_grad_() for name, tensor in own.items()}
    losses = []
    for method in (one, other):
        texts = method.text_features(state, method.text_stem(with_bias.prompts(GENERIC_TEMPLATE, NAMES)))
        found = method.image_features(state, method.image_stem(images()))
        losses.append(method.loss(state, found, texts, torch.tensor([[0, 1, 2]]), torch.full((1, 3), 1 / 3)))
    torch.testing.assert_close(*losses)


def test_an_adapted_model_answers_as_open_clips_does() -> None:
    """Three values, and four where there is a bias."""
    for clip in (siglip(), mobileclip()):
        method = registry.build(MethodConfig(scale=0.0, dim=4), Backbone.freeze(clip))
        adapted = AdaptedCLIP(clip, method.spec, drawn(method), MadeFor())
        tokens = method.backbone.prompts(GENERIC_TEMPLATE, NAMES).tokens
        found, wanted = adapted(images(), tokens), clip(images(), tokens)
        assert len(found) == len(wanted)
        for mine, theirs in zip(found, wanted, strict=True):
            assert_close(mine, theirs)


def test_a_changed_tensor_changes_the_fingerprint(clip: nn.Module) -> None:
    """Of every tensor beside the blocks, buffers of batch norms among them."""
    frozen = FrozenWeights.from_backbone(Backbone.freeze(clip))
    assert frozen.has_numbers_of(Backbone.freeze(clip))
    state = clip.state_dict()
    for name in [name for name, tensor in state.items() if "blocks" not in name and tensor.is_floating_point()]:
        kept = state[name].clone()
        state[name].add_(0.5)
        assert not frozen.has_numbers_of(Backbone.freeze(clip)), name
        state[name].copy_(kept)


def test_a_batch_norm_in_training_mode_is_left_as_it_is() -> None:
    clip = mobileclip()
    wanted, kept = clip.encode_image(images()), [buffer.clone() for buffer in clip.buffers()]
    assert_close(Backbone.freeze(clip.train()).image_features(images()).value, wanted)
    assert all(torch.equal(one, other) for one, other in zip(clip.buffers(), kept, strict=True))


def hollow(name: str) -> nn.Module:
    with torch.device("meta"):
        return open_clip.create_model(name, device="meta")


@pytest.mark.parametrize(
    ("name", "depth", "width", "tokens", "biased"),
    [
        ("ViT-B-16-SigLIP", 12, 768, 196, True),
        ("ViT-B-16-SigLIP2-384", 12, 768, 576, True),
        ("ViT-SO400M-14-SigLIP2-378", 27, 1152, 729, True),
        ("MobileCLIP-B", 12, 768, 196, False),
        ("EVA02-B-16", 12, 768, 197, False),
        ("EVA01-g-14", 40, 1408, 257, False),
    ],
)
def test_open_clips_own_models_are_taken(name: str, depth: int, width: int, tokens: int, biased: bool) -> None:
    """Their real sizes, without numbers."""
    frozen = Backbone.freeze(hollow(name), name)
    assert (frozen.visual.depth, frozen.visual.width, len(frozen.visual.positions)) == (depth, width, tokens)
    assert (frozen.logit_bias is not None) == biased


@pytest.mark.parametrize(
    ("trunk", "vision", "reason"),
    [
        ({"qk_norm": True}, {"timm_pool": "token"}, "has custom blocks"),
        ({"qkv_bias": False}, {"timm_pool": "token"}, "has custom blocks"),
        ({"reg_tokens": 2}, {"timm_pool": "token"}, "embeds its patches in a way of its own"),
        ({"dynamic_img_size": True}, {"timm_pool": "token"}, "embeds its patches in a way of its own"),
        ({"fc_norm": True}, {"timm_pool": "token"}, "pools its tokens in a way of its own"),
        ({}, {"timm_pool": "max"}, "pools its tokens in a way of its own"),
        ({}, {}, "pools its tokens in a way of its own"),
        ({}, {"timm_pool": "token", "timm_proj": "mlp"}, "pools its tokens in a way of its own"),
    ],
)
def test_other_towers_of_timm_are_refused_in_one_sentence(trunk: dict, vision: dict, reason: str) -> None:
    clip = timm_clip(trunk, SIGLIP_TEXT, vision)
    with pytest.raises(UserError) as caught:
        Backbone.freeze(clip, "mine")
    assert str(caught.value) == f"backbone.name: the image tower of mine {reason}; adapters need a plain ViT such as ViT-B-16"


@pytest.mark.parametrize("trunk", [{"use_post_norm": True}, {"attn_type": "rope"}, {"rope_rotate_half": True}, {"rope_type": "mixed"}])
def test_other_blocks_of_eva_are_refused_in_one_sentence(trunk: dict) -> None:
    """Those of EVA02-E and of PE-Core among them."""
    with pytest.raises(UserError) as caught:
        Backbone.freeze(eva02(**trunk), "mine")
    assert str(caught.value) == "backbone.name: the image tower of mine has custom blocks; adapters need a plain ViT such as ViT-B-16"


@pytest.mark.parametrize("name", ["fedmaple", "fedmgp", "fedotp"])
@pytest.mark.parametrize("make", [mobileclip, eva02], ids=["mobileclip-b", "eva02"])
def test_prompts_of_images_and_patches_run_with_clips_tokenizer(make: Callable[[], nn.Module], name: str) -> None:
    method = registry.build(MethodConfig(name), Backbone.freeze(make(), "mine"))
    found = logits(method, drawn(method))
    assert found.shape == (3, 4) and found.isfinite().all() and (found[0] - found[1]).abs().max() > 1e-3


def test_a_file_with_a_bias_of_another_shape_fits() -> None:
    """One number with an axis of its own, as some training programs keep it."""
    clip, other = siglip(), siglip()
    state = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    state["logit_bias"], state["logit_scale"] = state["logit_bias"].reshape(1) - 3.0, state["logit_scale"].reshape(1)
    fitting.put(other, state, "mine")
    assert float(other.logit_bias) == float(clip.logit_bias) - 3.0
    del state["logit_bias"]
    with pytest.raises(NoWeights, match="it lacks logit_bias"):
        fitting.put(other, state, "mine")


@pytest.mark.slow
@pytest.mark.parametrize("make", [siglip, eva02], ids=["siglip", "eva02"])
def test_torch_compile_traces_the_tower_as_a_whole(make: Callable[[], nn.Module]) -> None:
    frozen = Backbone.freeze(make())

    def features(stem: TowerStem) -> Tensor:
        return frozen.visual.features(frozen.visual.finish(stem, Places(output=lambda number, normed: 0.1 * normed)))

    stem = frozen.image_stem(images(), 1)
    assert_close(torch.compile(features, backend="eager", fullgraph=True)(stem), features(stem))
