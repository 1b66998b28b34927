"""What holds for every compared method: sizes, the client axis, the zero-shot limit, gradients, whole runs, draws.

A method that is added to `pfedmma.methods.registry.NAMES` is tested here at once; it needs an entry in `TABLE`, and one in `LIMITS` or
`NO_LIMIT`. The mathematics of a method is tested in a file of its own.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import pytest
import torch
from torch import Tensor, nn

from pfedmma import evaluate, rng
from pfedmma.accuracy.evaluator import Evaluator
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.loading import BackboneConfig
from pfedmma.clip.loading import load as load_backbone
from pfedmma.comm.ledger import Moved
from pfedmma.comm.world import World
from pfedmma.config import schema
from pfedmma.data.partition.camera import camera
from pfedmma.data.partition.federated import Client
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import GENERIC_TEMPLATE, Source, Split
from pfedmma.engine.batches import Batches, LocalWork, by_steps
from pfedmma.engine.cohort import Members, PassWidth, train_cohort
from pfedmma.engine.local import LocalTraining
from pfedmma.methods import registry
from pfedmma.methods.base import Method
from pfedmma.methods.clipadapter import CLIPAdapterConfig
from pfedmma.methods.fedpgp import FedPGPConfig
from pfedmma.methods.fedpha import FedPHAConfig
from pfedmma.methods.forward import Forward
from pfedmma.methods.pfedmoap import PFedMoAPConfig
from pfedmma.methods.promptfl import PromptFLConfig
from pfedmma.methods.promptfolio import PromptFolioConfig
from pfedmma.methods.registry import NAMES, MethodConfig
from pfedmma.portable.personal_clip import PersonalCLIP
from pfedmma.records.checkpoint import manifest
from pfedmma.records.folder import RunFolder
from pfedmma.run.client import KeptClient
from pfedmma.server.rules import SHARED, ServerRules
from pfedmma.server.server import Server
from pfedmma.stack.answers import Answers
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.layout import Layout
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.stack.rules import OWN, POOL, SERVERS, Given, Others, State
from pfedmma.stack.start import Start
from pfedmma.train import main
from tests.support import painted, small

CLASSES = ("cat", "dog", "bird", "fern", "red_fish")
CPU = torch.device("cpu")


# Sizes -----------------------------------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """At ViT-B/16: numbers that a client trains, bytes that it sends and receives in a round."""

    trained: int
    up: int
    down: int


TABLE = {
    "zeroshot": Row(0, 0, 0),
    "pfedmma": Row(674_560, 33_792, 33_792),
    "local": Row(674_560, 0, 0),
    "fedavg_mma": Row(674_560, 2_698_240, 2_698_240),
    "promptfl": Row(16 * 512, 32_768, 32_768),
    "fedpgp": Row(16 * 512 + 16 * 8 + 8 * 512, 32_768, 32_768),
    "fedotp": Row(2 * 16 * 512, 32_768, 32_768),
    "fedclip": Row(525_312, 2_101_248, 2_101_248),
    "pfedmoap": Row(16 * 512 + 66_048, 32_768, 327_680),  # the mean and the prompts of nine others
    "fedmaple": Row(3_555_072, 14_220_288, 14_220_288),
    "fedlora": Row(184_320, 737_280, 737_280),
    "promptfolio": Row(2 * 16 * 512, 32_768, 32_768),
    "fedpha": Row(2 * 16 * 512, 32_768, 32_768),
    "fedtpg": Row(4_206_080, 16_824_320, 16_824_320),
    "clipadapter": Row(2 * 128 * 512, 524_288, 524_288),
    "fedmgp": Row(5 * 2 * 512 + 5 * 2 * 768, 20_480, 20_480),
}


# With what a client answers in place of what it exchanges, as the public code of each tests it (see the docstrings of the methods).
OWN_ANSWERS = {"pfedmoap"}

TRAINED = tuple(name for name in NAMES if name not in TABLE or TABLE[name].trained)


@pytest.fixture(scope="module")
def vit_b_16() -> Backbone:
    """Its shapes, without memory for its weights."""
    with torch.device("meta"):
        return Backbone.freeze(open_clip.create_model("ViT-B-16", device="meta"), "ViT-B-16")


def new_server(method: Method, layout: Layout, initial: Tensor) -> Server:
    """A server alone, with ``initial`` [P] to send out."""
    return Server(layout, {SHARED: initial[: layout.exchanged_size]}, World(0, 1, CPU), ServerRules(reads=method.reads))


@pytest.mark.parametrize("name", NAMES)
def test_sizes_at_vit_b_16(vit_b_16: Backbone, name: str) -> None:
    method = registry.build(MethodConfig(name), vit_b_16)
    layout = method.layout
    server = new_server(method, layout, torch.zeros(layout.size))
    pooled = layout.columns.get(POOL, slice(0, 0))
    server.pool.rows = {client: torch.zeros(pooled.stop - pooled.start) for client in range(12)}  # everyone has sent something
    received = layout.exchanged_size + server.read_parameters([3])
    comm = server.world.ledger.close_round(layout.exchanged_size, Moved(layout.exchanged_size, received), 4)
    assert sum(math.prod(shape) for shape in method.shapes.values()) == layout.size
    assert Row(layout.trained_count, comm["uplink_bytes"], comm["downlink_bytes"]) == TABLE[name]
    assert received == method.received(11)
    assert registry.entry_of(name).trains == (layout.size > 0)


# The client axis -------------------------------------------------------------------------------------------------------------------------

# One image; less than a batch; exactly a batch; several batches, the last one ragged; and again, so that two clients run to the end.
SIZES = (1, 3, 4, 11, 9)
BATCH, EPOCHS = 4, 2
POOLED = (0, 1, 3)  # who has sent something before: clients 0, 1 and 3 read two others, clients 2 and 4 three


def noise() -> Source:
    """Images of noise, 32 x 32, labels in turn; enough for all clients."""
    count = sum(SIZES)
    pictures = torch.randint(256, (count, 3, 32, 32), generator=rng.generator(0, "noise")).to(torch.uint8)
    return Source("noise", CLASSES, {"train": Split(torch.arange(count) % len(CLASSES), lambda index: pictures[index])})


def new_clients() -> list[Client]:
    """Clients of `SIZES` images, each with its own camera; the first, of one image, knows of a second class and has none of it."""
    cuts = torch.arange(sum(SIZES)).split(SIZES)
    nothing = torch.empty(0, dtype=torch.long)
    held = [tuple({*(own % len(CLASSES)).tolist(), 1}) for own in cuts]
    return [Client(i, held[i], own, own % len(CLASSES), test=nothing, camera=camera(0, i, 0.5)) for i, own in enumerate(cuts)]


def own_optimizer(name: str) -> OptimizerConfig:
    """The method's own, with a step that shows. A large eps: Adam divides by a gradient's size and blows up roundings near zero."""
    optimizer = schema.load(None, [f"method.name={name}"]).optimizer
    return dataclasses.replace(optimizer, lr=0.01, eps=0.1)


def new_training(clip: nn.Module, name: str, optimizer: OptimizerConfig, epochs: int = EPOCHS) -> LocalTraining:
    """The method on the tiny CLIP; adapters larger than by default, and with GELU, as a ReLU's kink turns a rounding into a step."""
    backbone = Backbone.freeze(clip, "tiny")
    method = registry.build(MethodConfig(name, dim=8, scale=0.3, activation="gelu"), backbone)
    pixels = Pixels(noise(), backbone.preprocess, "crop", backbone.device)
    forward = Forward.from_prompts(method, GENERIC_TEMPLATE, CLASSES)
    work = LocalWork(epochs, BATCH, optimizer, seed=0)
    return LocalTraining(method.layout, Batches(forward, pixels, work))


def drawn(training: LocalTraining, client: int) -> Tensor:
    """A state of its own for each client [P], no number of it zero."""
    generator = rng.generator(0, "state", client)
    start = training.layout.pack(training.method.initial(generator))
    return start + 0.1 * torch.randn(start.shape, generator=generator)


def new_members(training: LocalTraining, initial: Tensor, private: bool) -> Members:
    """Clients that start from ``initial``, each with ``private`` tensors of its own if wanted; some have sent something before."""
    layout = training.layout
    states = ClientStates(layout, Start(initial), training.batches.work.optimizer, CPU)
    if private:
        states.own.update({client: drawn(training, client)[layout.exchanged_size :] for client in range(len(SIZES))})
    server = new_server(training.method, layout, initial)
    columns = layout.columns.get(POOL, slice(0, 0))
    server.pool.rows = {client: drawn(training, 10 + client)[columns] for client in POOLED if POOL in layout.columns}
    return Members(states, server)


class Round(NamedTuple):
    """One round of all clients: ``before`` and ``after`` [C,P], ``losses`` [C]."""

    before: Tensor
    after: Tensor
    losses: Tensor


def train_all(training: LocalTraining, clients_per_pass: int) -> Round:
    clients, members = new_clients(), new_members(training, drawn(training, len(SIZES)), private=True)
    before = members.states.gather(range(len(SIZES)), members.server.shared)
    trained = train_cohort(training, clients, members, 1, PassWidth(clients_per_pass))
    own = torch.stack([members.states.own[client.id] for client in clients])
    return Round(before, torch.cat([trained.uploads, own], dim=1), trained.losses)


@pytest.mark.parametrize("name", NAMES)
def test_a_stacked_client_is_the_client_alone(tiny_clip: nn.Module, name: str) -> None:
    """All in one stack, in two stacks, each alone; the frozen weights stay as they are."""
    weights = {key: tensor.clone() for key, tensor in tiny_clip.state_dict().items()}
    training = new_training(tiny_clip, name, own_optimizer(name))
    # Two stacks: 11, 9 and 1 images, then 3 and 4.
    assert [client.id for client in by_steps(new_clients(), training.batches.work)] == [3, 4, 0, 1, 2]
    alone, *stacked = (train_all(training, size) for size in (1, 3, len(SIZES)))
    views = training.layout.views
    for one in stacked:
        torch.testing.assert_close(one.losses, alone.losses, rtol=1e-5, atol=1e-6)
        for tensor, wanted in views(alone.after).items():
            moved = wanted - views(alone.before)[tensor]
            for client in range(len(SIZES)) if wanted.numel() else ():
                # A thousandth of the way that the tensor went, and what fp32 cannot tell apart.
                limit = 1e-3 * moved[client].abs().max() + 2e-7 * wanted[client].abs().max()
                error = (views(one.after)[tensor][client] - wanted[client]).abs().max()
                assert error <= limit, f"{tensor} of client {client} is off by {error:g}, more than {limit:g}"
    if name in TRAINED:
        assert ((alone.after - alone.before).abs().amax(dim=1) > 1e-3).all()  # the way is longer than the tolerance
    unlike = {round(loss, 4) for loss in alone.losses.tolist()}
    assert len(unlike) == len(SIZES)
    for key, tensor in tiny_clip.state_dict().items():
        assert torch.equal(tensor, weights[key]), key
    assert all(parameter.grad is None for parameter in tiny_clip.parameters())


# The zero-shot limit ---------------------------------------------------------------------------------------------------------------------

WORDS = "a photo of a"


class Limit(NamedTuple):
    """With these settings a method is CLIP as it comes, whatever its tensors hold but those that match ``initial`` or ``zero``.

    ``initial``: tensors that stay as training begins; ``zero``: tensors that are zero. ``others``: prompts of others can be read.
    ``away``: settings with which it is not, where the limit is one of settings alone.
    """

    settings: dict[str, Any]
    initial: str = "^$"
    zero: str = "^$"
    others: bool = False
    away: dict[str, Any] | None = None


ADAPTERS = Limit({"scale": 0.0}, away={"scale": 1.0})
PGP = {"own": FedPGPConfig(words=WORDS)}
LIMITS = {
    "zeroshot": [Limit({})],
    "pfedmma": [ADAPTERS],
    "local": [ADAPTERS],
    "fedavg_mma": [ADAPTERS],
    "promptfl": [Limit({"own": PromptFLConfig(words=WORDS)}, initial="prompt")],
    "fedpgp": [Limit(PGP, initial="sigma", zero="^u$"), Limit(PGP, initial="sigma", zero="^v$")],
    "pfedmoap": [
        Limit({"own": PFedMoAPConfig(words=WORDS)}, initial="prompt"),
        Limit({"own": PFedMoAPConfig(words=WORDS, mix=1.0)}, initial="prompt", zero=r"\.o\.", others=True),
        Limit({"own": PFedMoAPConfig(words=WORDS, mix=1.0)}, initial="prompt", zero=r"\.v\.|\.o\.bias", others=True),
    ],
    "fedclip": [Limit({}, zero="^gate")],  # an attention that is the same for all numbers of a feature
    "fedlora": [Limit({}, initial="."), Limit({}, zero=r"\.b$")],
    "promptfolio": [
        Limit({"own": PromptFolioConfig(words=WORDS)}, initial="prompt"),
        Limit({"own": PromptFolioConfig(words=WORDS, theta=0.0)}, initial="shared"),
        Limit({"own": PromptFolioConfig(words=WORDS, theta=1.0)}, initial="private"),
    ],
    "fedpha": [Limit({"own": FedPHAConfig(words=WORDS)}, initial="private")],
    "clipadapter": [Limit({"own": CLIPAdapterConfig(alpha=0.0)}, away={}), Limit({}, zero="^up")],
}
NO_LIMIT = {
    "fedotp": "it compares patches, of which CLIP says nothing, instead of the pooled feature",
    "fedtpg": "its one network gives tokens without words' order; that they can be those of X X X X is tested beside its mathematics",
    "fedmaple": "its tokens in the image tower are there whatever they hold, and are attended to",
    "fedmgp": "its tokens in the image tower are there whatever they hold, and are attended to",
}
CASES = [(name, limit) for name, limits in LIMITS.items() for limit in limits]


def test_every_method_has_a_zero_shot_limit_or_a_reason_for_none() -> None:
    assert not LIMITS.keys() & NO_LIMIT.keys()
    assert LIMITS.keys() | NO_LIMIT.keys() == set(NAMES)


def zero_shot_logits(clip: nn.Module, backbone: Backbone, images: Tensor) -> Tensor:
    """[N,K], by open_clip alone."""
    tokens = backbone.prompts(GENERIC_TEMPLATE, CLASSES).tokens
    return clip.logit_scale.exp() * clip.encode_image(images, normalize=True) @ clip.encode_text(tokens, normalize=True).T


def logits(method: Method, state: dict[str, Tensor], others: Others | None, images: Tensor) -> Tensor:
    """[C*B images, client by client] -> [C,B,K], as clients are tested."""
    forward = Forward.from_prompts(method, GENERIC_TEMPLATE, CLASSES)
    seen = {**state, **forward.fixed(state, Given(others))}
    return forward.logits(seen, forward.image_stem(images), forward.text_features(seen))


def limit_logits(clip: nn.Module, name: str, limit: Limit, images: Tensor) -> Tensor:
    """Logits of two clients in the limit; all tensors that the limit leaves free are drawn for each client."""
    method = registry.build(MethodConfig(name, **limit.settings), Backbone.freeze(clip, "tiny"))
    generator = rng.generator(0, "limit")
    start = method.initial(generator)
    state = {}
    for tensor, shape in method.shapes.items():
        state[tensor] = start[tensor].expand(2, *shape) + 0.3 * torch.randn(2, *shape, generator=generator)
        if re.search(limit.initial, tensor):
            state[tensor] = start[tensor].expand(2, *shape)
        elif re.search(limit.zero, tensor):
            state[tensor] = torch.zeros(2, *shape)
    others = None
    if limit.others:
        read = {tensor: torch.randn(2, 3, *method.shapes[tensor], generator=generator) for tensor in method.exchange}
        others = Others(read, torch.tensor([[True, True, True], [True, False, False]]))
    with torch.no_grad():
        return logits(method, state, others, images)


@pytest.mark.parametrize(("name", "limit"), CASES, ids=[name for name, _ in CASES])
def test_the_limit_is_zero_shot_clip(tiny_clip: nn.Module, name: str, limit: Limit) -> None:
    backbone = Backbone.freeze(tiny_clip, "tiny")
    images = torch.randn(6, 3, 32, 32, generator=rng.generator(0, "images"))
    wanted = zero_shot_logits(tiny_clip, backbone, images).view(2, 3, len(CLASSES))
    torch.testing.assert_close(limit_logits(tiny_clip, name, limit, images), wanted, rtol=1e-5, atol=1e-5)
    if name != "zeroshot":  # and away from the limit it is something else
        away = Limit(limit.settings if limit.away is None else limit.away, others=limit.others)
        assert (limit_logits(tiny_clip, name, away, images) - wanted).abs().max() > 1e-3


# Gradients -------------------------------------------------------------------------------------------------------------------------------

# Tensors without a gradient at first, since what they are multiplied with starts at zero.
LATER = {"fedlora": r"\.a$"}
# Tensors that have none at all: biases that add the same to all scores of a softmax (k), or to the logits of all classes (v, o).
NEVER = {"pfedmoap": r"^gating\.[kvo]\.bias$", "fedtpg": r"^k\.bias$"}


def gradients(training: LocalTraining, initial: Tensor) -> dict[str, float]:
    """The gradient of each trained tensor in one step from ``initial`` [P], as a share of the largest tensor's."""
    client = new_clients()[2]
    states, server = new_members(training, initial, private=False)
    params, state = states.gather([client.id], server.shared), states.gather_optimizer([client.id])
    training.train([client], params, state, 1, Given(server.others([client.id])))
    assert state["step"].item() == 1
    columns = training.layout.trained
    trained = training.layout.part(columns, state["momentum"][0, columns])
    norms = {name: float(view.norm()) for name, view in trained.items()}
    return {name: norm / max(norms.values()) for name, norm in norms.items()}


@pytest.mark.parametrize("name", TRAINED)
def test_every_trained_tensor_has_a_gradient(tiny_clip: nn.Module, name: str) -> None:
    """In the state in which training begins, and in one in which no tensor is zero."""
    training = new_training(tiny_clip, name, OptimizerConfig(lr=0.01, weight_decay=0.0), epochs=1)
    initial = training.layout.pack(training.method.initial(rng.generator(0, "init")))
    for start, without in ((initial, (LATER, NEVER)), (drawn(training, 0), (NEVER,))):
        shares = gradients(training, start)
        none = {tensor for tensor in shares for pattern in without if name in pattern and re.search(pattern[name], tensor)}
        assert {tensor for tensor, share in shares.items() if share < 1e-5} == none


# Whole runs ------------------------------------------------------------------------------------------------------------------------------

ROUNDS = 3
ACCURACY = {"local", "base", "novel", "hm", "hm_base_novel", "cm"}
ACCURACY |= {f"{column}_{kind}" for column in ("local", "base", "novel") for kind in ("std", "worst", "worst_decile")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return painted.paint(tmp_path_factory.mktemp("pictures"))


class Straight(NamedTuple):
    name: str
    folder: Path
    method: Method


@pytest.fixture(scope="module", params=NAMES)
def straight(request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """An unbroken run, evaluated after rounds 2 and 3, with a checkpoint after each."""
    name = request.param
    folder = tmp_path_factory.mktemp(name) / "run"
    more = [f"federation.rounds={ROUNDS}", "evaluation.every=2", "checkpoint.every=1", "checkpoint.keep=9"]
    main(painted.settings(pictures, folder, name, *more))
    backbone = load_backbone(BackboneConfig("tiny"), 0, CPU)
    return Straight(name, folder, registry.build(schema.load(folder / "config.yaml").method, backbone))


class Tensors(NamedTuple):
    """What a client answers with: its ``own`` {name: [1, *shape]}, and what it reads of ``others`` {name: [1, E, *shape]}."""

    own: dict[str, Tensor]
    others: dict[str, Tensor]


def exchanged_numbers(method: Method) -> tuple[int, int]:
    """How many numbers a client sends, and how many of these the server keeps for others."""
    sizes = {tensor: math.prod(method.shapes[tensor]) for tensor in method.exchange}
    return sum(sizes.values()), sum(size for tensor, size in sizes.items() if method.exchange[tensor] == POOL)


def test_a_run_records_every_round(straight: Straight) -> None:
    rows = small.metrics(straight.folder)
    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
    for row in rows:
        assert row.keys() - {"per_client", "shared_norm"} == {"round", "clients", "samples", "loss", "seconds", "comm", "accuracy", "split"}
        assert ("per_client" in row) == (row["accuracy"] is not None)
        assert ("shared_norm" in row) == bool(straight.method.exchange)
        assert math.isfinite(row["loss"]) and row["loss"] >= 0
        assert len(set(row["clients"])) == painted.PARTICIPANTS
        assert (row["accuracy"] is None) == (row["round"] == 1)
        assert row["split"] == (None if row["accuracy"] is None else "test")
    final = small.summary(straight.folder)["accuracy"]
    for accuracy in (rows[1]["accuracy"], rows[2]["accuracy"], final):
        assert accuracy.keys() == ACCURACY
        assert all(0 <= value <= 100 for value in accuracy.values())
    assert final == rows[-1]["accuracy"]


def test_a_run_changes_what_the_method_trains_and_no_more(straight: Straight) -> None:
    rows, tensors = small.metrics(straight.folder), small.final_tensors(straight.folder)
    exchanged, _ = exchanged_numbers(straight.method)
    trained = {f"{client}.private" for row in rows for client in row["clients"]}
    assert {name for name in tensors if name.endswith(".private")} == trained
    start = tensors["initial"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    # Little, too: pFedMoAP's gating has no gradient before the second round, only weight decay.
    if exchanged:
        assert (tensors["server.shared"] - start[:exchanged]).abs().max() > 1e-4
    for name in trained if len(start) > exchanged else ():
        private = tensors[name][exchanged if straight.name in OWN_ANSWERS else 0 :]
        assert (private - start[exchanged:]).abs().max() > 1e-5
    losses = [row["loss"] for row in rows]
    assert len(set(losses)) == ROUNDS


def test_a_run_counts_its_bytes(straight: Straight) -> None:
    exchanged, pooled = exchanged_numbers(straight.method)
    stored: set[int] = set()
    last: set[int] = set()
    for row in small.metrics(straight.folder):
        read = sum(min(straight.method.reads, len(stored - {client})) for client in row["clients"])
        stored |= set(row["clients"])
        behind = set(row["clients"]) - last if last and straight.method.picked else set()
        last = set(row["clients"])
        comm = row["comm"]
        assert comm["shared_parameters"] == exchanged
        assert comm["uplink_bytes"] == 4 * painted.PARTICIPANTS * exchanged
        assert comm["downlink_bytes"] == 4 * ((painted.PARTICIPANTS + len(behind)) * exchanged + read * pooled)
        assert comm["payload_bytes"] == 4 * (exchanged + painted.PARTICIPANTS * pooled)
        assert comm["collectives"] == (1 if exchanged else 0)
    summary = small.summary(straight.folder)
    assert summary["method"] == straight.name
    trained = {name: shape for name, shape in straight.method.shapes.items() if name not in straight.method.picked}
    assert summary["trained_parameters"] == sum(map(math.prod, trained.values()))
    assert summary["shared_parameters"] == exchanged
    assert summary["bytes_per_client_round"] == 4 * exchanged
    assert summary["bytes_down_per_client_round"] == 4 * (exchanged + min(straight.method.reads, painted.CLIENTS - 1) * pooled)
    for key in ("payload_bytes", "uplink_bytes", "downlink_bytes"):
        assert summary["comm"][key] == sum(row["comm"][key] for row in small.metrics(straight.folder))


def test_evaluate_gives_the_accuracy_of_the_run(straight: Straight, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(straight.folder)])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    summary = small.summary(straight.folder)
    assert (result["round"], result["accuracy"], result["zero_shot"]) == (ROUNDS, summary["accuracy"], summary["zero_shot"])
    assert result["per_client"] == summary["per_client"]
    if straight.name == "zeroshot":
        assert result["accuracy"] == result["zero_shot"]


def by_hand(straight: Straight, client: int) -> dict[str, Tensor]:
    """What a client answers with, out of the checkpoint: its own last tensors, but of those that are exchanged the server's or its own."""
    tensors, exchanged = small.final_tensors(straight.folder), exchanged_numbers(straight.method)[0]
    never = torch.cat([tensors["server.shared"], tensors["initial"][exchanged:]])
    own = tensors.get(f"{client}.private", never if straight.name in OWN_ANSWERS else never[exchanged:])
    flat = own if straight.name in OWN_ANSWERS else torch.cat([tensors["server.shared"], own])
    return Layout(straight.method.shapes, straight.method.exchange).views(flat)


def test_a_client_is_tested_exported_and_asked_with_the_same_tensors(straight: Straight, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `evaluate`, `export` and `predict`: its own ones, and those that it reads of others."""
    assert straight.method.answers == (OWN if straight.name in OWN_ANSWERS else SERVERS)
    tested: dict[int, Tensors] = {}
    state_of = Evaluator.state

    def watched(self: Evaluator, forward: Forward, answers: Answers, group: Sequence[Client]) -> State:
        if type(forward.method) is type(straight.method):
            own, others = answers.tensors([group[0].id]), answers.others([group[0].id])
            tested[group[0].id] = Tensors(own, others.tensors if others else {})
        return state_of(self, forward, answers, group)

    monkeypatch.setattr(Evaluator, "state", watched)
    evaluate.main([str(straight.folder), "federation.clients_per_pass=1"])
    assert tested.keys() == set(range(painted.CLIENTS))  # some of whom have not taken part in the last round
    for client, (own, others) in tested.items():
        kept = KeptClient.from_run(RunFolder(straight.folder), client)  # what is exported
        exported = kept.answer(lambda: pytest.fail("a backbone was asked for"))
        asked = PersonalCLIP.from_tensors(straight.method, exported.tensors, exported.others, kept.template)
        read = asked.others.tensors if asked.others else {}
        for name, tensor in by_hand(straight, client).items():
            assert torch.equal(own[name][0], tensor) and torch.equal(exported.tensors[name], tensor), name
            assert torch.equal(asked.state[name][0], tensor), name
        assert others.keys() == exported.others.keys() == read.keys()
        for name, tensor in others.items():
            assert torch.equal(tensor[0], exported.others[name]) and torch.equal(tensor, read[name])
    if straight.name in OWN_ANSWERS:  # or it would not matter
        last = small.metrics(straight.folder)[-1]["clients"][0]
        assert not torch.equal(tested[last].own["prompt"][0].flatten(), small.final_tensors(straight.folder)["server.shared"])


def test_a_resumed_run_is_the_unbroken_one(straight: Straight, pictures: Path, tmp_path: Path) -> None:
    """From the checkpoint after round 1, to the last bit."""
    folder = tmp_path / "run"
    shutil.copytree(straight.folder, folder)
    for round_ in (2, 3):
        shutil.rmtree(manifest.folder_of(folder / "checkpoints", round_))
    main([f"resume={folder}"])
    assert small.timeless(small.metrics(folder)) == small.timeless(small.metrics(straight.folder))
    got, wanted = small.final_tensors(folder), small.final_tensors(straight.folder)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    after, before = small.summary(folder), small.summary(straight.folder)
    assert (after["accuracy"], after["zero_shot"]) == (before["accuracy"], before["zero_shot"])
    for key in ("payload_bytes", "uplink_bytes", "downlink_bytes", "collectives"):
        assert after["comm"][key] == before["comm"][key]


def test_bf16_is_near_fp32(straight: Straight, pictures: Path, tmp_path: Path) -> None:
    main(painted.settings(pictures, tmp_path / "run", straight.name, "backbone.precision=bf16", "checkpoint.every=0"))
    losses = [row["loss"] for row in small.metrics(tmp_path / "run")]
    wanted = [row["loss"] for row in small.metrics(straight.folder)[:2]]
    assert losses == pytest.approx(wanted, rel=0.03)
    assert losses != wanted  # it is another precision


# Every method over domains, in which labels are Dirichlet, too; and one of each rule of exchange over Dirichlet labels alone.
PROTOCOLS = {
    "domains": ["data.clients=4", "data.beta=0.3", "data.shots=3", "federation.rounds=1"],
    "dirichlet": ["data.beta=0.3", "data.shots=0", "federation.rounds=2"],
}
SKEWED = [("domains", name) for name in NAMES] + [("dirichlet", name) for name in ("local", "fedotp", "fedclip", "pfedmoap")]


@pytest.mark.parametrize(("protocol", "name"), SKEWED)
def test_other_protocols(pictures: Path, tmp_path: Path, protocol: str, name: str) -> None:
    more = [f"data.protocol={protocol}", *PROTOCOLS[protocol], "evaluation.every=2", "checkpoint.every=0"]
    main(painted.settings(pictures, tmp_path / "run", name, *more))
    rows = small.metrics(tmp_path / "run")
    assert all(math.isfinite(row["loss"]) for row in rows)
    accuracy = rows[-1]["accuracy"]
    assert accuracy["novel"] is None
    assert all(0 <= accuracy[key] <= 100 for key in ("local", "base"))
    if protocol == "domains":
        assert accuracy["domains"].keys() == set(painted.DOMAINS)
        assert accuracy["domain_average"] == pytest.approx(sum(accuracy["domains"].values()) / 2)


# Draws -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_initial_state_follows_from_the_seed(tiny_clip: nn.Module, name: str) -> None:
    """Whatever torch's own generator stands at, which is left where it was."""
    method = registry.build(MethodConfig(name), Backbone.freeze(tiny_clip, "tiny"))
    states = []
    with torch.random.fork_rng(devices=[]):
        for number, seed in enumerate((0, 0, 1)):
            torch.manual_seed(number)
            before = torch.get_rng_state()
            states.append(method.initial(rng.generator(seed, "init")))
            assert torch.equal(torch.get_rng_state(), before)
    first, again, other = states
    assert {tensor: tuple(value.shape) for tensor, value in first.items()} == dict(method.shapes)
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in first.values())
    assert all(torch.equal(first[tensor], again[tensor]) for tensor in first)
    if name in TRAINED:
        assert any(not torch.equal(first[tensor], other[tensor]) for tensor in first)


# What is written about a method ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_method_names_its_paper(vit_b_16: Backbone, name: str) -> None:
    module = inspect.getmodule(type(registry.build(MethodConfig(name), vit_b_16)))
    assert re.search(r"arXiv \d{4}\.\d{5}|PMLR \d+", module.__doc__)


def test_the_page_says_what_clients_answer_with(vit_b_16: Backbone) -> None:
    page = (Path(registry.__file__).parent / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in page.splitlines() if re.match(r"\| `\w+`(, `\w+`)* \| (the server's|its own|CLIP)", line)]
    said = {name: answer.strip() for names, answer in rows for name in re.findall(r"`(\w+)`", names)}
    assert said.keys() == set(NAMES)
    for name, answer in said.items():
        method = registry.build(MethodConfig(name), vit_b_16)
        assert ("own last" in answer) == (method.answers == OWN) and answer.startswith("the server's") == bool(
            method.exchange and method.answers == SERVERS
        )


CONFIGS = Path(registry.__file__).parents[2] / "configs" / "methods"


@pytest.mark.parametrize("name", NAMES)
def test_the_file_of_a_method_says_its_defaults(name: str) -> None:
    written, built_in = schema.load(CONFIGS / f"{name}.yaml"), schema.load(None, [f"method.name={name}"])
    assert written.method == built_in.method
    assert written.optimizer == built_in.optimizer


def test_every_file_is_of_a_method() -> None:
    assert {path.stem for path in CONFIGS.iterdir()} == set(NAMES)
