"""A sum that shows nothing but itself (Bonawitz et al., Practical Secure Aggregation, CCS 2017), as arithmetic.

Ways of norm at most C become whole numbers round(2^b u) modulo 2^32, with b such that no sum of a round leaves 2^31. Each pair of
participants shares a mask of uniform words, which the lower id adds and the higher one takes away: what a participant sends looks uniform,
and the sum of all is that of the whole numbers, bit for bit, however they are spread over ranks. Where a participant drops out, the others
open the masks that they share with it, and the server takes these out of the sum.

The exchange of keys and shares is not run. Its bytes are a model, `key_bytes`.

Shape legend: C participants that train on this rank, X exchanged parameters of one client.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from pfedmma.comm.ledger import EXCHANGE
from pfedmma.server.draws import Draws
from pfedmma.server.privacy import Bounded
from pfedmma.server.rules import Link, ServerRules, ServerState, Sum, Uploads

WORD = 2**32  # words are whole numbers below it, carried in int64
LARGEST_BITS = 30  # of a sum, besides its sign: one is left over for rounding
MASK = "mask"  # what their draws are for
WIDE = 12.0  # standard deviations that noise is taken to stay within; beyond lies less than 1e-32
KEY_BYTES = 32  # of a public key, and of a share of a secret


@dataclass(frozen=True)
class SecureSum:
    """The mean of masked ways, as an aggregate of the server."""

    bounded: Bounded

    @property
    def bits(self) -> int:
        """b: a way is told to 2^-b."""
        bound = self.bounded.asked.most * self.bounded.clip + WIDE * self.bounded.multiplier * self.bounded.clip
        return LARGEST_BITS - math.ceil(math.log2(bound))

    def __call__(self, rows: Tensor, uploads: Uploads, state: ServerState, rules: ServerRules, link: Link) -> Sum:
        expected, scale = self.bounded.asked.expected, 2.0**self.bits
        words = masked(whole(rows.cpu(), scale), uploads, self.bounded.draws)
        total = words.sum(dim=0)
        if rules.noise is not None and link.world.is_main:
            total += whole(expected * rules.noise(uploads, rows.shape[1]), scale)
        total = link.world.sum(total % WORD, EXCHANGE) % WORD
        total -= opened(uploads, rows.shape[1], self.bounded.draws)
        mean = signed(total % WORD).double() / scale / expected
        return Sum(mean.float().to(rows.device), rows.new_zeros(len(uploads.clients), 0))


def whole(ways: Tensor, scale: float) -> Tensor:
    """Real numbers -> round(scale x) modulo 2^32, int64."""
    return torch.round(ways.double() * scale).long() % WORD


def signed(words: Tensor) -> Tensor:
    """Numbers modulo 2^32 -> those from -2^31 to 2^31 - 1."""
    return (words + WORD // 2) % WORD - WORD // 2


def masked(words: Tensor, uploads: Uploads, draws: Draws) -> Tensor:
    """What the hosted participants send [C, X], given their ``words`` [C, X]: masked towards all that were asked, lost ones included."""
    sent = words.clone()
    row_of = dict(zip(uploads.hosted, sent, strict=True))
    for low, high in pairs(uploads):
        if low in row_of or high in row_of:
            mask = draws.mask(words.shape[1], MASK, uploads.round, low, high)
            if low in row_of:
                row_of[low] += mask
            if high in row_of:
                row_of[high] -= mask
    return sent % WORD


def opened(uploads: Uploads, size: int, draws: Draws) -> Tensor:
    """What lost participants have left in the sum [size]: the masks that the others share with them, each with its sign for the other."""
    total, lost = torch.zeros(size, dtype=torch.int64), set(uploads.lost)
    for low, high in pairs(uploads):
        if (low in lost) != (high in lost):
            mask = draws.mask(size, MASK, uploads.round, low, high)
            total += mask if high in lost else -mask
    return total


def pairs(uploads: Uploads) -> Iterator[tuple[int, int]]:
    """All pairs of those that were asked in the round, the lower id first."""
    return combinations(sorted([*uploads.clients, *uploads.lost]), 2)


def key_bytes(participants: int) -> int:
    """Bytes that one of m participants sends and receives for keys and shares in a round of the published protocol: a model.

    Two public keys to and from each, and of each other client and towards it encrypted shares and those that are opened: 2 m + (5 m - 4)
    pieces of 32 bytes.
    """
    return KEY_BYTES * (2 * participants + 5 * participants - 4) if participants else 0
