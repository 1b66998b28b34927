"""Training passes through torch.compile: the same losses and gradients, few compilations, and plain passes where it fails.

Compiling takes long, so most of it is done by the backend that only traces, with a CLIP of one block.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfedmma import rng
from pfedmma.clip import prompt_stem
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.preprocess import Preprocess
from pfedmma.clip.stems import Features, Stem
from pfedmma.comm.world import World
from pfedmma.config import schema
from pfedmma.data import loading as data
from pfedmma.data.sources.base import GENERIC_TEMPLATE
from pfedmma.methods import compiled, registry
from pfedmma.methods.base import SEEDS, Method, cross_entropy
from pfedmma.methods.compiled import Compiled
from pfedmma.methods.forward import Forward
from pfedmma.methods.registry import MethodConfig
from pfedmma.run.assembly import assemble, steps_of_round
from tests.support import small, stacks
from tests.support.random_clip import random_clip

BATCH = 4
Batch = tuple[Stem | Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """torch keeps what it has compiled with the function, beyond a run."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def clip() -> nn.Module:
    both = {"layers": 1, "width": 32}
    return random_clip(both | {"image_size": 32, "patch_size": 16, "head_width": 16}, both | {"heads": 2, "context_length": 24})


def state_of(method: Method, clients: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    """A drawn state of so many clients, and those of its tensors that take a gradient."""
    params = torch.stack([stacks.drawn_state(method, client) for client in range(clients)])
    leaves = {name: view.clone().requires_grad_() for name, view in method.layout.views(params).items()}
    return leaves | {SEEDS: torch.arange(clients)}, list(leaves.values())


def batch_of(clients: int, count: int, size: int = 32) -> Batch:
    """``count`` images of each client; the last of the last client is padding."""
    generator = rng.generator(0, "compiled")
    images = torch.randn(clients * count, 3, size, size, generator=generator)
    weights = torch.ones(clients, count)
    weights[-1, 1:][-1:] = 0.0
    return images, torch.arange(clients * count).view(clients, -1) % len(stacks.NAMES), weights / weights.sum(dim=1, keepdim=True)


def both(forward: Forward, used: Compiled, clients: int, count: int) -> None:
    """Losses and gradients are those of the plain path, to 1e-5 of the largest."""
    state, leaves = state_of(forward.method, clients)
    batch = batch_of(clients, count)
    found = [dataclasses.replace(forward, compiled=way).gradients(state, leaves, batch, torch.clone) for way in (used, None)]
    for got, wanted in zip(*found, strict=True):
        assert got is not None and wanted is not None
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pfedmma", {"dim": 4, "scale": 0.3, "activation": "gelu"}),  # adapters, with a gradient of their own
        pytest.param("fedlora", {}, marks=pytest.mark.slow),  # masks that follow from hashes
        ("fedclip", {}),  # images beside images
    ],
)
def test_a_method_is_traced_whole_and_computes_the_same(name: str, settings: dict[str, Any]) -> None:
    """With 3 of 4 images, which are filled up."""
    method = stacks.new_method(clip(), name=name, **settings)
    used = Compiled(BATCH, "aot_eager", told := [].append)
    both(Forward.from_prompts(method, GENERIC_TEMPLATE, stacks.NAMES), used, 2, 3)
    assert used.count == 1 and not used.failed and told


def test_class_prompts_in_parts_are_one_compilation_for_any_number_of_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound on what they keep, too, which depends on that number."""
    monkeypatch.setattr(prompt_stem, "LEAST_SAVED", 0)
    wide = {"layers": 2, "width": 32}
    two = random_clip(wide | {"image_size": 32, "patch_size": 16, "head_width": 16}, wide | {"heads": 2, "context_length": 24})
    config = MethodConfig(dim=4, scale=0.3, activation="gelu", blocks=1)
    method = registry.build(config, Backbone.freeze(two, text_gb=16.0))
    forward = Forward.from_prompts(method, GENERIC_TEMPLATE, stacks.NAMES)
    assert len(forward.text_stem.parts) > 1
    used = Compiled(BATCH, "eager", [].append)
    for clients in (3, 2):
        both(forward, used, clients, 4)
    assert used.count == 1 and not used.failed


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on a CPU")
def test_inductor_computes_the_same() -> None:
    """The backend of runs."""
    method = stacks.new_method(clip(), name="pfedmma", dim=4, scale=0.3, activation="gelu")
    used = Compiled(BATCH)
    both(Forward.from_prompts(method, GENERIC_TEMPLATE, stacks.NAMES), used, 2, 4)
    assert used.count == 1 and not used.failed


@dataclass(frozen=True)
class Linear(Method):
    """Logits that are linear in an image's mean colour: compiled within a second."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (3, len(stacks.NAMES))}

    def image_stem(self, pixels: Tensor) -> Stem:
        return Features(pixels.mean(dim=(2, 3)))

    def text_stem(self, prompts: Any) -> Stem:
        return Features(torch.zeros(1))

    def image_features(self, state: Any, stem: Any) -> Tensor:
        return torch.bmm(stem.value.unflatten(0, (len(state["weight"]), -1)), state["weight"])

    def text_features(self, state: Any, stem: Any) -> Tensor:
        return stem.value

    def loss(self, state: Any, images: Tensor, texts: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return cross_entropy(images, labels, weights)


@pytest.fixture
def linear(tiny_clip: nn.Module) -> Forward:
    return Forward.from_prompts(Linear(stacks.new_method(tiny_clip).backbone), GENERIC_TEMPLATE, stacks.NAMES)


def test_any_number_of_clients_and_batches_of_a_half_are_one_compilation_each(linear: Forward) -> None:
    told: list[str] = []
    used = Compiled(8, "eager", told.append)
    for clients, count in ((3, 8), (2, 8), (4, 5), (2, 4), (3, 1), (1, 8), (1, 7), (1, 3)):
        both(linear, used, clients, count)
    assert used.count == len(told) == compiled.MOST
    whole, half = "batches of 8 in ", "batches of 4 in "
    kinds = [f"any number of clients, {whole}", f"any number of clients, {half}", f"one client, {whole}", f"one client, {half}"]
    for line, kind in zip(told, kinds, strict=True):
        assert line.startswith(f"compiled the training pass for {kind}") and line.endswith(" s")


def test_after_the_most_compilations_passes_are_plain(
    linear: Forward, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiled, "MOST", 1)
    used = Compiled(BATCH, "eager", (told := []).append)
    for clients, count in ((2, 4), (1, 4), (2, 2), (3, 4)):
        both(linear, used, clients, count)
    assert used.count == len(told) == 1 and not used.failed and capsys.readouterr().err == ""


def test_what_fails_is_said_once_and_done_plainly(linear: Forward, capsys: pytest.CaptureFixture[str]) -> None:
    used = Compiled(BATCH, "no such backend")
    for _ in range(2):
        both(linear, used, 2, 4)
    said = capsys.readouterr().err
    assert used.failed and said.count("warning: backbone.compile") == 1 and "training goes on without compiling" in said


def test_what_fails_on_the_way_back_is_done_plainly(linear: Forward, capsys: pytest.CaptureFixture[str]) -> None:
    """Gradients are compiled, too, as late as when they are first wanted."""
    state, leaves = state_of(linear.method, 2)
    calls: list[int] = []

    def scaled(losses: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no kernel for this gradient")
        return losses

    used = Compiled(BATCH, "eager")
    losses, grads = dataclasses.replace(linear, compiled=used).gradients(state, leaves, batch_of(2, 4), scaled)
    plain = linear.gradients(state, leaves, batch_of(2, 4), torch.clone)
    assert torch.equal(losses, plain[0]) and grads is not None and plain[1] is not None and torch.equal(grads, plain[1])
    assert used.failed and "no kernel for this gradient" in capsys.readouterr().err


@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_what_is_compiled_wrongly_is_found_out_at_once(
    linear: Forward, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """Each shape is tried beside the plain pass."""
    monkeypatch.setattr(Compiled, "_function", lambda self: lambda *inputs: factor * compiled._flat_losses(*inputs))
    used = Compiled(BATCH, "eager")
    both(linear, used, 2, BATCH)
    both(linear, used, 1, BATCH)
    said = capsys.readouterr().err
    assert used.failed and said.count("it does not compute what the plain pass does; training goes on without compiling") == 1


def test_a_lack_of_memory_is_for_the_engine_to_deal_with(linear: Forward) -> None:
    def scaled(losses: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    state, leaves = state_of(linear.method, 2)
    used = Compiled(BATCH, "eager")
    with pytest.raises(torch.OutOfMemoryError):
        dataclasses.replace(linear, compiled=used).gradients(state, leaves, batch_of(2, 4), scaled)
    assert not used.failed


def test_batches_are_filled_up_with_each_clients_first_image_of_weight_0() -> None:
    images = torch.arange(6.0).view(6, 1)  # clients of images 0 1 2 and 3 4 5
    labels, weights = torch.tensor([[7, 8, 9], [4, 5, 6]]), torch.full((2, 3), 1 / 3)
    _, filled, own, weighed = compiled.padded(({}, images, labels, weights), 5)
    assert isinstance(filled, Tensor)
    assert filled[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]], "half of 5, rounded up, holds three"
    _, filled, own, weighed = compiled.padded(({}, Features(images), labels, weights), 4)
    assert isinstance(filled, Features) and filled.value[..., 0].tolist() == [[0, 1, 2, 0], [3, 4, 5, 3]]
    assert own.tolist() == [[7, 8, 9, 7], [4, 5, 6, 4]] and torch.equal(weighed[:, :3], weights) and weighed[:, 3].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("wanted", "device", "steps", "there"),
    [
        ("auto", "cuda", compiled.WORTH, True),
        ("auto", "cuda", 300, False),  # 50 rounds of the paper's setting: compiling would take longer than the run
        ("auto", "cpu", compiled.WORTH, False),
        ("on", "cpu", 1, True),
        ("off", "cuda", compiled.WORTH, False),
    ],
)
def test_by_itself_only_a_gpu_compiles_and_only_what_takes_long(wanted: str, device: str, steps: int, there: bool) -> None:
    found = Compiled.from_setting(wanted, torch.device(device), 32, steps)
    assert (found is not None) == there


def test_a_run_is_told_by_a_setting(tmp_path: Path) -> None:
    config = schema.load(None, small.settings(tmp_path, "backbone.compile=on", "federation.batch_size=6"))
    made = assemble(config, World(0, 1, torch.device("cpu"))).engine.training.forward.compiled
    assert made is not None and made.batch == 6 and made.backend == "inductor"


@pytest.mark.parametrize(
    ("participation", "more", "ranks", "wanted"),
    [
        (1.0, {}, 1, 5 * 3),
        (0.5, {}, 1, 5 * 2),
        (1.0, {}, 2, 5 * 2),
        (1.0, {}, 4, 5),
        (0.5, {"over_selection": 1.5}, 1, 5 * 3),  # 23 of them
        (0.5, {"sampling": "poisson"}, 1, 5 * 2),  # on average 15
    ],
)
def test_steps_of_a_round_are_those_of_the_longest_client_in_each_pass(
    tmp_path: Path, participation: float, more: dict[str, Any], ranks: int, wanted: int
) -> None:
    """30 clients of 2 classes, 5 images of each: a step an epoch, five epochs; a pass has ten clients."""
    config = schema.load(None, ["data.clients=30", "data.shots=5", "federation.batch_size=10", "federation.local_epochs=5"])
    world = World(0, ranks, torch.device("cpu"))
    federated, _ = data.load(config.data, 0, "test", Preprocess(32, (0.0,) * 3, (1.0,) * 3), world)
    federation = dataclasses.replace(config.federation, participation=participation, **more)
    assert steps_of_round(federated, dataclasses.replace(config, federation=federation), ranks, 10) == wanted
