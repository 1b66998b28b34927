"""Class prompts that go through the text tower in parts, some of them twice, give what they give together."""

from __future__ import annotations

import copy
import itertools
from collections import Counter

import open_clip
import pytest
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor, nn

from pfedmma import rng
from pfedmma.clip import prompt_stem
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.prompt_stem import MOST_PARTS, Part, PromptStem, lengths_of_parts
from pfedmma.clip.stems import TowerStem
from pfedmma.data.sources.base import GENERIC_TEMPLATE
from pfedmma.methods import registry
from pfedmma.methods.base import SEEDS, Method
from pfedmma.methods.registry import NAMES, MethodConfig

# Prompts of 8, 9 and more tokens, no two neighbours alike, so that parts are not runs of classes.
CLASSES = ("cat", "red_fish", "fern", "thing of a very long name", "blue_bird", "old_oak_tree", "dog", "a_b_c_d_e")
CLIENTS = 3


@pytest.fixture
def parts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let parts pay from the first token on."""
    monkeypatch.setattr(prompt_stem, "LEAST_SAVED", 0)


# Which parts -----------------------------------------------------------------------------------------------------------------------------


def cost(lengths: list[int], parts: tuple[int, ...]) -> int:
    """All tokens where each prompt goes to the least part that takes it."""
    return sum(min(part for part in parts if part >= length) for length in lengths)


@pytest.mark.parametrize("saved", [0, 3, 20])
def test_the_parts_are_the_best_of_all(monkeypatch: pytest.MonkeyPatch, saved: int) -> None:
    monkeypatch.setattr(prompt_stem, "LEAST_SAVED", saved)
    several = 0
    for number in range(60):
        lengths = torch.randint(3, 12, (1 + number % 14,), generator=rng.generator(0, "lengths", number)).tolist()
        distinct = sorted(set(lengths))
        ways = [way for m in range(1, MOST_PARTS + 1) for way in itertools.combinations(distinct, m) if way[-1] == distinct[-1]]
        found = lengths_of_parts(lengths)
        assert cost(lengths, tuple(found)) + saved * len(found) == min(cost(lengths, way) + saved * len(way) for way in ways)
        assert found == sorted(set(found)) and len(found) <= MOST_PARTS
        several += len(found) > 1
    assert several > 10


def test_parts_of_a_few_lengths() -> None:
    """A part must save 256 tokens: 300 prompts of 8 tokens beside one of 9 save 300, 250 of them 250."""
    assert lengths_of_parts([8] * 300 + [9]) == [8, 9]
    assert lengths_of_parts([8] * 250 + [9]) == [9]
    assert lengths_of_parts([8] * 1000 + [12] * 1000 + [20] * 1000 + [30]) == [12, 20, 30]  # a fourth one would save 4,000 tokens more
    assert lengths_of_parts([7]) == [7]


def test_imagenets_base_classes_are_three_parts() -> None:
    """Of the tokens of one length, 56 % are left; without any padding it would be 52 %."""
    names = [name.replace("_", " ") for name in IMAGENET_CLASSNAMES[:500]]
    tokens = open_clip.SimpleTokenizer()([GENERIC_TEMPLATE.format(name) for name in names])
    lengths = (tokens.argmax(dim=1) + 1).tolist()
    assert (max(lengths), 500 * max(lengths), sum(lengths)) == (18, 9000, 4706)
    assert lengths_of_parts(lengths) == [9, 11, 18] and cost(lengths, (9, 11, 18)) == 5075


def test_few_classes_stay_together(tiny_clip: nn.Module) -> None:
    frozen = Backbone.freeze(tiny_clip)
    (part,) = frozen.text_stem(frozen.prompts(GENERIC_TEMPLATE, CLASSES), 2).parts
    assert part.classes.tolist() == list(range(len(CLASSES)))


# The same results ------------------------------------------------------------------------------------------------------------------------


class Pass:
    """What a training step makes of class prompts: features, their gradients, and how much was kept in between."""

    def __init__(self, clip: nn.Module, name: str, precision: str = "fp32", keeps: float = float("inf")) -> None:
        self.method = self.method_of(clip, name, precision, keeps)
        self.stem = self.method.text_stem(self.method.backbone.prompts(GENERIC_TEMPLATE, CLASSES))
        state = self.state(self.method)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with self.method.backbone.autocast(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.features = self.method.text_features(state, self.stem)
        self.kept = sum(kept.values())
        leaves = [tensor for tensor in state.values() if tensor.requires_grad]
        direction = torch.randn(self.features.shape, generator=rng.generator(0, "direction"))
        wanted = self.features.requires_grad
        self.gradients = torch.autograd.grad((self.features * direction).sum(), leaves, allow_unused=True) if wanted else ()
        self.features = self.features.detach()

    @staticmethod
    def method_of(clip: nn.Module, name: str, precision: str, keeps: float) -> Method:
        frozen = Backbone.freeze(clip, "tiny", precision, text_gb=keeps)
        return registry.build(MethodConfig(name=name, dim=8, scale=0.3, activation="gelu", blocks=2), frozen)

    @staticmethod
    def state(method: Method) -> dict[str, Tensor]:
        """Of clients that differ, in training."""
        states = []
        for client in range(CLIENTS):
            generator = rng.generator(0, "state", client)
            start = method.initial(generator)
            states.append({name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in start.items()})
        state = {name: torch.stack([own[name] for own in states]).requires_grad_() for name in states[0]}
        return {**state, SEEDS: torch.arange(CLIENTS) + 5}

    def assert_same(self, other: Pass, tolerance: float = 1e-5) -> None:
        near(self.features, other.features, tolerance)
        assert len(self.gradients) == len(other.gradients)
        rounding = 1e-6 * max((float(theirs.abs().max()) for theirs in other.gradients if theirs is not None), default=0.0)
        for mine, theirs in zip(self.gradients, other.gradients, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                near(mine, theirs, tolerance, rounding)


def near(got: Tensor, wanted: Tensor, tolerance: float, rounding: float = 0.0) -> None:
    """``rounding``: of numbers that should be 0, as the gradient of a bias that all scores of a softmax have in common."""
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=max(rounding, tolerance * float(wanted.abs().max())))


@pytest.mark.parametrize("name", NAMES)
def test_parts_change_no_result(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Features in the classes' order, and gradients, of every method; dropout leaves out the same numbers."""
    together = Pass(tiny_clip, name)
    monkeypatch.setattr(prompt_stem, "LEAST_SAVED", 0)
    parted = Pass(tiny_clip, name)
    if name not in ("zeroshot", "fedclip", "clipadapter"):  # those keep finished features
        stem = getattr(parted.stem, "context", parted.stem)
        assert len(stem.parts) == MOST_PARTS and [len(getattr(together.stem, "context", together.stem).parts)] == [1]
        assert any(gradient is not None and gradient.abs().max() > 1e-4 for gradient in together.gradients)
    parted.assert_same(together)
    assert (together.features[..., 0, :] - together.features[..., 1, :]).abs().max() > 1e-3  # another order would be seen


@pytest.mark.parametrize("several", [False, True], ids=["one part", "parts"])
@pytest.mark.parametrize("name", ["pfedmma", "promptfl", "fedmaple", "fedmgp", "fedlora", "fedotp", "fedpgp"])
def test_a_pass_that_is_computed_again_changes_no_result(
    tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch, name: str, several: bool
) -> None:
    """Room for half of what is kept: less is, and gradients are the same."""
    if several:
        monkeypatch.setattr(prompt_stem, "LEAST_SAVED", 0)
    whole = Pass(tiny_clip, name)
    stem = getattr(whole.stem, "context", whole.stem)
    tower = whole.method.backbone.text
    passes = whole.features.numel() // (CLIENTS * len(CLASSES) * tower.projection.shape[1])  # two where there are two prompts
    estimate = CLIENTS * passes * stem.tokens * (tower.depth - stem.blocks) * tower.block_keeps
    parted = Pass(tiny_clip, name, keeps=0.5e-9 * estimate)
    parted.assert_same(whole)
    assert parted.kept < 0.75 * whole.kept


def test_computed_again_in_bf16(tiny_clip: nn.Module) -> None:
    """In the mixed precision of the first time: far nearer to it than bf16 is to fp32."""
    whole, parted, exact = Pass(tiny_clip, "pfedmma", "bf16"), Pass(tiny_clip, "pfedmma", "bf16", keeps=1e-6), Pass(tiny_clip, "pfedmma")
    parted.assert_same(whole, 0.02)
    assert parted.kept < 0.75 * whole.kept
    assert (whole.features - exact.features).abs().max() > 0


@pytest.mark.parametrize("quick", [False, True])
def test_the_estimate_of_what_is_kept(tiny_clip: nn.Module, quick: bool) -> None:
    """Of adapters on CLIP's own activation, within a third; a plain GELU keeps less."""
    if quick:
        tiny_clip = copy.deepcopy(tiny_clip)
        for block in (*tiny_clip.visual.transformer.resblocks, *tiny_clip.transformer.resblocks):
            block.mlp.gelu = open_clip.transformer.QuickGELU()
    found = Pass(tiny_clip, "pfedmma")
    tower, stem = found.method.backbone.text, found.stem
    estimate = CLIENTS * stem.tokens * (tower.depth - stem.blocks) * tower.block_keeps
    assert 0.5 < found.kept / estimate < 1.35


# What may stay ---------------------------------------------------------------------------------------------------------------------------


def stem_of(*shapes: tuple[int, int]) -> PromptStem:
    """Of parts with so many prompts of so many tokens, the classes dealt backwards."""
    total = sum(count for count, _ in shapes)
    classes = torch.arange(total).flip(0).split([count for count, _ in shapes])
    stems = []
    for own, (_, tokens) in zip(classes, shapes, strict=True):
        stems.append(TowerStem(own[:, None, None].expand(-1, tokens, 2).float(), None, own, 0))
    return PromptStem.from_parts(stems, classes)


def planned(stem: PromptStem, limit: float) -> list[tuple[int, bool]]:
    """(prompts of a part, whether it stays) at one byte a token."""
    return [(len(part.classes), stays) for part, stays in stem.planned(1.0, limit)]


def test_what_fits_stays() -> None:
    stem = stem_of((6, 2), (2, 4))  # 12 + 8 tokens
    assert planned(stem, 20) == [(6, True), (2, True)]
    assert planned(stem.repeat(3), 60) == [(6, True), (2, True)]
    # Pieces of 16 / 4 bytes; 12 stay, beside one that is made again.
    assert planned(stem, 16) == [(2, True), (2, True), (2, True), (1, False), (1, False)]
    assert planned(stem.repeat(3), 48) == planned(stem, 16)
    assert planned(stem, 1e-3) == [(1, False)] * 8  # never less than a prompt


def test_pieces_are_in_order() -> None:
    """Each piece has its own classes, and the result is client by client in the classes' order."""
    stem = stem_of((3, 2), (4, 5)).repeat(2)
    for limit in (100.0, 8.0):
        pieces = [part for part, _ in stem.planned(1.0, limit)]
        assert [number for part in pieces for number in part.classes.tolist()] == [6, 5, 4, 3, 2, 1, 0]
        assert all(torch.equal(part.stem.output[:, 0, 0], part.classes.float()) for part in pieces)
        outputs = [torch.stack([part.classes, part.classes + 10]).flatten()[:, None, None] for part in pieces]
        assert stem.in_order(outputs).flatten().tolist() == [*range(7), *range(10, 17)]
    assert max(len(part.classes) for part in pieces) < 4


def test_in_one_part_nothing_is_copied_or_put_in_order() -> None:
    stem = PromptStem.from_parts([TowerStem(torch.ones(2, 3, 4), None, None, 0)], [torch.arange(2)])
    output = torch.ones(4, 1, 4)
    assert stem.order is None and stem.repeat(2).in_order([output]) is output and stem.repeat(2).parts is stem.parts


def test_a_prompt_is_in_one_part_alone(tiny_clip: nn.Module, parts_at_once: None) -> None:
    frozen = Backbone.freeze(tiny_clip)
    tokens = frozen.prompts(GENERIC_TEMPLATE, CLASSES).tokens
    found = frozen.text.parts(tokens)
    assert Counter(number for rows, _ in found for number in rows.tolist()) == Counter(range(len(CLASSES)))
    for rows, own in found:
        assert own.shape[1] == max(frozen.text.lengths(tokens[rows])) and torch.equal(own, tokens[rows, : own.shape[1]])


def test_what_is_not_learned_from_is_computed_once(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Testing keeps nothing for gradients, so it goes through at once whatever room there is."""
    method = Pass.method_of(tiny_clip, "pfedmma", "fp32", 1e-12)
    stem = method.text_stem(method.backbone.prompts(GENERIC_TEMPLATE, CLASSES))
    seen: list[int] = []
    plain = PromptStem.in_order
    monkeypatch.setattr(PromptStem, "in_order", lambda self, outputs: seen.append(len(outputs)) or plain(self, outputs))
    state = Pass.state(method)
    with torch.no_grad():
        tested = method.text_features(state, stem)
    trained = method.text_features(state, stem)
    assert seen == [1, len(CLASSES)]
    near(trained, tested, 1e-5)


def test_a_part_is_cut_into_equal_pieces() -> None:
    part = Part(TowerStem(torch.arange(10.0)[:, None, None], None, None, 0), torch.arange(10))
    assert [piece.classes.tolist() for piece in part.split(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(list(part.split(99))) == 10 and part.tokens == 10
