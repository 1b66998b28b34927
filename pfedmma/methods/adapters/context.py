"""Learned context: what the prompt methods share.

A prompt is ``[SOS] context name . [EOS]``; the context's token embeddings are learned, everything else is CLIP's.

Shape legend: C clients, K classes, T tokens, W text width, L context tokens, N contexts of a client, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.clip.prompt_stem import PromptStem
from pfedmma.clip.towers import Places
from pfedmma.methods.base import Method
from pfedmma.system import checks
from pfedmma.system.errors import UserError
from pfedmma.system.options import setting

STD = 0.02  # of drawn context, as CLIP's own token embeddings


@dataclass(frozen=True)
class ContextConfig:
    """A learned context: its length, and how it begins."""

    context: int = setting(0, "learned context tokens; 0: 16, or a quarter of the text tower's context length where that is shorter")
    words: str = setting("", "words that the context begins as, and as long as they are; empty: it begins at random")

    def __post_init__(self) -> None:
        checks.at_least("context", self.context, 0)


def context_length(backbone: Backbone, config: ContextConfig) -> int:
    """How many tokens: those of its words, or as many as it says, or (0) 16, and a quarter of the text tower's reach where that is less.

    Raises:
        UserError: they leave no room for a class name, or the backbone's prompts are not CLIP's.
    """
    refuse_other_prompts(backbone)
    reach = len(backbone.text.positions)
    length = len(word_ids(backbone, config.words)) if config.words else config.context or min(16, reach // 4)
    if length + 4 > reach:  # start, name, full stop and end
        raise UserError(f"method: {length} context tokens leave no room for a class name in the {reach} tokens that {backbone.name} reads")
    return length


def refuse_other_prompts(backbone: Backbone) -> None:
    """Raise a `UserError` where prompts have no start token behind which a context could stand."""
    if not backbone.has_clips_tokenizer:
        raise UserError(
            f"method: learned context stands in prompts of CLIP's own tokenizer, and {backbone.name} has another; "
            f"adapters (pfedmma) and fedlora run on it"
        )


def word_ids(backbone: Backbone, words: str) -> list[int]:
    """Token ids of ``words``, without start and end."""
    return backbone.tokenizer.encode(words)


class WordsConfig(Protocol):
    """Settings of words before a class name: the first ``context`` tokens of ``words`` are learned."""

    @property
    def context(self) -> int: ...

    @property
    def words(self) -> str: ...


class LeadingWords(Method):
    """A method that learns what stands in place of the leading words of ``[SOS] words name . [EOS]``."""

    settings: WordsConfig
    section: ClassVar[str]  # of its settings

    @property
    def words(self) -> str:
        """What stands before the class name; like in class names, "_" is read as a space."""
        return self.settings.words.replace("_", " ")

    def replaced_words(self) -> list[int]:
        """Token ids of the words in whose place the learned tokens stand. Raises a `UserError` where there are too few of them."""
        return leading_words(self.backbone, self.words, self.settings.context, f"{self.section}.context")

    def text_stem(self, prompts: Prompts) -> PromptStem:
        """The embedded prompts, whatever template ``prompts`` were made with.

        Raises:
            UserError: a prompt is too long for the text tower.
        """
        return worded_stem(self.backbone, self.words, prompts.names)


def leading_words(backbone: Backbone, words: str, tokens: int, where: str) -> list[int]:
    """Token ids of the first ``tokens`` of ``words``.

    Raises:
        UserError: about the setting ``where``, if there are fewer; or the backbone's prompts are not CLIP's.
    """
    refuse_other_prompts(backbone)
    ids = word_ids(backbone, words)
    if tokens > len(ids):
        raise UserError(f"{where}: '{words}' has only {len(ids)} tokens, fewer than {tokens}")
    return ids[:tokens]


def initial_context(backbone: Backbone, length: int, words: str, generator: torch.Generator) -> Tensor:
    """[L,W]: the embeddings of ``words``, or N(0, 0.02^2) without."""
    if words:
        return backbone.text.token_embedding[word_ids(backbone, words)].cpu()
    return torch.randn(length, backbone.text.width, generator=generator) * STD


def context_stem(backbone: Backbone, names: tuple[str, ...], length: int) -> PromptStem:
    """The embedded prompts of the classes ``names``, with ``length`` placeholders where the learned context goes.

    Raises:
        UserError: a name is too long for the text tower beside the context.
    """
    return worded_stem(backbone, " ".join(["X"] * length), names)  # X is one token


def worded_stem(backbone: Backbone, words: str, names: tuple[str, ...]) -> PromptStem:
    """The embedded prompts ``[SOS] words name . [EOS]`` of the classes ``names``.

    Raises:
        UserError: a name is too long for the text tower beside the words.
    """
    reach, length = len(backbone.text.positions), len(word_ids(backbone, words))
    for name in names:
        size = length + len(word_ids(backbone, f"{name.replace('_', ' ')}.")) + 2
        if size > reach:
            raise UserError(
                f"method: the prompt of class '{name}' with {length} context tokens has {size} tokens; {backbone.name} reads {reach}"
            )
    return backbone.text_stem(backbone.prompts("{}.", [f"{words} {name}" for name in names]), 0)  # words may hold braces


def prompted(backbone: Backbone, context: Tensor) -> Places:
    """The places of a text tower in which each client's context [C,L,W] stands after the start token."""
    clients, length = context.shape[:2]
    positioned = context + backbone.text.positions[1 : 1 + length]

    def tokens(block: int, x: Tensor) -> Tensor:
        if block > 1:
            return x
        x = x.unflatten(0, (clients, -1))
        own = positioned.unsqueeze(1).expand(-1, x.shape[1], -1, -1)
        return torch.cat([x[:, :, :1], own, x[:, :, 1 + length :]], dim=2).flatten(0, 1)

    return Places(tokens=tokens)


def prompt_features(backbone: Backbone, stem: PromptStem, context: Tensor) -> Tensor:
    """Normalised text features [C,K,D] of the prompts in ``stem`` with each of the contexts [C,L,W]."""
    x = backbone.text.finish(stem.repeat(len(context)), prompted(backbone, context))
    return F.normalize(backbone.text.features(x).float().unflatten(0, (len(context), -1)), dim=-1)


def features_of_several(backbone: Backbone, stem: PromptStem, contexts: Sequence[Tensor]) -> Tensor:
    """Normalised text features [C,N,K,D] of the prompts in ``stem`` with each of a client's N contexts, each [C,L,W].

    Those of a client lie side by side: one pass of the tower for all.
    """
    together = torch.stack(list(contexts), dim=1).flatten(0, 1)
    return prompt_features(backbone, stem, together).unflatten(0, (-1, len(contexts)))
