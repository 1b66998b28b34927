"""FedMaPLe: multi-modal prompts (MaPLe: Khattak et al. 2023, arXiv 2210.03117), averaged over the participants.

The first n tokens of "a photo of a" are learned, and so are n tokens that replace them at the entrance of each of the next blocks; a
linear layer of its own turns the tokens of each depth into tokens of the image tower. Trained, all exchanged by weighted mean:
``context`` [n,Wt] and ``projection.0.weight`` [Wv,Wt], ``projection.0.bias`` [Wv], which act in block 1 (blocks are numbered from 1);
``deep.i`` [n,Wt] and ``projection.i.*``, which act in block i + 1, for i from 1 to depth - 1.

A client answers with the server's tensors; the public code of MaPLe is not federated, and says nothing of it.

Deliberately unlike the public code: the image tower's width is read from the backbone, not fixed at 768; trained tensors are fp32
(there, all or in part fp16); the context always begins as words, which must hold at least n tokens (there, random and with
placeholders for words where n exceeds 4); there is no schedule with a warm-up epoch, and optimizer and batch size are those of the run
(there SGD at 0.0035 on batches of 4); drawn values come from the run's own seed.

Shape legend: C clients, N sequences of one client, n context tokens, T tokens, Wt and Wv widths of the towers, W either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip.backbone import Backbone
from pfedmma.clip.prompt_stem import PromptStem
from pfedmma.clip.stems import TowerStem
from pfedmma.clip.towers import Places
from pfedmma.methods.adapters.context import STD, LeadingWords
from pfedmma.methods.adapters.image_tokens import appended, features_without, for_each
from pfedmma.methods.base import Entry, count, per_client
from pfedmma.stack.linear import apply_linear, initial_linear, linear_shapes
from pfedmma.stack.rules import MEAN, State
from pfedmma.system import checks
from pfedmma.system.errors import UserError
from pfedmma.system.options import setting


@dataclass(frozen=True)
class FedMaPLeConfig:
    """FedMaPLe: learned tokens in the lowest blocks of both towers."""

    context: int = setting(2, "leading tokens of words that are learned")
    words: str = setting("a photo of a", "what stands before the class name")
    depth: int = setting(0, "lowest blocks in which tokens are learned; 0: 9, or the depth of the shallower tower where that is less")

    def __post_init__(self) -> None:
        checks.at_least("context", self.context, 1)
        checks.at_least("depth", self.depth, 0)


@dataclass(frozen=True)
class FedMaPLe(LeadingWords):
    """Prompts in the lowest ``depth`` blocks of both towers, the same for all clients."""

    settings: FedMaPLeConfig
    depth: int
    section = "method.fedmaple"

    @classmethod
    def from_settings(cls, settings: FedMaPLeConfig, backbone: Backbone) -> FedMaPLe:
        least = min(backbone.visual.depth, backbone.text.depth)
        if settings.depth > least:
            raise UserError(
                f"method.fedmaple.depth: {backbone.name} has only {least} blocks in its shallower tower, fewer than {settings.depth}"
            )
        method = cls(backbone, settings, settings.depth or min(9, least))
        method.replaced_words()  # or there are too few of them
        return method

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        text, visual = self.backbone.text.width, self.backbone.visual.width
        shapes: dict[str, tuple[int, ...]] = {}
        for number in range(self.depth):
            shapes[learned(number)] = (self.settings.context, text)
            shapes |= linear_shapes(f"projection.{number}", text, visual)
        return shapes

    @property
    def exchange(self) -> dict[str, str]:
        return dict.fromkeys(self.shapes, MEAN)

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Words, N(0, 0.02^2), and linear layers as torch makes them: one of its own for block 1, one in common for all further blocks."""
        width = self.backbone.text.width
        tensors = {"context": self.backbone.text.token_embedding[self.replaced_words()].cpu()}
        first, further = (initial_linear("", width, self.backbone.visual.width, generator) for _ in range(2))
        for number in range(self.depth):
            if number > 0:
                tensors[learned(number)] = torch.randn(self.settings.context, width, generator=generator) * STD
            tensors |= {f"projection.{number}{part}": tensor.clone() for part, tensor in (further if number else first).items()}
        return tensors

    def image_stem(self, pixels: Tensor) -> TowerStem:
        return self.backbone.image_stem(pixels, 0)

    def text_features(self, state: State, stem: PromptStem) -> Tensor:
        """Stem of K prompts -> [C,K,D]; each client's tokens stand after the start token."""
        tower, n = self.backbone.text, self.settings.context

        def tokens(block: int, x: Tensor) -> Tensor:
            if block > self.depth:
                return x
            own = state[learned(block - 1)]
            if block == 1:  # a word's place has its positional embedding; further down tokens have none
                own = own + tower.positions[1 : 1 + n]
            return torch.cat([x[:, :1], for_each(own, x), x[:, 1 + n :]], dim=1)

        x = tower.finish(stem.repeat(count(state)), Places(tokens=tokens))
        return F.normalize(per_client(state, tower.features(x).float()), dim=-1)

    def image_features(self, state: State, stem: TowerStem) -> Tensor:
        """Stem of C*N images -> [C,N,D]; each client's projected tokens stand after the patches."""
        tower, n = self.backbone.visual, self.settings.context

        def tokens(block: int, x: Tensor) -> Tensor:
            if block > self.depth:
                return x
            own = self.projected(state, block - 1)
            if block == 1:
                return appended(tower, own, x)
            return torch.cat([x[:, :-n], for_each(own, x)], dim=1)

        x = features_without(tower, tower.finish(stem, Places(tokens=tokens)), stem.pool, n)
        return F.normalize(per_client(state, x.float()), dim=-1)

    def projected(self, state: State, number: int) -> Tensor:
        """The learned tokens of block ``number`` + 1 as tokens of the image tower [C,n,Wv], in fp32 as the tokens around them."""
        return apply_linear(state, f"projection.{number}", state[learned(number)]).float()


def learned(number: int) -> str:
    """The name of the text tokens that enter block ``number`` + 1."""
    return f"deep.{number}" if number else "context"


ENTRIES = (Entry("fedmaple", FedMaPLe.from_settings, FedMaPLeConfig),)
