"""The stem of class prompts, in parts of like length: a short prompt does not wait for the longest.

Nothing after the end of a prompt is ever read under a causal mask, so how far it is padded changes no result. ImageNet's 500 base classes
have prompts of 8 to 18 tokens, 9.4 on average: padded to one length they are 9,000 tokens, in three parts 5,075.

Shape legend: C clients, K prompts of which a part holds n, T tokens, W width.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma.clip.stems import TowerStem

MOST_PARTS = 3
# Tokens of one client that a further part must save. Its launches on a GPU cost about what these do with 8 clients in a pass (modelled,
# not measured). Small sets, whose prompts are few and much alike, stay whole.
LEAST_SAVED = 256


def lengths_of_parts(lengths: Sequence[int]) -> list[int]:
    """The lengths to which prompts of these ``lengths`` are padded, ascending: each goes to the least that is not shorter.

    At most `MOST_PARTS`, so chosen that all prompts together have the fewest tokens, each part counted as `LEAST_SAVED` more. Exact: the
    best divisions of the shorter prompts are extended, length by length.
    """
    counts = sorted(Counter(lengths).items())
    before = [0, *itertools.accumulate(count for _, count in counts)]  # prompts that are shorter than each of the distinct lengths
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}  # how many of the distinct lengths are served -> cost, lengths of the parts
    whole = []
    for _ in range(min(MOST_PARTS, len(counts))):
        best = {
            end: min(
                (cost + LEAST_SAVED + longest * (before[end] - before[start]), [*parts, longest])
                for start, (cost, parts) in best.items()
                if start < end
            )
            for end, (longest, _) in enumerate(counts, start=1)
            if end > min(best)
        }
        whole.append(best[len(counts)])
    return min(whole, key=lambda found: found[0])[1]


@dataclass(frozen=True)
class Part:
    """Some of the prompts: the stem of them, and which ``classes`` [n] they are."""

    stem: TowerStem
    classes: Tensor

    @property
    def tokens(self) -> int:
        """Prompts x tokens, of one client."""
        return math.prod(self.stem.output.shape[:2])

    def split(self, pieces: int) -> Iterator[Part]:
        """At most so many parts of equal size."""
        size = -(-len(self.classes) // pieces)
        for start in range(0, len(self.classes), size):
            yield Part(self.stem.rows(start, start + size), self.classes[start : start + size])


@dataclass(frozen=True)
class PromptStem:
    """What frozen blocks leave of K class prompts, the same for each of ``clients`` clients.

    ``order`` [K]: where each class stands in the ``parts`` put one after another; None where they are in the classes' order.
    """

    parts: tuple[Part, ...]
    order: Tensor | None = None
    clients: int = 1

    @classmethod
    def from_parts(cls, stems: Sequence[TowerStem], rows: Sequence[Tensor]) -> PromptStem:
        """From the stem and the prompts' numbers [n] of each part."""
        parts = tuple(Part(stem, classes) for stem, classes in zip(stems, rows, strict=True))
        return cls(parts, None if len(parts) == 1 else torch.cat(list(rows)).argsort())

    def repeat(self, clients: int) -> PromptStem:
        """The same stem for each of ``clients`` clients; nothing is copied before a part is needed."""
        return dataclasses.replace(self, clients=clients * self.clients)

    @property
    def blocks(self) -> int:
        """How many blocks they have been through."""
        return self.parts[0].stem.blocks

    @property
    def longest(self) -> int:
        """T of the longest part."""
        return max(part.stem.output.shape[1] for part in self.parts)

    @property
    def tokens(self) -> int:
        """Clients x prompts x tokens."""
        return self.clients * sum(part.tokens for part in self.parts)

    def planned(self, bytes_a_token: float, limit: float) -> Iterator[tuple[Part, bool]]:
        """The parts, and whether what they keep for their gradients may stay; where not, it is made again when gradients are taken.

        All of it stays as long as it is no more than ``limit`` bytes. Beyond that, parts are cut into pieces of a quarter of it: the first
        ones may stay, and one at a time of the others is made again beside them.
        """
        whole, piece = self.clients * bytes_a_token, limit / 4
        if self.tokens * bytes_a_token <= limit:
            yield from ((part, True) for part in self.parts)
            return
        room = limit - piece
        for part in self.parts:
            for own in part.split(math.ceil(part.tokens * whole / piece)):
                room -= own.tokens * whole
                yield own, room >= 0

    def in_order(self, outputs: Sequence[Tensor]) -> Tensor:
        """What became of parts that together are this stem, each [C*n,1,W] -> [C*K,1,W], client by client in the classes' order."""
        if len(outputs) == 1:
            return outputs[0]
        together = torch.cat([x.unflatten(0, (self.clients, -1)) for x in outputs], dim=1)
        return (together if self.order is None else together.index_select(1, self.order)).flatten(0, 1)
