"""What the engine asks of a method, and what CLIP as it comes answers.

A method works on the client axis: its state is {tensor name: [C, *shape]}, and each call serves C clients at once. It reads the
frozen backbone through stems: the part of a forward pass that no trained tensor touches, which the engine computes without
gradients and may keep. `Method` answers every question as the frozen CLIP would; a method overrides what it changes.

Shape legend: C clients, B images a client, K classes, D embedding, E other clients whose tensors a client reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.clip.stems import Stem
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import MEAN as MEAN
from pfedmma.stack.rules import POOL as POOL
from pfedmma.stack.rules import SERVERS, Given, State
from pfedmma.stack.rules import UNIFORM as UNIFORM

SEEDS = "seeds"  # the entry of a state that is there in training only: a random number of each client for this step [C], int64


@dataclass(frozen=True)
class Method:
    """A method on a frozen backbone; this one is the frozen CLIP.

    Four answers say what is trained and what travels: ``shapes``, ``exchange``, ``frozen`` and ``reads``. Names outside ``exchange`` and
    ``frozen`` are private and never reach a collective, but for the rows of them that are `picked`.
    """

    backbone: Backbone

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor of one client. One empty tensor here, so that there is a client axis."""
        return {"nothing": (0,)}

    @property
    def exchange(self) -> Mapping[str, str]:
        """Tensor name -> rule, one of `RULES`."""
        return {}

    @property
    def frozen(self) -> Collection[str]:
        """Tensors that stay as they begin, the same for all clients: neither trained nor sent."""
        return ()

    @property
    def picked(self) -> Mapping[str, str]:
        """Exchanged tensor [s,...] -> the private one [G,...] of which a participant sends s rows, chosen by `pick` after training.

        What is exchanged is not trained then, and nobody but the participants gets the server's: in place of the rows that they sent.
        """
        return {}

    @property
    def layout(self) -> Layout:
        """One client's tensors as a vector."""
        return Layout(self.shapes, self.exchange, self.frozen, self.picked)

    @property
    def reads(self) -> int:
        """Of how many other clients a client reads the tensors under rule ``pool``."""
        return 0

    def received(self, others: int) -> int:
        """Parameters that a client is sent in a round, where so many ``others`` have something to read."""
        pooled = self.layout.columns.get(POOL, slice(0, 0))
        return self.layout.exchanged_size + min(self.reads, others) * (pooled.stop - pooled.start)

    def pick(self, state: State, keys: Sequence[int]) -> dict[str, Tensor]:
        """Which rows each client sends: {name in `picked`: [C,s] int64}, in the order in which the server averages them.

        ``state``: after training, beside what the server had before it. ``keys``: a number of each client and round, to draw by with
        `pfedmma.rng`.
        """
        raise NotImplementedError("a method that has `picked` says how")

    @property
    def answers(self) -> str:
        """What a client answers with in place of its exchanged tensors: `SERVERS` or `OWN`, see `pfedmma.stack.rules`."""
        return SERVERS

    @property
    def knows_classes(self) -> bool:
        """Whether it makes use of the classes that each client holds; only then is ``Given.held`` there."""
        return False

    @property
    def answers_by_classes(self) -> bool:
        """Whether it does so when it is tested, too; where not, ``Given.held`` is there in training alone."""
        return self.knows_classes

    @property
    def passes(self) -> int:
        """How many passes of a tower an image takes for one client; the more, the fewer clients or images go through at once."""
        return 1

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """Tensors whose learning rate is not ``optimizer.lr``."""
        return {}

    @property
    def in_products(self) -> Collection[str]:
        """Tensors that act in matrix products alone, in which mixed precision rounds them anyway: in training all are rounded at once."""
        return ()

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The state in which clients start, without the client axis.

        With ``method.private_init=own`` it is drawn once more for each client, of which that client's private tensors are taken.
        """
        return {name: torch.zeros(shape) for name, shape in self.shapes.items()}

    def image_stem(self, pixels: Tensor) -> Stem:
        """[N,3,S,S] normalised pixels -> what follows from them without trained tensors."""
        return self.backbone.image_features(pixels)

    def text_stem(self, prompts: Prompts) -> Any:
        """K prompts -> what follows from them without trained tensors."""
        return self.backbone.text_features(prompts)

    def fixed(self, state: State, given: Given, text_stem: Any) -> dict[str, Tensor]:
        """What stays the same while these clients train, or are tested, on these prompts: further entries [C,...] of the state.

        ``state`` is what they begin with, and is changed in place while they train. ``given`` is what they know besides.
        """
        return {}

    def image_features(self, state: State, stem: Any) -> Tensor:
        """Stem of C x B images (client by client) -> [C,B,...]."""
        return F.normalize(per_client(state, stem.value), dim=-1)

    def text_features(self, state: State, stem: Any) -> Tensor:
        """Stem of K prompts, the same for all clients -> [C,K,...]."""
        return shared_by(state, F.normalize(stem.value, dim=-1))

    def logits(self, state: State, images: Tensor, texts: Tensor) -> Tensor:
        """Features of images [C,B,...] and classes [C,K,...] -> [C,B,K]."""
        logits = cosine_logits(images, texts, self.backbone.logit_scale)
        return logits if self.backbone.logit_bias is None else logits + self.backbone.logit_bias

    def shared_outputs(self, state: State, stem: Any) -> Tensor | None:
        """Stem of C x B images (client by client) -> what the projection that both towers share gives of them [C,B,r], for diagnostics.

        None: the method has no such projection.
        """
        return None

    def loss(self, state: State, images: Tensor, texts: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Training loss of each client [C]; ``labels`` [C,B], ``weights`` [C,B] sum to 1 a client and are 0 on padding."""
        return cross_entropy(self.logits(state, images, texts), labels, weights)


@dataclass(frozen=True)
class Entry:
    """How a method is known, built, and what it can; each file of a method ends in its ``ENTRIES``.

    ``build``: from its settings and the backbone. ``settings``: the dataclass of its own section ``method.<name>``; None where it reads the
    adapters' settings in ``method`` itself, or none. ``optimizer``: its published defaults where they differ from the common ones (SGD, see
    `pfedmma.stack.optim.OptimizerConfig`). ``adapters``: what it trains are multi-modal adapters, which have a file format of their own.
    ``trains``: False for a method that trains nothing. ``origin``: the file of a method from outside this package.
    """

    name: str
    build: Callable[[Any, Backbone], Method]
    settings: type | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    adapters: bool = False
    trains: bool = True
    origin: str = ""


def count(state: State) -> int:
    """C, the number of clients of a state."""
    return next(iter(state.values())).shape[0]


def per_client(state: State, x: Tensor) -> Tensor:
    """[C*N,...] client by client -> [C,N,...]."""
    return x.unflatten(0, (count(state), -1))


def shared_by(state: State, x: Tensor) -> Tensor:
    """[...] -> [C,...], the same for each client, not copied."""
    return x.expand(count(state), *x.shape)


def cosine_logits(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """[C,B,D], [C,K,D] normalised -> scale x cosines [C,B,K], in fp32 under mixed precision too: bf16 has steps of 0.125 at 25."""
    with torch.autocast(images.device.type, enabled=False):
        return scale * torch.bmm(images.float(), texts.float().transpose(1, 2))


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of each client: [C,B,K], [C,B], [C,B] -> [C]."""
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return (each * weights).sum(dim=1)
