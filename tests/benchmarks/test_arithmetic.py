"""The operations that the benchmarks count by formula are those that local training and evaluation execute."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pfedmma import rng
from pfedmma.accuracy.evaluator import Evaluator
from pfedmma.clip import towers
from pfedmma.clip.backbone import Backbone
from pfedmma.data.partition.federated import Client, EvaluationSet, FederatedData
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import GENERIC_TEMPLATE, Source
from pfedmma.engine.batches import Batch, LocalWork
from pfedmma.engine.local import Trainer
from pfedmma.methods import registry
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack.client_state import ClientStore
from pfedmma.stack.layout import Layout
from pfedmma.stack.optim import LossScale
from tests.support.stacks import NAMES, SGD, noise

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import arithmetic
from arithmetic import TowerShape

CLIENTS, IMAGES = 3, 4
# Counted by hand below: 2 blocks, the upper one adapted alone or both.
SMALL = TowerShape(tokens=3, width=4, hidden=16, depth=2, embedding=5, frozen=1, dim=2, patch=12)


class MatrixProducts(TorchDispatchMode):
    """Counts the matrix products that are executed, two operations a multiply-add, from the shapes that come to each.

    torch has a counter of its own, whose rules for attention and convolution differ between its versions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        name = func.overloadpacket.__name__
        assert "attention" not in name, f"{name} hides its products"
        if name in ("mm", "bmm"):
            self.operations += 2 * result.numel() * args[0].shape[-1]
        elif name in ("addmm", "baddbmm"):
            self.operations += 2 * result.numel() * args[1].shape[-1]
        elif name == "convolution":
            self.operations += 2 * result.numel() * args[1][0].numel()
        return result


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention by its two products, where the engine calls a fused kernel."""
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril() if causal else mask
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores if seen is None else scores.masked_fill(~seen, -torch.inf)).softmax(dim=-1) @ v


def counted(work: Callable[[], object]) -> int:
    """The operations of the matrix products that ``work`` executes, those of attention among them."""
    with pytest.MonkeyPatch.context() as patch, MatrixProducts() as counter:
        patch.setattr(towers, "attention", written_out)
        work()
    return counter.operations


def test_written_out_attention_is_the_engines() -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind(0)
    mask = torch.rand(2, 1, 1, 5) < 0.7
    mask[..., 0] = True
    for seen, causal in ((None, False), (None, True), (mask, False)):
        torch.testing.assert_close(written_out(q, k, v, seen, causal), towers.attention(q, k, v, seen, causal))


def new_trainer(clip, **options) -> Trainer:
    backbone = Backbone.freeze(clip, "tiny")
    method = registry.build(MethodConfig(dim=8, **options), backbone)
    pixels = Pixels(noise(), backbone.preprocess, "none", backbone.device)
    text_stem = method.text_stem(backbone.prompts(GENERIC_TEMPLATE, NAMES))
    return Trainer(backbone, method, Layout(method.shapes, method.exchange), pixels, text_stem, LocalWork(1, IMAGES, SGD, seed=0))


def shapes(trainer: Trainer, names: tuple[str, ...] = NAMES) -> tuple[TowerShape, TowerShape]:
    return arithmetic.towers(trainer.backbone, trainer.method.spec, trainer.backbone.prompts(GENERIC_TEMPLATE, names))


def new_store(trainer: Trainer) -> ClientStore:
    initial = trainer.layout.pack(trainer.method.initial(rng.generator(0, "state")))
    return ClientStore(trainer.layout, initial, trainer.work.optimizer, torch.device("cpu"))


def one_step(trainer: Trainer) -> Callable[[], object]:
    store, size = new_store(trainer), trainer.backbone.preprocess.size
    ids = range(CLIENTS)
    labels = torch.arange(IMAGES).expand(CLIENTS, -1)
    batch = Batch(torch.randn(CLIENTS * IMAGES, 3, size, size), labels, torch.full(labels.shape, 1 / IMAGES), torch.arange(CLIENTS))
    scale = LossScale(CLIENTS, torch.device("cpu"), enabled=False)
    return lambda: trainer.step(store.gather(ids), store.gather_optimizer(ids), {}, batch, scale)


@pytest.mark.parametrize("towers", ["both", "visual", "text"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_training_step_executes_what_is_counted(tiny_clip, blocks: int, towers: str) -> None:
    trainer = new_trainer(tiny_clip, blocks=blocks, towers=towers)
    visual, text = shapes(trainer)
    expected = sum(arithmetic.training_step(visual, text, CLIENTS, IMAGES, len(NAMES)).values())
    assert counted(one_step(trainer)) == expected


@pytest.mark.parametrize("name", arithmetic.TowerShape.__annotations__)
def test_every_part_of_a_shape_is_counted(tiny_clip, name: str) -> None:
    """So that the equality above can fail through each of them."""
    visual, text = shapes(new_trainer(tiny_clip, blocks=3))
    value = getattr(visual, name)
    changed = dataclasses.replace(visual, **{name: not value if isinstance(value, bool) else value + 1})
    first, second = (sum(arithmetic.training_step(v, text, CLIENTS, IMAGES, len(NAMES)).values()) for v in (visual, changed))
    assert first != second


@pytest.mark.parametrize("name", ["visual", "text"])
def test_each_tower_executes_what_is_counted(tiny_clip, name: str) -> None:
    """The stem; from there to the features; and the way back."""
    trainer = new_trainer(tiny_clip, blocks=3)
    method, backbone, shape = trainer.method, trainer.backbone, shapes(trainer)[name == "text"]
    state = {n: t.requires_grad_() for n, t in trainer.layout.views(new_store(trainer).gather(range(1))).items()}
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
    trainer = new_trainer(tiny_clip, blocks=3)
    source = noise()
    source = Source(source.name, NAMES, source.splits | {"test": source.splits["train"]})
    nothing = torch.empty(0, dtype=torch.long)
    clients = tuple(Client(i, (), nothing, nothing, torch.arange(2)) for i in range(CLIENTS))
    base = EvaluationSet("test", NAMES[:3], torch.arange(6), torch.arange(6) % 3)
    novel = EvaluationSet("test", NAMES[3:], torch.arange(6, 11), torch.arange(5) % 2)
    federation = FederatedData(clients, base, novel, GENERIC_TEMPLATE)
    store = new_store(trainer)
    store.scatter(range(CLIENTS), store.gather(range(CLIENTS)))  # clients that never trained would be tested as one
    expected = 0
    for images in (base, novel):
        counts = len(images.indices), len(images.classes)
        expected += sum(arithmetic.evaluation(*shapes(trainer, images.classes), CLIENTS, *counts).values())
    for clients_per_pass in (1, CLIENTS):
        pixels = Pixels(source, trainer.backbone.preprocess, "none", torch.device("cpu"))
        evaluator = Evaluator(trainer.backbone, federation, pixels, 12, clients_per_pass)
        assert counted(lambda evaluator=evaluator: evaluator.table(trainer.method, store, clients)) == expected


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
