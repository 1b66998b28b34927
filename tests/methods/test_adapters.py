"""The adapter: sizes, pairing of unequal towers, initial values, gradients; and the optimizers that train it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.methods import registry
from pfedmma.methods.adapters.multimodal import AdapterSpec
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack import optim
from pfedmma.stack.layout import Layout
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.system.errors import UserError

# ViT-B/16: width 768, text width 512, twelve blocks each, adapters in blocks 5 to 12.
VIT_B_16 = AdapterSpec(tuple((block, block) for block in range(5, 13)), 768, 512)


def hollow(name: str) -> Backbone:
    """An open_clip model without memory for its weights: all shapes, in no time."""
    with torch.device("meta"):
        return Backbone.freeze(open_clip.create_model(name, device="meta"), name)


def count(spec: AdapterSpec, prefix: str) -> int:
    return sum(math.prod(shape) for name, shape in spec.shapes().items() if name.startswith(prefix))


def test_counts_at_vit_b_16() -> None:
    # A block: Down 32 * width + 32, Up width * 32 + width, S 32 * 32 + 32; eight blocks.
    assert count(VIT_B_16, "visual.") == 8 * (32 * 768 + 32 + 768 * 32 + 768) == 399_616
    assert count(VIT_B_16, "text.") == 8 * (32 * 512 + 32 + 512 * 32 + 512) == 266_496
    assert count(VIT_B_16, "visual.") + count(VIT_B_16, "text.") == 666_112
    assert count(VIT_B_16, "shared.") == 8 * (32 * 32 + 32) == 8_448


def test_the_default_method_on_the_real_vit_b_16() -> None:
    method = registry.build(MethodConfig(), hollow("ViT-B-16"))
    layout = Layout(method.shapes, method.exchange)
    assert dataclasses.asdict(method.spec) == dataclasses.asdict(VIT_B_16)
    assert (method.spec.dim, method.spec.scale, method.spec.activation, method.spec.rescale) == (32, 0.001, "relu", True)
    assert layout.exchanged_size * torch.float32.itemsize == 33_792  # bytes up, and down, per client and round
    assert layout.size - layout.exchanged_size == 666_112


def test_unequal_towers_are_paired_from_the_top() -> None:
    spec = registry.build(MethodConfig(), hollow("ViT-L-14")).spec  # 24 and 12 blocks
    assert spec.pairs == ((17, 5), (18, 6), (19, 7), (20, 8), (21, 9), (22, 10), (23, 11), (24, 12))
    assert (spec.first("visual"), spec.first("text")) == (17, 5)
    # S is stored under the visual block's number, for both towers.
    assert [spec.shared_number("visual", block) for block in (17, 24)] == [17, 24]
    assert [spec.shared_number("text", block) for block in (5, 12)] == [17, 24]
    names = set(spec.shapes())
    assert {"visual.17.down.weight", "text.5.up.bias", "shared.17.weight"} <= names
    assert not {"shared.5.weight", "text.17.down.weight", "visual.16.down.weight"} & names


def test_a_text_tower_deeper_than_the_image_tower() -> None:
    config = {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
    clip = open_clip.CLIP(embed_dim=16, vision_cfg=config, text_cfg={"vocab_size": 60, "width": 24, "heads": 2, "layers": 5})
    spec = registry.build(MethodConfig(blocks=2, dim=4), Backbone.freeze(clip)).spec
    assert spec.pairs == ((1, 4), (2, 5))
    with pytest.raises(UserError, match=r"method\.blocks: .* only 2 blocks .* fewer than 3"):
        registry.build(MethodConfig(blocks=3), Backbone.freeze(clip))


def test_initial_values() -> None:
    """Kaiming-normal, fan_out, relu gain: mean 0, variance 2 / out. The up-projection is not zero; biases are."""
    tensors = VIT_B_16.initial(rng.generator(0, "init"))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == VIT_B_16.shapes()
    for kind, out in (("down", 32), ("up", None), ("shared", 32)):
        for width, tower in ((768, "visual"), (512, "text")):
            wanted = [t for n, t in tensors.items() if n.endswith("weight") and kind in n and (tower in n or kind == "shared")]
            pool = torch.cat([t.flatten() for t in wanted])
            assert len(wanted) == 8
            # The standard deviation of n numbers is known to about 1 / sqrt(2 n) of itself; four times that may happen.
            std = math.sqrt(2.0 / (out or width))
            assert pool.std() == pytest.approx(std, rel=4.0 / math.sqrt(2.0 * len(pool)))
            assert abs(pool.mean()) < 4.0 * std / math.sqrt(len(pool))
            assert pool.abs().max() > 3.0 * std  # a normal distribution has tails, a uniform one of this variance has not
    assert all(bool((t == 0).all()) for n, t in tensors.items() if n.endswith("bias"))


def test_initial_values_follow_from_the_seed() -> None:
    first, again, other = (VIT_B_16.initial(rng.generator(seed, "init")) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("weight"))
    weights = [tensor.flatten()[:8].tolist() for name, tensor in first.items() if name.endswith("weight")]
    assert len({tuple(row) for row in weights}) == len(weights)  # no two layers start alike


# One adapter in one pair of blocks; alpha is a power of two, so that multiplying by it rounds nothing.
ALPHA = 0.25
ONE = AdapterSpec(((2, 3),), 6, 5, dim=4, scale=ALPHA)


def drawn(spec: AdapterSpec, clients: int) -> dict[str, Tensor]:
    """Random tensors [C, *shape], biases too, that ask for gradients."""
    generator = rng.generator(0, "drawn")
    return {name: torch.randn(clients, *shape, generator=generator).requires_grad_() for name, shape in spec.shapes().items()}


def plain(tensors: Mapping[str, Tensor], client: int, own: str, shared: str, h: Tensor, activation=F.relu) -> Tensor:
    """A(h) of one client, from the formula."""
    weight = {name: tensor[client] for name, tensor in tensors.items()}
    x = activation(F.linear(h, weight[f"{own}.down.weight"], weight[f"{own}.down.bias"]))
    x = activation(F.linear(x, weight[f"{shared}.weight"], weight[f"{shared}.bias"]))
    return F.linear(x, weight[f"{own}.up.weight"], weight[f"{own}.up.bias"])


@pytest.mark.parametrize(("activation", "function"), [("relu", F.relu), ("gelu", F.gelu)])
@pytest.mark.parametrize(("tower", "block", "width"), [("visual", 2, 6), ("text", 3, 5)])
def test_each_client_of_a_stack_has_its_own_adapter(activation, function, tower: str, block: int, width: int) -> None:
    spec = dataclasses.replace(ONE, activation=activation)
    tensors = drawn(spec, clients=3)
    h = torch.randn(3 * 2, 7, width)  # two sequences a client, client by client
    got = spec(tensors, tower, block, h)
    for client in range(3):
        rows = slice(2 * client, 2 * client + 2)
        wanted = ALPHA * plain(tensors, client, f"{tower}.{block}", "shared.2", h[rows], function)
        torch.testing.assert_close(got[rows], wanted)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(UserError, match=r"activation: 'tanh' is not known; choose one of relu, gelu"):
        MethodConfig(activation="tanh")


@pytest.mark.parametrize("rescale", [True, False])
def test_gradients_of_one_adapter(rescale: bool) -> None:
    """With rescale, weights learn as if alpha were 1, while x receives alpha times the adapter's gradient, as without it."""
    spec = dataclasses.replace(ONE, rescale=rescale)
    tensors = drawn(spec, clients=1)
    x = torch.randn(3, 7, 6, requires_grad=True)
    downstream = torch.randn(3, 7, 6)  # the gradient that arrives at the block's output
    used = [name for name in tensors if not name.startswith("text.")]
    leaves = [x, *(tensors[name] for name in used)]

    got = torch.autograd.grad((downstream * spec(tensors, "visual", 2, x)).sum(), leaves)
    of_a = torch.autograd.grad((downstream * plain(tensors, 0, "visual.2", "shared.2", x)).sum(), leaves)  # of A, alpha = 1
    torch.testing.assert_close(got[0], ALPHA * of_a[0])
    for name, mine, wanted in zip(used, got[1:], of_a[1:], strict=True):
        torch.testing.assert_close(mine, wanted if rescale else ALPHA * wanted, msg=lambda text, name=name: f"{name}: {text}")


def test_both_towers_teach_the_shared_projection() -> None:
    """The gradient of S is the sum of what both towers send."""
    tensors = drawn(ONE, clients=1)
    images, texts = torch.randn(3, 7, 6), torch.randn(2, 4, 5)
    shared = [tensors["shared.2.weight"], tensors["shared.2.bias"]]
    losses = ONE(tensors, "visual", 2, images).square().sum(), ONE(tensors, "text", 3, texts).square().sum()
    parts = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    for together, visual, text in zip(torch.autograd.grad(sum(losses), shared), *parts, strict=True):
        assert visual.abs().max() > 0 and text.abs().max() > 0
        torch.testing.assert_close(together, visual + text)


def test_rescale_divides_every_gradient_of_the_towers_by_alpha(tiny_clip) -> None:
    """The forward pass and all gradients of tokens are the same, hence every adapter, low or high, differs by 1 / alpha alone."""
    backbone = Backbone.freeze(tiny_clip)
    pixels = torch.randn(4, 3, 32, 32, generator=rng.generator(0, "pixels"))
    prompts = backbone.prompts("a photo of a {}.", ("cat", "dog", "fern"))
    found = {}
    for rescale in (True, False):
        method = registry.build(MethodConfig(dim=8, scale=ALPHA, rescale=rescale), backbone)
        tensors = {name: t.detach().requires_grad_() for name, t in drawn(method.spec, clients=1).items()}
        images = method.image_features(tensors, method.image_stem(pixels))
        texts = method.text_features(tensors, method.text_stem(prompts))
        loss = method.loss(tensors, images, texts, torch.tensor([[0, 1, 2, 0]]), torch.full((1, 4), 0.25)).sum()
        found[rescale] = dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))
    for name, gradient in found[True].items():
        wanted = found[False][name] / ALPHA
        assert wanted.abs().max() > 0
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()), msg=lambda t, n=name: f"{n}: {t}")


SHAPES = {"private.a": (2, 3), "shared.w": (2, 2), "private.b": (3,), "shared.b": (2,)}


def test_layout_puts_exchanged_tensors_first() -> None:
    layout = Layout(SHAPES, {"shared.w": "mean", "shared.b": "mean"})
    assert list(layout.shapes) == ["shared.w", "shared.b", "private.a", "private.b"]
    assert layout.offsets == {"shared.w": 0, "shared.b": 4, "private.a": 6, "private.b": 12}
    assert (layout.exchanged_size, layout.size) == (6, 15)
    views = layout.views(torch.arange(15.0))
    assert views["shared.w"].tolist() == [[0, 1], [2, 3]]
    assert views["shared.b"].tolist() == [4, 5]
    assert views["private.a"].tolist() == [[6, 7, 8], [9, 10, 11]]
    assert views["private.b"].tolist() == [12, 13, 14]


def test_layout_packs_what_it_views() -> None:
    layout = Layout(SHAPES, {"shared.w": "mean"})
    tensors = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    views = layout.views(layout.pack(tensors))
    assert all(torch.equal(views[name], tensors[name]) for name in SHAPES)
    # Of a stack, each view has the client axis first, and writing to it writes to the stack.
    stack = torch.zeros(4, layout.size)
    layout.views(stack)["private.b"][2] = tensors["private.b"]
    assert torch.equal(layout.views(stack[2])["private.b"], tensors["private.b"])
    assert stack.count_nonzero() == stack[2].count_nonzero() == 3


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(),
        OptimizerConfig(lr=0.1, momentum=0.0, weight_decay=0.0),
        OptimizerConfig(lr=0.1, weight_decay=0.1, clip=0.5),
        OptimizerConfig(name="adam", lr=0.1, weight_decay=0.1),
        OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.1),
        OptimizerConfig(name="adamw", lr=0.1, beta1=0.5, beta2=0.8, eps=1e-3, weight_decay=0.1, clip=2.0),
    ],
    ids=lambda config: f"{config.name}-clip{config.clip}-momentum{config.momentum}",
)
def test_one_stack_is_as_many_torch_optimizers(config: OptimizerConfig) -> None:
    """Step by step, for clients whose gradients differ in size by a factor of ten: clipping acts on some of them alone."""
    generator = rng.generator(0, "optimizer")
    stack = torch.randn(3, 20, generator=generator)
    state = optim.initial_state(config, 3, 20, torch.device("cpu"))
    leaves = [row.clone().requires_grad_() for row in stack]
    common = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.name == "sgd":
        separate = [torch.optim.SGD([leaf], momentum=config.momentum, **common) for leaf in leaves]
    else:
        kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
        separate = [kind([leaf], betas=(config.beta1, config.beta2), eps=config.eps, **common) for leaf in leaves]
    for _ in range(6):
        grads = torch.randn(3, 20, generator=generator) * torch.tensor([[0.01], [0.1], [1.0]])
        optim.step(config, stack, grads, state)
        for client, (leaf, optimizer) in enumerate(zip(leaves, separate, strict=True)):
            leaf.grad = grads[client].clone()
            if config.clip > 0:
                torch.nn.utils.clip_grad_norm_([leaf], config.clip)
            optimizer.step()
            # Six steps of up to 0.1: within some 1e-6 of the way.
            torch.testing.assert_close(stack[client], leaf.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "lion", r"name: 'lion' is not known; choose one of sgd, adam, adamw"),
        ("lr", -1.0, r"lr: must be at least 0, not -1"),
        ("clip", float("nan"), r"clip: must be at least 0, not nan"),
        ("eps", 0.0, r"eps: must be greater than 0, not 0"),
    ],
)
def test_settings_of_an_optimizer_that_cannot_be(field: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**{field: value})
