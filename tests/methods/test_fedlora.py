"""FedLoRA against open_clip models into whose weights B A was merged by hand; dropout against its formula."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import open_clip
import pytest
import torch
from torch import Tensor, nn

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.config.schema import load
from pfedmma.methods import registry
from pfedmma.methods.base import SEEDS
from pfedmma.methods.fedlora import FedLoRA, FedLoRAConfig
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack.layout import Layout
from pfedmma.system.errors import UserError
from tests.support.random_clip import random_clip

NAMES = ("cat", "red_fish", "very long name of a thing", "fern")  # prompts of several lengths
TEMPLATE = "a photo of a {}."
VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
TEXT = {"context_length": 20, "width": 24, "heads": 2, "layers": 3}
VARIANTS: dict[str, tuple[dict, dict]] = {
    "plain": ({}, {}),
    "average pooling": ({"pool_type": "avg"}, {}),  # queries of all tokens in the last block
    "no mask": ({}, {"no_causal_mask": True}),
}


def small_clip(variant: str = "plain") -> nn.Module:
    vision, text = VARIANTS[variant]
    return random_clip(VISION | vision, TEXT | text)


def build(backbone: Backbone, **settings) -> FedLoRA:
    method = registry.build(MethodConfig("fedlora", own=FedLoRAConfig(**settings)), backbone)
    assert isinstance(method, FedLoRA)
    return method


def drawn(method: FedLoRA, clients: int) -> dict[str, Tensor]:
    """Random tensors [C, *shape], B too, another for every name and client, large enough to matter."""
    generator = rng.generator(0, "drawn")
    return {name: (0.3 * torch.randn(clients, *shape, generator=generator)).requires_grad_() for name, shape in method.shapes.items()}


def pixels(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=rng.generator(0, "images"))


def logits(method: FedLoRA, state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """[C * B images, client by client] -> [C,B,K]."""
    texts = method.text_features(state, method.text_stem(method.backbone.prompts(TEMPLATE, NAMES)))
    return method.logits(state, method.image_features(state, method.image_stem(images)), texts)


def open_clip_logits(clip: nn.Module, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """What open_clip answers with ``weights`` in place of its own, over the full context."""
    ids = open_clip.SimpleTokenizer(context_length=clip.context_length)([TEMPLATE.format(name.replace("_", " ")) for name in NAMES])
    image_features, text_features, scale = torch.func.functional_call(clip, dict(weights), (images, ids))
    return scale * image_features @ text_features.T


def merged(clip: nn.Module, own: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """The input projections of every block of one client's model: W + scaling B A, for queries, keys and values."""
    found = {}
    for tower, prefix, blocks in (
        ("visual", "visual.transformer", clip.visual.transformer.resblocks),
        ("text", "transformer", clip.transformer.resblocks),
    ):
        for number, block in enumerate(blocks, start=1):
            added = [own[f"{tower}.{number}.{part}.b"] @ own[f"{tower}.{number}.{part}.a"] for part in "qkv"]
            found[f"{prefix}.resblocks.{number - 1}.attn.in_proj_weight"] = block.attn.in_proj_weight + scaling * torch.cat(added)
    return found


def test_counts_at_vit_b_16() -> None:
    with torch.device("meta"):
        backbone = Backbone.freeze(open_clip.create_model("ViT-B-16", device="meta"), "ViT-B-16")
    method = build(backbone)
    layout = Layout(method.shapes, method.exchange)
    # Twelve blocks a tower, three projections, A and B of rank 2.
    assert layout.size == 12 * 3 * 2 * 2 * (768 + 512) == 184_320
    assert layout.exchanged_size == layout.size and set(layout.columns) == {"mean"}
    assert layout.exchanged_size * torch.float32.itemsize == 737_280  # bytes up, and down, per client and round
    assert method.shapes["visual.12.v.a"] == (2, 768) and method.shapes["text.1.k.b"] == (512, 2)


def test_initial_values(tiny_clip) -> None:
    method = build(Backbone.freeze(tiny_clip))
    tensors, again, other = (method.initial(rng.generator(seed, "init")) for seed in (0, 0, 1))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == method.shapes
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    assert not any(torch.equal(tensors[name], other[name]) for name in tensors if name.endswith(".a"))
    assert all(bool((tensor == 0).all()) for name, tensor in tensors.items() if name.endswith(".b"))
    for tower, width in (("visual", 128), ("text", 64)):
        pool = torch.cat([t.flatten() for n, t in tensors.items() if n.startswith(tower) and n.endswith(".a")])
        assert len(pool.unique()) > 0.99 * len(pool)  # no two projections start alike
        bound = 1.0 / math.sqrt(width)  # sqrt(6 / ((1 + 5) width))
        assert 0.99 * bound < pool.abs().max() <= bound
        # The deviation of n numbers is known to less than 1 / sqrt(2 n) of itself; four times that may happen.
        assert pool.std() == pytest.approx(bound / math.sqrt(3), rel=4.0 / math.sqrt(2 * len(pool)))
    assert all(bool((tensor != 0).any(dim=1).all()) for name, tensor in tensors.items() if name.endswith(".a"))


def test_the_published_optimizer_is_its_default() -> None:
    optimizer = load(overrides=["method.name=fedlora"]).optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamw", 2e-4, 1e-2)
    assert load(overrides=["method.name=fedlora", "optimizer.lr=0.5"]).optimizer.lr == 0.5


def test_training_starts_from_clip_itself(tiny_clip) -> None:
    """B = 0, in training with its dropout, too."""
    method = build(Backbone.freeze(tiny_clip))
    state = {name: tensor.unsqueeze(0) for name, tensor in method.initial(rng.generator(0, "init")).items()}
    wanted = open_clip_logits(tiny_clip, pixels(3), {})
    for seen in (state, state | {SEEDS: torch.tensor([5])}):
        torch.testing.assert_close(logits(method, seen, pixels(3))[0], wanted, rtol=1e-5, atol=1e-4)  # of up to 100


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_are_those_of_merged_weights(variant: str) -> None:
    """Two stacked clients, each with its own tensors and images; tested, so without dropout."""
    clip = small_clip(variant)
    method = build(Backbone.freeze(clip), rank=4, alpha=3.0)
    state = drawn(method, clients=2)
    got = logits(method, state, pixels(2 * 3))
    own = [{name: tensor[client] for name, tensor in state.items()} for client in range(2)]
    wanted = torch.stack([open_clip_logits(clip, pixels(6)[3 * c : 3 * c + 3], merged(clip, own[c], 1.5)) for c in range(2)])
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.detach().abs().max()))
    # The test can fail: clients differ, and from the frozen CLIP.
    assert (got - open_clip_logits(clip, pixels(6), {}).unflatten(0, (2, 3))).abs().amax(dim=(1, 2)).min() > 0.05

    direction = torch.randn(got.shape, generator=rng.generator(0, "direction"))
    gradients = [torch.autograd.grad((x * direction).sum(), list(state.values())) for x in (got, wanted)]
    for name, mine, theirs in zip(state, *gradients, strict=True):
        assert theirs.abs().max() > 1e-5, name
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()), msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize(("rank", "alpha", "wanted"), [(4, 3.0, 144.0), (1, 1.0, 24.0), (16, 1.0, 96.0)])
def test_scaling_is_alpha_over_the_root_of_the_rank(rank: int, alpha: float, wanted: float) -> None:
    """All ones: A x is the width, 24, in each of r places, and B A x is 24 r, times alpha / sqrt(r)."""
    method = build(Backbone.freeze(small_clip()), rank=rank, alpha=alpha)
    state = {name: torch.ones(1, *shape) for name, shape in method.shapes.items()}
    assert (method.low_rank(state, "text.2.k", torch.ones(5, 3, 24)) == wanted).all()


def one_projection(clients: int, dropout: float = 0.25) -> tuple[FedLoRA, dict[str, Tensor], Tensor]:
    """A method, its state in training, and [C*2, 3, 24] that comes to a projection of its text tower."""
    method = build(Backbone.freeze(small_clip()), dropout=dropout)
    seeds = torch.tensor([rng.key(0, "noise", client) for client in range(clients)])
    x = torch.randn(clients * 2, 3, 24, generator=rng.generator(0, "x"), requires_grad=True)
    return method, drawn(method, clients) | {SEEDS: seeds}, x


def test_dropout_acts_in_training_alone() -> None:
    method, state, _ = one_projection(clients=2)
    tested = {name: tensor for name, tensor in state.items() if name != SEEDS}
    without = dataclasses.replace(method, settings=FedLoRAConfig(dropout=0.0))
    wanted = logits(without, tested, pixels(4))
    assert torch.equal(logits(method, tested, pixels(4)), wanted)
    assert torch.equal(logits(without, state, pixels(4)), wanted)
    trained = logits(method, state, pixels(4))
    assert (trained - wanted).abs().amax(dim=(1, 2)).min() > 0.01
    # The same step again draws the same; another step, that is other seeds, draws anew.
    assert torch.equal(logits(method, state, pixels(4)), trained)
    assert not torch.equal(logits(method, state | {SEEDS: state[SEEDS] + 1}, pixels(4)), trained)


def test_dropout_keeps_the_expected_value() -> None:
    """Four thousand clients with the same tensors and the same input, each with its own seed."""
    clients = 4000
    method, state, x = one_projection(clients=1)
    wanted = method.low_rank({name: tensor for name, tensor in state.items() if name != SEEDS}, "text.2.v", x).detach()
    many = {name: tensor.detach().expand(clients, *tensor.shape[1:]) for name, tensor in state.items() if name.startswith("text.2.v")}
    many[SEEDS] = torch.arange(clients)
    got = method.low_rank(many, "text.2.v", x.detach().repeat(clients, 1, 1)).unflatten(0, (clients, 2))
    # The mean of n is off by about its deviation over sqrt(n); five times that may happen among 144 elements.
    assert ((got.mean(dim=0) - wanted).abs() < 5.0 * got.std(dim=0) / math.sqrt(clients)).all()
    # The deviation itself: x_i is x_i / (1 - p) or 0, a variance of x_i^2 p / (1 - p) with p a quarter.
    a, b = many["text.2.v.a"][0], many["text.2.v.b"][0]
    deviation = ((x.detach().square() @ (b @ a / math.sqrt(2)).square().T) / 3).sqrt()
    torch.testing.assert_close(got.std(dim=0), deviation, rtol=0.1, atol=0.0)


def test_gradients_with_a_mask() -> None:
    """y = f B A (m x) / (1 - p), for every client with its own mask; the gradients of sum(g y) by hand."""
    method, state, x = one_projection(clients=2)
    leaves = [x, state["text.1.q.a"], state["text.1.q.b"]]
    y = method.low_rank(state, "text.1.q", x)
    g = torch.randn(y.shape, generator=rng.generator(0, "g"))
    found = torch.autograd.grad((g * y).sum(), leaves)
    factor = 1.0 / math.sqrt(2) / 0.75
    mask = rng.keep_mask(state[SEEDS], "text.1.q", (2, 3, 24), 0.75).float()
    assert 0.5 < mask.mean() < 0.95
    for client in range(2):
        rows = slice(2 * client, 2 * client + 2)
        a, b = (leaf[client].detach() for leaf in leaves[1:])
        kept = (x[rows].detach() * mask[client]).reshape(-1, 24)
        arriving = g[rows].reshape(-1, 24)
        assert_near(y[rows].reshape(-1, 24), factor * kept @ a.T @ b.T)
        assert_near(found[0][rows], factor * mask[client] * (arriving @ b @ a).view(2, 3, 24))
        assert_near(found[1][client], factor * (arriving @ b).T @ kept)
        assert_near(found[2][client], factor * arriving.T @ (kept @ a.T))


def assert_near(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.detach().abs().max()))


def test_each_projection_has_a_mask_of_its_own() -> None:
    """With the same A and B everywhere, what is left out tells the projections apart."""
    method, state, x = one_projection(clients=1)
    same = {name: torch.ones(1, *shape) for name, shape in method.shapes.items()} | {SEEDS: state[SEEDS]}
    names = [name for name, width in method.projections() if width == 24]
    assert names == [f"text.{block}.{part}" for block in (1, 2, 3) for part in "qkv"]
    outputs = [method.low_rank(same, name, x) for name in names]
    for i, one in enumerate(outputs):
        assert all(bool((one != other).any()) for other in outputs[:i])


def test_the_towers_ask_for_every_mask_once(monkeypatch) -> None:
    """Each projection under its own name, for all tokens; in the last block, queries of the pooled token alone."""
    asked = []
    real = rng.keep_mask

    def spy(seeds: Tensor, place: str, shape: tuple[int, ...], share: float) -> Tensor:
        asked.append((place, tuple(shape)))
        return real(seeds, place, shape, share)

    monkeypatch.setattr(rng, "keep_mask", spy)
    method, state, _ = one_projection(clients=2)
    logits(method, state, pixels(2 * 3))
    assert sorted(place for place, _ in asked) == sorted(name for name, _ in method.projections())
    shapes = dict(asked)
    assert shapes["visual.1.q"] == shapes["visual.2.v"] == (3, 17, 32) and shapes["visual.2.q"] == (3, 1, 32)
    assert shapes["text.2.q"] == shapes["text.3.k"] == (4, 13, 24) and shapes["text.3.q"] == (4, 1, 24)


def test_a_client_trains_alone_as_in_a_stack() -> None:
    """Also in another place of the stack, and with its batch of 3 images padded to 8."""
    method, state, _ = one_projection(clients=3)
    images = pixels(3 * 8).unflatten(0, (3, 8))
    together = logits(method, state, images.flatten(0, 1))
    backwards = logits(method, {name: tensor.flip(0) for name, tensor in state.items()}, images.flip(0).flatten(0, 1))
    torch.testing.assert_close(backwards.flip(0), together, rtol=1e-5, atol=1e-4)
    for client in range(3):
        own = {name: tensor[client : client + 1] for name, tensor in state.items()}
        alone = logits(method, own, images[client, :3])
        torch.testing.assert_close(alone[0], together[client, :3], rtol=1e-5, atol=1e-4)  # of up to 14


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"^rank: must be at least 1, not 0$"),
        ({"alpha": -1.0}, r"^alpha: must be at least 0, not -1$"),
        ({"dropout": 1.0}, r"^dropout: must be at least 0 and less than 1, not 1$"),
        ({"dropout": float("nan")}, r"^dropout: must be at least 0 and less than 1, not nan$"),
    ],
)
def test_settings_that_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FedLoRAConfig(**settings)
