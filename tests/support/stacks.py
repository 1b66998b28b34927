"""Methods on the tiny CLIP, clients of unequal size as one stack, and what tests them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pfedmma import rng
from pfedmma.accuracy.evaluator import Evaluator
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.stems import StemCache
from pfedmma.comm.assignment import Assignment
from pfedmma.comm.node import Nodes
from pfedmma.comm.world import World
from pfedmma.data.partition.camera import camera
from pfedmma.data.partition.federated import Client, EvaluationSet, FederatedData
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import GENERIC_TEMPLATE, Source, Split
from pfedmma.engine.batches import Batches, LocalWork
from pfedmma.engine.cohort import Members
from pfedmma.engine.local import LocalTraining
from pfedmma.methods import registry
from pfedmma.methods.base import Method
from pfedmma.methods.forward import Forward
from pfedmma.methods.registry import MethodConfig
from pfedmma.server.rules import SHARED, ServerRules
from pfedmma.server.server import Server
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.offload import Budget
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.stack.rules import POOL
from pfedmma.stack.start import Start

NAMES = ("cat", "dog", "bird", "fern", "red_fish")
NOVEL = ("apple", "pear", "plum")
# One image; less than a batch; exactly a batch; several batches, the last one ragged; and again, so that two clients run to the end.
SIZES = (1, 3, 4, 11, 9)
ALL = range(len(SIZES))
BATCH, EPOCHS = 4, 2
SGD = OptimizerConfig(lr=0.01)
_SERVER, _POOLED = 100, 200  # who is no client, for `drawn_state`


def noise(labels: Tensor) -> Split:
    """Images of noise, 32 x 32, with these labels."""
    pictures = torch.randint(256, (len(labels), 3, 32, 32), generator=rng.generator(0, "noise")).to(torch.uint8)
    return Split(labels, lambda index: pictures[index])


def in_turn(count: int) -> Tensor:
    """Labels 0 1 2 3 4 0 1 ..."""
    return torch.arange(count) % len(NAMES)


def new_clients(cameras: bool = True, tested: int = 0) -> list[Client]:
    """Clients of `SIZES` images, each with its own camera; ``tested`` test images are dealt out in turn."""
    cuts = torch.arange(sum(SIZES)).split(SIZES)
    tests = [torch.arange(tested)[client :: len(SIZES)] for client in ALL]
    labels = [own % len(NAMES) for own in cuts]
    held = [tuple(own.unique().tolist()) for own in labels]
    return [Client(i, held[i], own, labels[i], tests[i], camera(0, i, 0.5) if cameras else None) for i, own in enumerate(cuts)]


def new_method(clip: nn.Module, precision: str = "fp32", **settings: Any) -> Method:
    """A method on the tiny CLIP, with ``settings`` of `MethodConfig`."""
    return registry.build(MethodConfig(**settings), Backbone.freeze(clip, "tiny", precision))


def strong_adapters(clip: nn.Module, precision: str = "fp32", activation: str = "gelu") -> Method:
    """pFedMMA with alpha far above its default, so that the adapters matter.

    GELU, as at a ReLU's kink the last bit of a sum decides on a gradient: once in some millions of units, and then it is seen.
    """
    return new_method(clip, precision, dim=8, scale=0.3, blocks=3, activation=activation)


def new_training(method: Method, optimizer: OptimizerConfig = SGD, augment: str = "none", stems: StemCache | None = None) -> LocalTraining:
    """Local training of `new_clients`."""
    source = Source("noise", NAMES, {"train": noise(in_turn(sum(SIZES)))})
    pixels = Pixels(source, method.backbone.preprocess, augment, method.backbone.device)
    forward = Forward.from_prompts(method, GENERIC_TEMPLATE, NAMES)
    batches = Batches(forward, pixels, LocalWork(EPOCHS, BATCH, optimizer, seed=0), stems or StemCache(0.0))
    return LocalTraining(method.layout, batches)


def new_members(
    method: Method, optimizer: OptimizerConfig = SGD, trained: Iterable[int] = ALL, budget: Budget | None = None, spread: float = 0.1
) -> Members:
    """A server that has moved away from where it began, and tensors of their own of the clients that have ``trained``."""
    layout, device, trained = method.layout, method.backbone.device, list(trained)
    initial = layout.pack(method.initial(rng.generator(0, "init")))
    states = ClientStates(layout, Start(initial), optimizer, device, budget, method.answers)
    if trained:
        states.scatter(trained, torch.stack([drawn_state(method, client, spread) for client in trained]).to(device))
    shared = drawn_state(method, _SERVER, spread)[: layout.exchanged_size]
    server = Server(layout, {SHARED: shared}, World(0, 1, device), ServerRules(reads=method.reads))
    if POOL in layout.columns:
        sent = {client: drawn_state(method, _POOLED + client, spread).to(device) for client in trained}
        server.pool.rows = {client: row[layout.columns[POOL]] for client, row in sent.items()}
    return Members(states, server)


def drawn_state(method: Method, client: int, spread: float = 0.1) -> Tensor:
    """A state [P] that no other client has: no two could be swapped unseen.

    Biases start away from 0, so that 1e-5 of their size is above the rounding errors of their gradients' long sums.
    """
    generator = rng.generator(0, "state", client)
    start = method.layout.pack(method.initial(generator))
    return start + spread * torch.randn(start.shape, generator=generator)


def gathered(members: Members, ids: Iterable[int] = ALL) -> Tensor:
    """What clients begin their next round with [C, P]."""
    return members.states.gather(list(ids), members.server.shared)


def alone(ids: Iterable[int]) -> Assignment:
    """One rank has all clients."""
    return Assignment.from_work(Nodes.from_world(World(0, 1, torch.device("cpu"))), dict.fromkeys(ids, 1))


def serve(members: Members, shared: Tensor) -> None:
    """Let the server have ``shared`` [X]."""
    members.server.state = {**members.server.state, SHARED: shared}


def new_evaluator(
    method: Method, clients: Sequence[Client], base: Tensor, novel: Tensor, batch_size: int = 10, clients_per_pass: int = 2
) -> Evaluator:
    """Tests on images of noise: their labels ``base`` [n] among `NAMES`, and ``novel`` [m] of the first m among `NOVEL`."""
    test, backbone = noise(base), method.backbone
    pixels = Pixels(Source("noise", NAMES, {"train": test, "test": test}), backbone.preprocess, "none", backbone.device)
    sets = (EvaluationSet("test", names, torch.arange(len(own)), own) for names, own in ((NAMES, base), (NOVEL, novel)))
    return Evaluator(FederatedData(tuple(clients), *sets, GENERIC_TEMPLATE), pixels, batch_size, clients_per_pass)
