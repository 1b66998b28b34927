"""The operations that the benchmarks count by formula are those that local training and evaluation execute."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pfedmma.clip import towers
from pfedmma.data.partition.federated import Client
from pfedmma.data.sources.base import GENERIC_TEMPLATE
from pfedmma.engine.batches import Batch
from pfedmma.engine.local import LocalTraining
from pfedmma.methods.pfedmma import MultiModalAdapters
from pfedmma.stack.optim import LossScale
from tests.support.stacks import NAMES, gathered, in_turn, new_evaluator, new_members, new_method, new_training

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import arithmetic
from arithmetic import TowerShape
from operators import ATTENTION, record

CLIENTS, IMAGES = 3, 4
# Counted by hand below: 2 blocks, the upper one adapted alone or both.
SMALL = TowerShape(tokens=3, width=4, hidden=16, depth=2, embedding=5, frozen=1, dim=2, patch=12)


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention by its two products, where the engine calls a fused kernel."""
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril() if causal else mask
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores if seen is None else scores.masked_fill(~seen, -torch.inf)).softmax(dim=-1) @ v


def counted(work: Callable[[], object]) -> int:
    """The operations of the matrix products that ``work`` executes, those of attention among them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(towers, "attention", written_out)
        found = record(work)
    assert not [each.name for each in found if each.group == ATTENTION], "an operator hides its products"
    return sum(each.flops for each in found)


def test_written_out_attention_is_the_engines() -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind(0)
    mask = torch.rand(2, 1, 1, 5) < 0.7
    mask[..., 0] = True
    for seen, causal in ((None, False), (None, True), (mask, False)):
        torch.testing.assert_close(written_out(q, k, v, seen, causal), towers.attention(q, k, v, seen, causal))


def shapes(method: MultiModalAdapters, names: tuple[str, ...] = NAMES) -> tuple[TowerShape, TowerShape]:
    return arithmetic.towers(method.backbone, method.spec, method.backbone.prompts(GENERIC_TEMPLATE, names))


def one_step(training: LocalTraining) -> Callable[[], object]:
    members, size = new_members(training.method, trained=range(CLIENTS)), training.method.backbone.preprocess.size
    ids = range(CLIENTS)
    labels = torch.arange(IMAGES).expand(CLIENTS, -1)
    batch = Batch(torch.randn(CLIENTS * IMAGES, 3, size, size), labels, torch.full(labels.shape, 1 / IMAGES), torch.arange(CLIENTS))
    scale = LossScale(CLIENTS, torch.device("cpu"), enabled=False)
    return lambda: training.step(gathered(members, ids), members.states.gather_optimizer(ids), {}, batch, scale)


@pytest.mark.parametrize("towers", ["both", "visual", "text"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_training_step_executes_what_is_counted(tiny_clip, blocks: int, towers: str) -> None:
    training = new_training(new_method(tiny_clip, dim=8, blocks=blocks, towers=towers))
    visual, text = shapes(training.method)
    expected = sum(arithmetic.training_step(visual, text, CLIENTS, IMAGES, len(NAMES)).values())
    assert counted(one_step(training)) == expected


@pytest.mark.parametrize("name", arithmetic.TowerShape.__annotations__)
def test_every_part_of_a_shape_is_counted(tiny_clip, name: str) -> None:
    """So that the equality above can fail through each of them."""
    visual, text = shapes(new_method(tiny_clip, dim=8, blocks=3))
    value = getattr(visual, name)
    changed = dataclasses.replace(visual, **{name: not value if isinstance(value, bool) else value + 1})
    first, second = (sum(arithmetic.training_step(v, text, CLIENTS, IMAGES, len(NAMES)).values()) for v in (visual, changed))
    assert first != second


@pytest.mark.parametrize("name", ["visual", "text"])
def test_each_tower_executes_what_is_counted(tiny_clip, name: str) -> None:
    """The stem; from there to the features; and the way back."""
    method = new_method(tiny_clip, dim=8, blocks=3)
    backbone, shape = method.backbone, shapes(method)[name == "text"]
    state = {n: t.requires_grad_() for n, t in new_members(method).answers().tensors([0]).items()}
    found: dict[str, object] = {}

    def stem() -> None:
        if name == "visual":
            found["stem"] = method.image_stem(torch.randn(IMAGES, 3, backbone.preprocess.size, backbone.preprocess.size))
        else:
            found["stem"] = method.text_stem(backbone.prompts(GENERIC_TEMPLATE, NAMES))

    def features() -> None:
        found["features"] = (method.image_features if name == "visual" else method.text_features)(state, found["stem"])

    count = IMAGES if name == "visual" else len(NAMES)
    assert counted(stem) == count * arithmetic.below(shape)
    assert counted(features) == count * arithmetic.forward(shape)
    assert counted(lambda: found["features"].sum().backward()) == count * arithmetic.backward(shape)


def test_evaluation_executes_what_is_counted(tiny_clip) -> None:
    """The blocks below the first adapter once for all clients, in groups too; the text tower once a client and set of classes."""
    method = new_method(tiny_clip, dim=8, blocks=3)
    nothing = torch.empty(0, dtype=torch.long)
    clients = [Client(i, (), nothing, nothing, torch.arange(2)) for i in range(CLIENTS)]
    answers = new_members(method, trained=range(CLIENTS)).answers()  # clients that never trained would be tested as one
    base, novel = in_turn(6), torch.arange(5) % 2
    for clients_per_pass in (1, CLIENTS):
        evaluator = new_evaluator(method, clients, base, novel, 12, clients_per_pass)
        expected = 0
        for images in (evaluator.federated.base, evaluator.federated.novel):
            counts = len(images.indices), len(images.classes)
            expected += sum(arithmetic.evaluation(*shapes(method, images.classes), CLIENTS, *counts).values())
        assert counted(lambda evaluator=evaluator: evaluator.table(method, answers, clients)) == expected


def test_a_block_by_hand() -> None:
    """[3,4] @ [4,4] is 96 operations, [3,4] @ [4,16] is 384; with one token kept a third of that."""
    full = dataclasses.replace(SMALL, pooled=False)
    assert arithmetic.block_linear(full, 2) == 4 * 96 + 2 * 384
    assert arithmetic.block_attention(full, 2) == 2 * (2 * 3 * 3 * 4)
    assert arithmetic.block_linear(SMALL, 2) == 2 * 96 + 2 * 32 + 2 * 128
    assert arithmetic.block_attention(SMALL, 2) == 2 * (2 * 1 * 3 * 4)
    assert arithmetic.block_backward(SMALL, 2) == (2 * 96 + 2 * 32 + 2 * 128) + 4 * (2 * 1 * 3 * 4)
    # The patch embedding of two patches, and block 1 with all its tokens.
    assert arithmetic.below(SMALL) == 2 * 2 * 12 * 4 + (4 * 96 + 2 * 384) + 2 * (2 * 3 * 3 * 4)


def test_adapters_by_hand() -> None:
    """Down and Up of three tokens are 48 operations each, S 24; the lowest Down has a gradient of its weights alone."""
    assert arithmetic.adapter_forward(SMALL, 1) == 48 + 24 + 48
    assert arithmetic.adapter_backward(SMALL, 1) == 48 + 2 * 24 + 2 * 48
    assert arithmetic.adapter_forward(SMALL, 2) == 16 + 8 + 16
    assert arithmetic.adapter_backward(SMALL, 2) == 2 * (16 + 8 + 16)


def test_twice_the_clients_are_twice_the_work_and_the_stem_of_an_evaluation_is_not() -> None:
    text = dataclasses.replace(SMALL, patch=0)
    one, two = (arithmetic.training_step(SMALL, text, clients, 4, 5) for clients in (1, 2))
    assert two == {name: 2 * count for name, count in one.items()}
    one, two = (arithmetic.evaluation(SMALL, text, clients, 6, 3) for clients in (1, 2))
    assert two == {name: count * (1 if name.endswith("below") else 2) for name, count in one.items()}
