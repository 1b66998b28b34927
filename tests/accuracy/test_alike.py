"""Clients that have the same model and see the same images are tested once, and the table is that of testing each by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfedmma.accuracy import evaluator as accuracy_evaluator
from pfedmma.accuracy import metrics
from pfedmma.accuracy.evaluator import Evaluator
from pfedmma.clip.stems import StemCache
from pfedmma.data.partition.camera import camera
from pfedmma.data.partition.federated import Client, EvaluationSet
from pfedmma.methods.base import Method, count
from pfedmma.stack.answers import Answers
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.start import Start
from tests.support import stacks

CLIENTS, TESTED, OTHERS = 7, 40, 12  # test images of the base classes and of the novel ones
WIDTH = 2  # clients a pass
BATCH = 16  # images x clients
# No two classes have as many test images, so that even models that see one class in everything differ in accuracy.
BASE_LABELS = torch.tensor([0] * 14 + [1] * 10 + [2] * 8 + [3] * 5 + [4] * 3)[torch.arange(TESTED) * 7 % TESTED]
NOVEL_LABELS = torch.tensor([0] * 7 + [1] * 4 + [2])


def new_method(clip: nn.Module, name: str) -> Method:
    return stacks.new_method(clip, name=name, dim=8, scale=0.3)


def new_answers(method: Method, trained: Sequence[int]) -> Answers:
    """Of a server that has moved away from where it began, and private tensors of the clients that have ``trained``."""
    return stacks.new_members(method, trained=trained, spread=0.2).answers()


def apart(answers: Answers, method: Method) -> Answers:
    """The same, but private tensors are drawn for each client that has not trained."""
    states, layout = answers.states, method.layout

    def private(client: int) -> Tensor:
        return stacks.drawn_state(method, client, spread=0.2)[layout.private]

    other = ClientStates(layout, Start(states.initial, private), states.optimizer, states.device, answers=states.answers)
    other.own.update(states.own)
    return dataclasses.replace(answers, states=other)


def new_evaluator(method: Method, seeing: Sequence[int] = ()) -> Evaluator:
    """Each client has test images of its own; ``seeing``: clients with a camera. Client 6 has nothing of its own to be tested on."""
    every, nothing = torch.arange(TESTED), torch.empty(0, dtype=torch.long)
    clients = [
        Client(i, (), every[i:1], BASE_LABELS[i:1], every[i::6] if i < 6 else nothing, camera(0, i, 0.9) if i in seeing else None)
        for i in range(CLIENTS)
    ]
    return stacks.new_evaluator(method, clients, BASE_LABELS, NOVEL_LABELS, BATCH, WIDTH)


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> Callable[[Method], list[int]]:
    """The number of models in every pass over images of the method."""

    def watch(method: Method) -> list[int]:
        passes: list[int] = []
        kind = type(method)
        image_features = kind.image_features

        def counted(self: Method, state: dict[str, Tensor], stem: Any) -> Tensor:
            passes.append(count(state))
            return image_features(self, state, stem)

        monkeypatch.setattr(kind, "image_features", counted)
        return passes

    return watch


def assert_same(table: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(table, wanted, rtol=0, atol=0, equal_nan=True)


def one_by_one(evaluator: Evaluator, method: Method, answers: Answers) -> Tensor:
    return torch.cat([evaluator.table(method, answers, [client]) for client in evaluator.federated.clients])


def models_tested(passes: list[int], evaluator: Evaluator, models: int, times: int = 1) -> bool:
    """Whether ``passes`` are those of so many models, `WIDTH` a pass, over all test images; an image goes ``times`` through the tower."""
    groups = [min(WIDTH, models - start) for start in range(0, models, WIDTH)]
    size = BATCH // (max(groups) * times)
    batches = sum(-(-images // size) for images in (TESTED, OTHERS))
    return sorted(passes) == sorted(groups * batches)


@pytest.mark.parametrize("name", ["promptfl", "fedlora", "fedavg_mma", "zeroshot"])
def test_clients_without_private_tensors_are_tested_once(tiny_clip: nn.Module, tested: Callable[[Method], list[int]], name: str) -> None:
    """Their own test images are not the same: Local is counted for each."""
    method = new_method(tiny_clip, name)
    evaluator, answers = new_evaluator(method), new_answers(method, trained=range(4))
    wanted = one_by_one(evaluator, method, answers)
    passes = tested(method)
    table = evaluator.table(method, answers, evaluator.federated.clients)
    assert models_tested(passes, evaluator, 1)
    assert_same(table, wanted)
    assert len(set(table[:6, 0].tolist())) > 1 and torch.isnan(table[6, 0])
    assert len(set(table[:, 1].tolist())) == len(set(table[:, 2].tolist())) == 1


def assert_models_differ(table: Tensor, trained: Sequence[int]) -> None:
    """Trained clients are unlike each other, or the tests here would say nothing."""
    rows = {tuple(table[client, 1:3].tolist()) for client in trained}
    assert len(rows) > 1


@pytest.mark.parametrize("name", ["pfedmma", "local", "fedotp", "fedpgp"])
def test_clients_that_never_trained_share_one_model(tiny_clip: nn.Module, tested: Callable[[Method], list[int]], name: str) -> None:
    method = new_method(tiny_clip, name)
    trained = (1, 4, 5)
    evaluator, answers = new_evaluator(method), new_answers(method, trained)
    wanted = one_by_one(evaluator, method, answers)
    passes = tested(method)
    table = evaluator.table(method, answers, evaluator.federated.clients)
    assert models_tested(passes, evaluator, len(trained) + 1)
    assert_same(table, wanted)
    assert_models_differ(table, trained)
    rest = table[[0, 2, 3, 6], 1]
    assert len(set(rest.tolist())) == 1


@pytest.mark.parametrize("name", ["pfedmma", "fedotp"])
def test_clients_that_begin_apart_are_tested_each(tiny_clip: nn.Module, tested: Callable[[Method], list[int]], name: str) -> None:
    method = new_method(tiny_clip, name)
    evaluator, answers = new_evaluator(method), apart(new_answers(method, trained=(1,)), method)
    wanted = one_by_one(evaluator, method, answers)
    passes = tested(method)
    table = evaluator.table(method, answers, evaluator.federated.clients)
    assert models_tested(passes, evaluator, CLIENTS)
    assert_same(table, wanted)
    assert_models_differ(table, trained=[0, 2, 3, 4, 5, 6])


def test_a_method_with_several_passes_of_an_image_takes_fewer_images(tiny_clip: nn.Module, tested: Callable[[Method], list[int]]) -> None:
    """The memory of a pass is that of other methods."""
    method = new_method(tiny_clip, "fedmgp")
    evaluator, answers = new_evaluator(method), new_answers(method, trained=range(CLIENTS))
    passes = tested(method)
    evaluator.table(method, answers, evaluator.federated.clients)
    assert models_tested(passes, evaluator, CLIENTS, times=5)


@pytest.mark.parametrize(("trained", "models"), [((), 1), (range(CLIENTS), CLIENTS), ((6,), 2), (range(CLIENTS - 1), CLIENTS)])
def test_none_or_all_trained(tiny_clip: nn.Module, tested: Callable[[Method], list[int]], trained: Sequence[int], models: int) -> None:
    method = new_method(tiny_clip, "pfedmma")
    evaluator, answers = new_evaluator(method), new_answers(method, trained)
    wanted = one_by_one(evaluator, method, answers)
    passes = tested(method)
    assert_same(evaluator.table(method, answers, evaluator.federated.clients), wanted)
    assert models_tested(passes, evaluator, models)


@pytest.mark.parametrize("name", ["promptfl", "pfedmma"])
def test_clients_with_a_camera_are_tested_each(tiny_clip: nn.Module, tested: Callable[[Method], list[int]], name: str) -> None:
    """Each sees the images in its own way, whether or not it has trained."""
    method = new_method(tiny_clip, name)
    evaluator, answers = new_evaluator(method, seeing=range(CLIENTS)), new_answers(method, trained=(1,))
    wanted = one_by_one(evaluator, method, answers)
    passes = tested(method)
    table = evaluator.table(method, answers, evaluator.federated.clients)
    assert models_tested(passes, evaluator, CLIENTS)
    assert_same(table, wanted)
    assert len({tuple(row) for row in table[[0, 2, 3, 4, 5, 6], 1:3].tolist()}) > 1  # of clients with the same model


def test_clients_that_read_others_are_tested_each(tiny_clip: nn.Module, tested: Callable[[Method], list[int]]) -> None:
    """What a client of pFedMoAP reads depends on what it has sent itself."""
    method = new_method(tiny_clip, "pfedmoap")
    evaluator, answers = new_evaluator(method), new_answers(method, trained=(1, 4))
    wanted = one_by_one(evaluator, method, answers)
    passes = tested(method)
    table = evaluator.table(method, answers, evaluator.federated.clients)
    assert models_tested(passes, evaluator, CLIENTS)
    assert_same(table, wanted)
    assert_models_differ(table, range(CLIENTS))


@pytest.mark.parametrize("name", ["pfedmma", "pfedmoap"])
@pytest.mark.parametrize("seeing", [(), range(CLIENTS)], ids=["plain", "cameras"])
def test_more_clients_than_are_held_together(
    tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch, tested: Callable[[Method], list[int]], name: str, seeing: Sequence[int]
) -> None:
    """7 models, `WIDTH` of them at once; the images of a batch are then the same for fewer groups, and their stems can still be kept."""
    method = new_method(tiny_clip, name)
    evaluator, answers = new_evaluator(method, seeing), new_answers(method, trained=range(CLIENTS))
    wanted = evaluator.table(method, answers, evaluator.federated.clients)
    held: list[int] = []
    state = Evaluator.state
    monkeypatch.setattr(Evaluator, "state", lambda self, *args: (held.append(len(args[2])), state(self, *args))[1])
    monkeypatch.setattr(accuracy_evaluator, "TOGETHER", 1)
    passes, stems = tested(method), StemCache(1e9)
    for _ in range(2):
        assert_same(evaluator.table(method, answers, evaluator.federated.clients, stems), wanted)
    assert held == 2 * 2 * [2, 2, 2, 1]  # two evaluations of two sets
    assert sum(passes) > 0 and max(passes) == WIDTH
    assert_models_differ(wanted, range(CLIENTS))


def test_states_held_together_are_bounded(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """`TOGETHER` groups at a time."""
    method = new_method(tiny_clip, "pfedmma")
    evaluator, answers = new_evaluator(method), new_answers(method, trained=range(CLIENTS))
    together: list[int] = []
    correct = Evaluator._correct
    monkeypatch.setattr(Evaluator, "_correct", lambda self, *args: (together.append(len(args[0].clients)), correct(self, *args))[1])
    monkeypatch.setattr(accuracy_evaluator, "TOGETHER", 2)
    evaluator.table(method, answers, evaluator.federated.clients)
    assert together == 2 * [4, 3]


def test_a_rank_without_clients_has_an_empty_table(tiny_clip: nn.Module) -> None:
    method = new_method(tiny_clip, "pfedmma")
    assert new_evaluator(method).table(method, new_answers(method, ()), []).shape == (0, 4)


def test_test_sets_of_one_label_space_are_told_apart(tiny_clip: nn.Module) -> None:
    """An unseen domain has the classes and the split of the base set, but other images, also where stems are kept."""
    method = new_method(tiny_clip, "pfedmma")
    answers, plain = new_answers(method, [1, 4]), new_evaluator(method)
    base = plain.federated.base
    places = [torch.arange(TESTED)[:17], torch.arange(TESTED)[17:]]
    first, second = (EvaluationSet(base.split, base.classes, base.indices[own], base.labels[own]) for own in places)
    clients = tuple(dataclasses.replace(client, test=client.test[client.test < 17]) for client in plain.federated.clients)
    both = dataclasses.replace(plain, federated=dataclasses.replace(plain.federated, clients=clients, base=first, unseen=second))
    swapped = dataclasses.replace(plain, federated=dataclasses.replace(plain.federated, clients=(), base=second, unseen=first))
    stems = StemCache(1e9)
    column = metrics.COLUMNS.index
    wanted = swapped.table(method, answers, clients)
    for _ in range(2):
        table = both.table(method, answers, clients, stems)
        assert_same(table[:, column("unseen")], wanted[:, column("base")])
        assert_same(table[:, column("base")], wanted[:, column("unseen")])


def test_rows_are_in_the_order_of_the_clients_given(tiny_clip: nn.Module) -> None:
    method = new_method(tiny_clip, "pfedmma")
    evaluator, answers = new_evaluator(method), new_answers(method, trained=(1, 4, 5))
    clients, order = evaluator.federated.clients, [5, 2, 0, 4, 6, 1, 3]
    table = evaluator.table(method, answers, clients)
    assert_same(evaluator.table(method, answers, [clients[i] for i in order]), table[order])


def test_prompts_are_encoded_once_for_each_test_set(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch):
    """However many passes the clients take: what frozen blocks make of prompts is the same for all of them."""
    monkeypatch.setattr(accuracy_evaluator, "TOGETHER", 1)
    method = new_method(tiny_clip, "pfedmma")
    encoded: list[int] = []
    kind = type(method)
    text_stem = kind.text_stem

    def counted(self: Method, prompts: Any) -> Any:
        encoded.append(len(prompts.names))
        return text_stem(self, prompts)

    monkeypatch.setattr(kind, "text_stem", counted)
    evaluator = new_evaluator(method)
    evaluator.table(method, new_answers(method, range(CLIENTS)), evaluator.federated.clients)
    assert encoded == [len(stacks.NAMES), len(stacks.NOVEL)]
