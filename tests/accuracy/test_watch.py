"""What an evaluation collects for diagnostics is what each client's model says, whichever way clients, images and ranks are cut."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from pfedmma.accuracy import diagnostics
from pfedmma.accuracy import evaluator as accuracy_evaluator
from pfedmma.accuracy.evaluator import Evaluator, right
from pfedmma.accuracy.watch import Watch
from pfedmma.clip.towers import Places
from pfedmma.data.partition.federated import Client, cameras
from pfedmma.engine.cohort import Members
from pfedmma.methods.base import Method
from pfedmma.methods.forward import Forward
from pfedmma.records.evaluated import Diagnostics
from pfedmma.stack.rules import Given
from tests.support import stacks

TESTED = 23  # base test images
# Those whose logits are scaled cosines.
COSINES = ("zeroshot", "pfedmma", "fedclip", "promptfl", "fedpgp", "fedmaple", "fedlora", "clipadapter", "fedpha", "fedtpg")
OTHERS = ("fedotp", "promptfolio", "pfedmoap", "fedmgp")


def new_evaluator(method: Method, seeing: bool = True) -> Evaluator:
    clients = stacks.new_clients(seeing, TESTED)
    return stacks.new_evaluator(method, clients, stacks.in_turn(TESTED), torch.tensor([0, 1, 2, 0]))


def watched(evaluator: Evaluator, method: Method, members: Members, clients: Sequence[Client]) -> tuple[Diagnostics, Tensor]:
    watch = Watch(TESTED)
    table = evaluator.table(method, members.answers(), clients, watch=watch)
    return watch.result(), table


def as_seen(evaluator: Evaluator, client: Client, indices: Tensor) -> Tensor:
    """Test images [N,3,S,S] as the client sees them."""
    return evaluator.pixels.normalise(evaluator.pixels.fitted("test", indices)[None], cameras([client])).flatten(0, 1)


def by_hand(evaluator: Evaluator, method: Method, members: Members, client: Client) -> tuple[dict[str, float], Tensor]:
    """Margin, from logits, and ECE of one client, all images in one pass; and its features [N,D]."""
    base, answers = evaluator.federated.base, members.answers()
    forward = Forward.from_prompts(method, evaluator.federated.template, base.classes)
    state = answers.tensors([client.id])
    state = state | forward.fixed(state, Given(answers.others([client.id]), None))
    stem = forward.image_stem(as_seen(evaluator, client, base.indices))
    features, logits = forward.features_and_logits(state, stem, forward.text_features(state))
    found = right(logits, base.labels)
    margin = diagnostics.margins(logits / method.backbone.logit_scale, base.labels).mean()
    error = diagnostics.calibration_error(diagnostics.confidences(logits).double(), found)
    return {"alignment_margin": float(margin), "ece": float(error)}, features


@torch.no_grad()
@pytest.mark.parametrize("name", [*COSINES, *OTHERS])
def test_means_over_clients_of_what_each_model_says(tiny_clip: nn.Module, name: str) -> None:
    method = stacks.new_method(tiny_clip, name=name, dim=8, scale=0.3)
    evaluator, members = new_evaluator(method), stacks.new_members(method, spread=0.2)
    found, _ = watched(evaluator, method, members, evaluator.federated.clients)
    each = [by_hand(evaluator, method, members, client)[0] for client in evaluator.federated.clients]
    assert len({round(one["ece"], 6) for one in each}) > 1, "clients differ, or their mean says little"
    assert found.ece == pytest.approx(sum(one["ece"] for one in each) / len(each), rel=1e-4)
    from_logits = sum(one["alignment_margin"] for one in each) / len(each)
    # Experts have a part in the logits of pFedMoAP, and none in what its own prompt says; PromptFolio's class features are no unit vectors.
    assert (found.alignment_margin == pytest.approx(from_logits, rel=1e-4, abs=1e-6)) == (name not in ("pfedmoap", "promptfolio"))
    assert (found.modality_gap is None) == (name in ("fedotp", "fedmgp"))
    assert (found.shared_cka is None) == (name != "pfedmma")


@torch.no_grad()
def test_the_gap_is_between_the_means_of_images_and_classes(tiny_clip: nn.Module) -> None:
    method = stacks.new_method(tiny_clip, name="zeroshot")
    evaluator, members = new_evaluator(method, seeing=False), stacks.new_members(method)
    clients = evaluator.federated.clients
    images = by_hand(evaluator, method, members, clients[0])[1][0]
    forward = Forward.from_prompts(method, evaluator.federated.template, evaluator.federated.base.classes)
    texts = forward.text_features(members.answers().tensors([0]))[0]
    found, _ = watched(evaluator, method, members, clients)
    assert found.modality_gap == pytest.approx(float((images.mean(dim=0) - texts.mean(dim=0)).norm()), rel=1e-5)


def outputs_of_s(evaluator: Evaluator, method: Method, members: Members, client: Client) -> Tensor:
    """S(relu(Down h)) of the class token [B,r], by the formula, from what the tower hands to the adapter of its last block."""
    state, top = members.answers().tensors([client.id]), method.backbone.visual.depth
    handed: dict[int, Tensor] = {}

    def output(block: int, normed: Tensor) -> Tensor:
        handed[block] = normed
        return method.spec(state, "visual", block, normed)

    images = evaluator.federated.base.indices[diagnostics.spread(TESTED)]
    method.backbone.visual.finish(method.image_stem(as_seen(evaluator, client, images)), Places(output=output))
    down, shared = (([state[f"{name}.{part}"][0] for part in ("weight", "bias")]) for name in (f"visual.{top}.down", f"shared.{top}"))
    hidden = (handed[top][:, 0] @ down[0].mT + down[1]).relu()
    return hidden @ shared[0].mT + shared[1]


@torch.no_grad()
@pytest.mark.parametrize("seeing", [False, True], ids=["plain", "cameras"])
def test_cka_is_of_what_s_gives_in_the_highest_block(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch, seeing: bool) -> None:
    monkeypatch.setattr(diagnostics, "spread", lambda images: torch.tensor([0, 2, 3, 7, 11, 12, 16, 20]))
    method = stacks.new_method(tiny_clip, name="local", dim=8, scale=0.3)
    evaluator, members = new_evaluator(method, seeing), stacks.new_members(method, spread=0.2)
    clients = evaluator.federated.clients
    outputs = torch.stack([outputs_of_s(evaluator, method, members, client) for client in clients])
    wanted = diagnostics.mean_cka(diagnostics.unit_grams(outputs).sum(dim=0), len(clients))
    found, _ = watched(evaluator, method, members, clients)
    assert found.shared_cka == pytest.approx(wanted, rel=1e-4) and 0.0 < found.shared_cka < 0.99


def test_adapters_of_the_text_tower_alone_have_no_cka(tiny_clip: nn.Module) -> None:
    method = stacks.new_method(tiny_clip, name="pfedmma", dim=8, towers="text")
    evaluator = new_evaluator(method)
    assert watched(evaluator, method, stacks.new_members(method), evaluator.federated.clients)[0].shared_cka is None


def values(found: Diagnostics) -> list[float]:
    return [math.nan if value is None else value for value in found.to_json().values()]


@pytest.mark.parametrize("name", ["pfedmma", "fedavg_mma", "fedotp"])
def test_clients_that_are_alike_count_each(tiny_clip: nn.Module, name: str) -> None:
    """Three of five have never trained, or all have the same model; one is tested for all of them."""
    method = stacks.new_method(tiny_clip, name=name, dim=8, scale=0.3)
    members = stacks.new_members(method, trained=(1, 4), spread=0.2)
    together, apart = new_evaluator(method, seeing=False), Watch(TESTED)
    clients = together.federated.clients
    for client in clients:
        together.table(method, members.answers(), [client], watch=apart)
    found, _ = watched(together, method, members, clients)
    assert values(found) == pytest.approx(values(apart.result()), rel=1e-5, nan_ok=True)
    if name == "fedavg_mma":
        assert found.shared_cka == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["pfedmma", "fedotp", "pfedmoap"])
def test_however_clients_and_images_are_cut(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    method = stacks.new_method(tiny_clip, name=name, dim=8, scale=0.3)
    evaluator, members = new_evaluator(method), stacks.new_members(method, spread=0.2)
    clients = evaluator.federated.clients
    wanted, table = watched(evaluator, method, members, clients)
    monkeypatch.setattr(accuracy_evaluator, "TOGETHER", 1)
    for batch, width in ((3, 3), (100, 5), (1, 1)):
        cut = dataclasses.replace(evaluator, batch_size=batch, clients_per_pass=width)
        found, same = watched(cut, method, members, clients)
        assert values(found) == pytest.approx(values(wanted), rel=1e-5, abs=1e-6, nan_ok=True)
        assert torch.equal(same.nan_to_num(-1), table.nan_to_num(-1))


def test_accuracies_are_those_without_diagnostics(tiny_clip: nn.Module) -> None:
    method = stacks.new_method(tiny_clip, name="pfedmma", dim=8, scale=0.3)
    evaluator, members = new_evaluator(method), stacks.new_members(method, spread=0.2)
    plain = evaluator.table(method, members.answers(), evaluator.federated.clients)
    assert torch.equal(watched(evaluator, method, members, evaluator.federated.clients)[1].nan_to_num(-1), plain.nan_to_num(-1))


@pytest.mark.parametrize("name", ["promptfl", "pfedmma"])
def test_images_go_through_the_tower_once_but_those_for_cka(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(diagnostics, "spread", lambda images: torch.arange(5))
    method = stacks.new_method(tiny_clip, name=name, dim=8)
    kind, passes = type(method), []
    image_features = kind.image_features
    monkeypatch.setattr(kind, "image_features", lambda self, state, stem: (passes.append(1), image_features(self, state, stem))[1])
    evaluator, members = new_evaluator(method), stacks.new_members(method)
    evaluator.table(method, members.answers(), evaluator.federated.clients)
    plain = len(passes)
    watched(evaluator, method, members, evaluator.federated.clients)
    assert len(passes) == 2 * plain


def test_nobody_is_tested_here(tiny_clip: nn.Module) -> None:
    """As on a rank that hosts none of the tested clients: its sums are as long as those of the others."""
    method = stacks.new_method(tiny_clip, name="pfedmma")
    evaluator, members = new_evaluator(method), stacks.new_members(method)
    found, _ = watched(evaluator, method, members, [])
    assert set(found.to_json().values()) == {None}
