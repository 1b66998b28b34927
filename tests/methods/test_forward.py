"""The one driver of a method's forward pass, what it lets a method know, and what a method's clients answer with."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import pfedmma
from pfedmma import evaluate, export, predict, rng, train
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.loading import create_model
from pfedmma.comm.world import World
from pfedmma.config import schema
from pfedmma.data.sources.base import GENERIC_TEMPLATE
from pfedmma.engine.batches import by_steps
from pfedmma.engine.cohort import PassWidth, train_cohort
from pfedmma.methods import registry
from pfedmma.methods.base import Method, per_client
from pfedmma.methods.forward import Forward
from pfedmma.methods.promptfl import PromptFL, PromptFLConfig
from pfedmma.portable.personal_clip import PersonalCLIP
from pfedmma.run.assembly import Run, assemble
from pfedmma.stack.rules import OWN, Given, State
from tests.support import small
from tests.support.stacks import NAMES, NOVEL, in_turn, new_clients, new_evaluator, new_members, new_method, new_training

CLIENTS, IMAGES = [3, 0, 4], 2  # images a client


def pixels(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=rng.generator(0, "pixels"))


# The parts of a pass ---------------------------------------------------------------------------------------------------------------------


def begin(clip: nn.Module, name: str, precision: str) -> tuple[Forward, dict[str, Tensor], Given]:
    """A method, and the state of three clients who read each other where it does that."""
    method = new_method(clip, precision, name=name, dim=8, scale=0.3)
    answers = new_members(method).answers()
    return Forward.from_prompts(method, GENERIC_TEMPLATE, NAMES), answers.tensors(CLIENTS), Given(answers.others(CLIENTS))


def by_hand(clip: nn.Module, name: str, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """(logits, losses, gradient of the first tensor) by the method's parts, one after another in mixed precision."""
    forward, state, given = begin(clip, name, precision)
    method, prompts = forward.method, forward.method.backbone.prompts(GENERIC_TEMPLATE, NAMES)
    state = {name: tensor.requires_grad_() for name, tensor in state.items()}
    labels = in_turn(len(CLIENTS) * IMAGES).view(len(CLIENTS), IMAGES)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        stem = method.text_stem(prompts)
        with torch.no_grad():
            whole = {**state, **method.fixed(state, given, stem)}
        images = method.image_features(whole, method.image_stem(pixels(labels.numel())))
        texts = method.text_features(whole, stem)
        losses = method.loss(whole, images, texts, labels, torch.full(labels.shape, 1 / IMAGES))
        logits = method.logits(whole, images, texts)
    return logits.detach(), losses.detach(), torch.autograd.grad(losses.sum(), next(iter(state.values())))[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["pfedmma", "promptfl", "pfedmoap", "fedclip"])
def test_the_driver_is_the_parts_by_hand(tiny_clip: nn.Module, name: str, precision: str) -> None:
    wanted, losses, gradient = by_hand(tiny_clip, name, precision)
    forward, state, given = begin(tiny_clip, name, precision)
    state = {name: tensor.requires_grad_() for name, tensor in state.items()}
    whole = {**state, **forward.fixed(state, given)}
    labels = in_turn(len(CLIENTS) * IMAGES).view(len(CLIENTS), IMAGES)
    images, weights = pixels(labels.numel()), torch.full(labels.shape, 1 / IMAGES)
    logits = forward.logits(whole, forward.image_stem(images), forward.text_features(whole))
    assert logits.shape == (len(CLIENTS), IMAGES, len(NAMES)) and torch.equal(logits, wanted)
    for given_images in (images, forward.image_stem(images)):  # pixels, or what follows from them
        got = forward.losses(whole, given_images, labels, weights)
        assert torch.equal(got, losses)
        assert torch.equal(torch.autograd.grad(got.sum(), next(iter(state.values())))[0], gradient)
    assert gradient.abs().max() > 0 and forward.classes == NAMES
    if precision != "fp32":
        assert not torch.equal(wanted, by_hand(tiny_clip, name, "fp32")[0])  # it is another precision


class Mapped(Method):
    """A trained map of image features, which goes into a matrix product as it is."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        width = self.backbone.visual.projection.shape[1]
        return {"map": (width, width)}

    def image_features(self, state: State, stem: Any) -> Tensor:
        return F.normalize(torch.bmm(per_client(state, stem.value), state["map"]).float(), dim=-1)


def test_no_copy_of_trained_tensors_is_left_for_the_next_pass(tiny_clip: nn.Module) -> None:
    """In bf16 a tensor that has changed in place is seen by the very next pass: mixed precision ends with each."""
    forward = Forward.from_prompts(Mapped(Backbone.freeze(tiny_clip, "tiny", "bf16")), GENERIC_TEMPLATE, NAMES)
    state = {"map": torch.eye(*forward.method.shapes["map"]).repeat(2, 1, 1).requires_grad_()}
    images, labels, weights = forward.image_stem(pixels(4)), torch.tensor([[0, 1], [2, 3]]), torch.full((2, 2), 0.5)

    def passes() -> list[Tensor]:
        logits = forward.logits(state, images, forward.text_features(state))
        return [logits, forward.losses(state, images, labels, weights)]

    before = passes()
    with torch.no_grad():
        state["map"].mul_(-1.0)
    logits, losses = passes()
    assert torch.equal(logits, -before[0]) and not torch.equal(losses, before[1])
    assert not torch.is_autocast_enabled("cpu")


# What a method may know ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Knowing(PromptFL):
    """Prompts of a method that looks at the classes its clients hold; ``seen``: (classes at hand, held)."""

    wants: bool = True
    seen: list[tuple[int, Any]] = field(default_factory=list)

    @property
    def knows_classes(self) -> bool:
        return self.wants

    def fixed(self, state: State, given: Given, text_stem: Any) -> dict[str, Tensor]:
        self.seen.append((sum(len(part.classes) for part in text_stem.parts), None if given.held is None else given.held.tolist()))
        return super().fixed(state, given, text_stem)


def knowing(clip: nn.Module, wants: bool = True) -> Knowing:
    return Knowing(Backbone.freeze(clip, "tiny"), PromptFLConfig(), length=2, wants=wants)


HELD = {0: (0,), 1: (1, 2), 2: (), 3: (0, 4), 4: (3,)}  # classes of `NAMES`


def holders() -> list[Any]:
    return [dataclasses.replace(client, classes=HELD[client.id]) for client in new_clients(cameras=False, tested=10)]


def masks(*clients: int) -> list[list[bool]]:
    return [[label in HELD[client] for label in range(len(NAMES))] for client in clients]


def test_training_knows_the_base_classes_that_each_client_holds(tiny_clip: nn.Module) -> None:
    """Client by client of each pass, of which those with most steps come first."""
    method = knowing(tiny_clip)
    clients = holders()
    training = new_training(method)
    train_cohort(training, clients, new_members(method), 1, PassWidth(3))
    order = [client.id for client in by_steps(clients, training.batches.work)]
    assert method.seen == [(len(NAMES), masks(*order[:3])), (len(NAMES), masks(*order[3:]))]


def test_evaluation_knows_them_among_base_classes_and_none_among_novel_ones(tiny_clip: nn.Module) -> None:
    """Also of clients that never trained: each is tested by itself, as each holds other classes."""
    method = knowing(tiny_clip)
    evaluator = new_evaluator(method, holders(), in_turn(10), torch.arange(6) % 3)
    evaluator.table(method, new_members(method, trained=[1]).answers(), evaluator.federated.clients)
    nothing = [False] * len(NOVEL)
    assert method.seen[:3] == [(len(NAMES), masks(0, 1)), (len(NAMES), masks(2, 3)), (len(NAMES), masks(4))]
    assert method.seen[3:] == [(len(NOVEL), [nothing] * 2), (len(NOVEL), [nothing] * 2), (len(NOVEL), [nothing])]


def test_an_exported_classifier_does_not_know_them(tiny_clip: nn.Module) -> None:
    method = knowing(tiny_clip)
    tensors = {name: tensor[0] for name, tensor in new_members(method).answers().tensors([0]).items()}
    classify = PersonalCLIP.from_tensors(method, tensors, {}, GENERIC_TEMPLATE).classifier(NAMES)
    assert classify(pixels(2)).shape == (2, len(NAMES))
    assert method.seen == [(len(NAMES), None)]


def test_other_methods_are_not_told(tiny_clip: nn.Module) -> None:
    method = knowing(tiny_clip, wants=False)
    members = new_members(method)
    train_cohort(new_training(method), holders(), members, 1, PassWidth(5))
    evaluator = new_evaluator(method, holders(), in_turn(10), torch.arange(6) % 3)
    evaluator.table(method, members.answers(), evaluator.federated.clients)
    assert method.seen and all(held is None for _, held in method.seen)


# Clients that answer with their own last exchanged tensors -------------------------------------------------------------------------------


class OwnPrompt(PromptFL):
    """PromptFL whose clients answer with the prompt of their own last local training."""

    @property
    def answers(self) -> str:
        return OWN


@dataclass(frozen=True)
class Kept:
    """A finished run of three clients, of which one never trained; ``answers``: the prompt [P] that each is to answer with."""

    run: Path
    answers: dict[int, Tensor]
    shared: Tensor
    never: int


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """With trained weights, few classes and a large rate, so that answers differ between prompts."""
    run = tmp_path_factory.mktemp("own") / "run"
    more = ["backbone.pretrained=auto", "data.clients=3", "federation.participation=0.67", "federation.rounds=1", "optimizer.lr=0.5"]
    registry.register("own_prompt", lambda backbone: OwnPrompt.from_settings(PromptFLConfig(context=2), backbone))
    try:
        with pytest.MonkeyPatch.context() as patch:
            small.few_images(patch, test=3)
            train.main(small.settings(run, "method.name=own_prompt", *more, "evaluation.every=1", "data.camera=0"))
            tensors = small.final_tensors(run)
            shared = tensors["server.shared"]
            never = next(client for client in range(3) if f"{client}.private" not in tensors)
            yield Kept(run, {client: tensors.get(f"{client}.private", shared) for client in range(3)}, shared, never)
    finally:
        del registry.REGISTERED["own_prompt"]


def base_accuracy(run: Run, prompt: Tensor) -> float:
    """Of a prompt on all base test images, by the classifier that a person would build of it."""
    base, method, evaluator = run.federated.base, run.engine.training.method, run.engine.evaluation.evaluator
    model = PersonalCLIP.from_tensors(method, {"prompt": prompt.view(method.shapes["prompt"])}, {}, run.federated.template)
    logits = model.classifier(base.classes)(evaluator.pixels.normalise(evaluator.pixels.fitted(base.split, base.indices)))
    return 100.0 * float((logits.argmax(dim=1) == base.labels).double().mean())


def test_a_checkpoint_holds_the_own_prompts(kept: Kept) -> None:
    """They differ from each other and from the server's, which is their weighted mean."""
    first, second = (prompt for client, prompt in kept.answers.items() if client != kept.never)
    assert len(first) == len(second) == len(kept.shared)
    assert (first - second).abs().max() > 1e-3
    assert all((prompt - kept.shared).abs().max() > 1e-3 for prompt in (first, second))
    sizes = {row["id"]: row["train_samples"] for row in small.summary(kept.run)["per_client"]}
    weights = {client: sizes[client] for client in kept.answers if client != kept.never}
    mean = sum(weight / sum(weights.values()) * kept.answers[client] for client, weight in weights.items())
    torch.testing.assert_close(kept.shared, mean)


def test_training_and_evaluate_test_each_client_with_its_own(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    """And who never trained with the server's."""
    run = assemble(schema.load(kept.run / "config.yaml"), World(0, 1, torch.device("cpu")))
    wanted = [base_accuracy(run, kept.answers[client]) for client in range(3)]
    assert len(set(wanted)) == 3  # the prompts of the two and the server's answer differently
    evaluate.main([str(kept.run)])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    for rows in (told["per_client"], small.summary(kept.run)["per_client"]):
        assert [row["base"] for row in rows] == pytest.approx(wanted)


def test_export_and_predict_give_the_own_prompt(kept: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, file, names = tmp_path / "noise.png", tmp_path / "client.safetensors", ("cat", "dog", "fern")
    noise = torch.randint(256, (32, 32, 3), generator=rng.generator(0, "picture")).to(torch.uint8)
    Image.fromarray(noise.numpy()).save(picture)
    config, seen = schema.load(kept.run / "config.yaml"), []
    for client, prompt in kept.answers.items():
        export.main([str(kept.run), "--client", str(client), "--out", str(file)])
        model = pfedmma.load_client(create_model(config.backbone, config.seed), file)
        assert torch.equal(model.state["prompt"].flatten(), prompt) and model.others is None
        capsys.readouterr()
        predict.main([str(kept.run), str(picture), "--client", str(client), "--json", "--names", ",".join(names)])
        told = {entry["class"]: entry["probability"] for entry in json.loads(capsys.readouterr().out)["top"]}
        seen.append([told[name] for name in names])
        mean, std = (torch.tensor(values) for values in (model.method.backbone.preprocess.mean, model.method.backbone.preprocess.std))
        image = ((noise / 255 - mean) / std).permute(2, 0, 1)
        assert seen[-1] == pytest.approx(model.classifier(names)(image[None])[0].softmax(dim=0).tolist(), rel=1e-4)
    assert all(abs(a[0] - b[0]) > 1e-3 for a, b in itertools.combinations(seen, 2))
