"""Randomness that never depends on rank, world size or order of execution.

Every draw of a run comes from a generator made here from (seed, purpose, round, client, ...), so that 1, 2 or 8 ranks
draw the same numbers and a resumed run needs no saved generator state: its keys follow from the round it stands at.

Masks on the client axis have no generator: one hands out numbers in order, so what a client drew from it would depend on the device, on
which clients share the pass and on how far its batch was padded. The bit of an element is a hash of (the client's seed, what the mask is
for, the element's index in the client's own tensor): any part of a mask can be computed alone, on any device, with the same result.

Shape legend: C clients.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BITS = 32
_MASK = (1 << _BITS) - 1


def key(seed: int, purpose: str, *ids: int | str) -> int:
    """A 63-bit seed that is the same on every machine for the same (seed, purpose, ids)."""
    text = "/".join(str(part) for part in (seed, purpose, *ids))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *ids: int | str) -> torch.Generator:
    """A CPU generator keyed by ``seed``, what the numbers are for, and e.g. round and client id.

    Always on the CPU, whatever the device of the run: CUDA generators give other numbers than CPU ones.
    """
    return torch.Generator().manual_seed(key(seed, purpose, *ids))


def uniform(seed: int, purpose: str, *ids: int | str) -> float:
    """One number from 0 to below 1, without a generator: the upper 53 bits of the key."""
    return (key(seed, purpose, *ids) >> 10) / (1 << 53)


def keep_mask(seeds: Tensor, purpose: str | int, shape: Sequence[int], share: float) -> Tensor:
    """Which elements are kept: independent draws, True with probability ``share``.

    An element's draw depends on its index in row-major order, so a mask of more rows begins with the mask of fewer; the first axis may
    therefore be padded, the others may not.

    Args:
        seeds: one non-negative number of each client [C], int64; the mask lies on their device.
        purpose: what the mask is for; other purposes have other masks.
        shape: of one client's tensor, without the client axis.

    Returns:
        [C, *shape] bool.
    """
    count = math.prod(shape)
    assert count <= _MASK, f"{count} elements are more than {_BITS} bits can number"
    return keep_elements(seeds, purpose, torch.arange(count, device=seeds.device), share).view(len(seeds), *shape)


def keep_elements(seeds: Tensor, purpose: str | int, elements: Tensor, share: float) -> Tensor:
    """The part of a `keep_mask` at some indices in row-major order: [...] int64, the same for all clients -> [C,...] bool."""
    # Hashed apart from the key, so that the keys of two clients or purposes do not merely permute neighbouring indices; this
    # half of the work is shared by all clients.
    own = client_keys(seeds, purpose).view(-1, *[1] * elements.dim())
    return mix(mix(elements) ^ own) < round(share * (_MASK + 1))


def client_keys(seeds: Tensor, purpose: str | int) -> Tensor:
    """A 32-bit number for each client [C] from its 63-bit one and the purpose."""
    own = key(0, "place", purpose)
    low, high = seeds & _MASK, seeds >> _BITS
    return mix(mix(mix(low ^ (own & _MASK)) ^ high) ^ (own >> _BITS))


def mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers, held in int64, in which each bit of the result depends on all bits of ``x``.

    Two rounds of xor-shift and multiplication by an odd constant. Both constants are below 2^31, so that no product leaves int64, where
    what overflows could differ between devices.
    """
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD).bitwise_and_(_MASK)
    x ^= x >> 15
    x = x.mul_(0x735A2D97).bitwise_and_(_MASK)
    x ^= x >> 15
    return x
