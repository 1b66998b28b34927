"""A method of two numbers, and its federated training written out: one client at a time, with torch's optimizers and no client axis.

A client's loss on an image of label y is (s + 2 p - y)^2 / 2, where s travels and p is private: every step can be done by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pfedmma.clip.backbone import Prompts
from pfedmma.clip.stems import Features, Stem, StemCache
from pfedmma.comm.world import World
from pfedmma.data.partition.federated import Client
from pfedmma.engine.batches import plan
from pfedmma.engine.cohort import Members, PassWidth, train_cohort
from pfedmma.engine.local import AFTER_THE_ROUNDS, LocalTraining
from pfedmma.engine.local_settings import LocalConfig
from pfedmma.methods.base import MEAN, Method
from pfedmma.server.controls import MeanControl
from pfedmma.server.rules import SHARED, ServerRules, Uploads
from pfedmma.server.server import Server
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.stack.rules import CONTROL, State
from pfedmma.stack.start import Start
from tests.support import stacks

START = {"s": torch.tensor([0.5]), "p": torch.tensor([-0.25])}
CLIENTS = stacks.new_clients()
IMAGES = sum(stacks.SIZES)


class Numbers(Method):
    """s and p; of images and prompts nothing is read."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {"p": (1,), "s": (1,)}

    @property
    def exchange(self) -> Mapping[str, str]:
        return {"s": MEAN}

    def image_stem(self, pixels: Tensor) -> Stem:
        return Features(pixels[:, 0, 0, :1])

    def text_stem(self, prompts: Prompts) -> Stem:
        return Features(torch.ones(len(prompts.tokens), 1))

    def loss(self, state: State, images: Tensor, texts: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return (weights * (state["s"] + 2 * state["p"] - labels) ** 2).sum(dim=1) / 2


def new_run(clip: nn.Module, config: LocalConfig, optimizer: OptimizerConfig) -> tuple[LocalTraining, Members]:
    """Local training as ``config`` wants it, and the state in which all clients and the server begin."""
    method = Numbers(stacks.new_method(clip).backbone)
    plain, layout = stacks.new_training(method, optimizer, stems=StemCache(1e6)), method.layout
    start = layout.pack(START)
    states = ClientStates(
        layout, Start(start), optimizer, torch.device("cpu"), answers=config.answers(method.answers), controls=config.controls
    )
    rules = ServerRules()
    if config.controls:
        control = MeanControl.from_images(layout, dict(enumerate(stacks.SIZES)), torch.device("cpu"))
        rules = ServerRules(controlled=control, begin={CONTROL: torch.zeros(1)})
    return config.applied(plain), Members(states, Server(layout, {SHARED: start[:1]}, World(0, 1, torch.device("cpu")), rules))


def run_rounds(training: LocalTraining, members: Members, cohorts: Sequence[Sequence[int]], width: int) -> None:
    """A round of each cohort, in place, ``width`` clients in a pass."""
    for round_, cohort in enumerate(cohorts, 1):
        trained = train_cohort(training, [CLIENTS[i] for i in cohort], members, round_, PassWidth(width))
        sizes = [stacks.SIZES[i] for i in cohort]
        members.server.round(Uploads(round_, cohort, sizes, cohort, trained.uploads, controls=trained.controls))


def fine_tune(training: LocalTraining, members: Members, width: int) -> None:
    """What every client does after the last round, in place."""
    train_cohort(training, CLIENTS, members, AFTER_THE_ROUNDS, PassWidth(width))


@dataclass
class Plain:
    """The federation as the papers write it: ``s`` and ``c`` of the server; by client p, control variate and personal (s, p)."""

    config: LocalConfig
    optimizer: OptimizerConfig
    s: float = 0.5
    c: float = 0.0
    p: dict[int, float] = field(default_factory=lambda: dict.fromkeys(stacks.ALL, -0.25))
    controls: dict[int, float] = field(default_factory=lambda: dict.fromkeys(stacks.ALL, 0.0))
    personal: dict[int, tuple[float, float]] = field(default_factory=lambda: dict.fromkeys(stacks.ALL, (0.5, -0.25)))

    def round(self, round_: int, cohort: Sequence[int]) -> None:
        """Each participant trains; the server averages."""
        received, c, images = self.s, self.c, sum(stacks.SIZES[i] for i in cohort)
        self.s = 0.0
        for i in cohort:
            s, p = nn.Parameter(torch.tensor([received])), nn.Parameter(torch.tensor([self.p[i]]))
            added = {
                "fedprox": lambda s: self.config.pull * (s - received),
                "scaffold": lambda s, i=i: torch.full((1,), c - self.controls[i]),
            }.get(self.config.rule, lambda s: 0.0)
            steps = 0  # that train s
            for epochs, trained in self.phases(s, p):
                taken = self.train(CLIENTS[i], round_, epochs, (s, p), trained, added)
                steps += taken if any(number is s for number in trained) else 0
            self.p[i] = p.item()
            self.s += stacks.SIZES[i] / images * s.item()
            if self.config.rule == "scaffold":  # c_i+ = c_i - c + (x - y_i) / (K lr)
                new = self.controls[i] - c + (received - s.item()) / (steps * self.optimizer.lr)
                self.c += stacks.SIZES[i] / IMAGES * (new - self.controls[i])
                self.controls[i] = new
            if self.config.rule == "ditto":
                s, p = (nn.Parameter(torch.tensor([number])) for number in self.personal[i])
                self.train(CLIENTS[i], round_, range(stacks.EPOCHS), (s, p), (s, p), lambda s: self.config.pull * (s - received))
                self.personal[i] = s.item(), p.item()

    def phases(self, s: nn.Parameter, p: nn.Parameter) -> list[tuple[range, tuple[nn.Parameter, ...]]]:
        """Epochs, and what they train."""
        first = self.config.private_epochs
        return {
            "together": [(range(stacks.EPOCHS), (s, p))],
            "private_first": [(range(first), (p,)), (range(first, stacks.EPOCHS), (s,))],
            "exchanged": [(range(stacks.EPOCHS), (s,))],
        }[self.config.trains]

    def fine_tuned(self, i: int, epochs: int, private_alone: bool) -> tuple[float, float]:
        """What a client answers with in the end."""
        s, p = nn.Parameter(torch.tensor([self.s])), nn.Parameter(torch.tensor([self.p[i]]))
        self.train(CLIENTS[i], AFTER_THE_ROUNDS, range(epochs), (s, p), (p,) if private_alone else (s, p), lambda s: 0.0)
        return s.item(), p.item()

    def train(
        self,
        client: Client,
        round_: int,
        epochs: range,
        both: tuple[nn.Parameter, nn.Parameter],
        trained: Sequence[nn.Parameter],
        added: Callable[[Tensor], Tensor | float],
    ) -> int:
        """Epochs of one client in place; gives the number of steps."""
        s, p = both
        work = stacks.LocalWork(epochs.stop, stacks.BATCH, self.optimizer, seed=0)
        batches = plan(client, work, round_)
        batches = batches[len(batches) // epochs.stop * epochs.start :]
        kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
        options = {"momentum": self.optimizer.momentum} if self.optimizer.name == "sgd" else {"eps": self.optimizer.eps}
        optimizer = kinds[self.optimizer.name](trained, lr=self.optimizer.lr, weight_decay=self.optimizer.weight_decay, **options)
        for rows in batches:
            optimizer.zero_grad()
            ((s + 2 * p - client.labels[rows]) ** 2).mean().div(2).backward()
            s.grad += added(s.detach())
            optimizer.step()
        return len(batches)
