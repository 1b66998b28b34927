"""Noise and masks from a key: SHAKE-256 of the key and what the numbers are for, read as random bits.

The key follows from the seed of the run, and then anybody who knows the seed can draw the same numbers: that measures what protection
costs, it does not protect. Or it is read from a file that nobody else has. SHAKE-256 is a cryptographic function. Normal numbers are of 32
random bits and rounded as fp64 rounds them; that this leaves a trace (Mironov, CCS 2012) is not counted in any epsilon.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.system.errors import UserError
from pfedmma.system.files import expanded

SHORTEST_KEY, LONGEST_KEY = 32, 4096  # bytes


@dataclass(frozen=True, repr=False)
class Draws:
    """Numbers that follow from a ``key`` and from what they are for."""

    key: bytes

    @classmethod
    def from_seed(cls, seed: int) -> Draws:
        """The same for everybody who knows the seed."""
        return cls(rng.key(seed, "privacy").to_bytes(8, "big"))

    @classmethod
    def from_file(cls, file: str) -> Draws:
        """From the bytes of a file. Raises a `UserError` that says what is wrong with it."""
        path = Path(expanded(file))
        try:
            with path.open("rb") as stream:
                key = stream.read(LONGEST_KEY + 1)
        except OSError as error:
            raise UserError(f"privacy.key_file: cannot read {path}: {error.strerror}") from None
        if not SHORTEST_KEY <= len(key) <= LONGEST_KEY:
            raise UserError(
                f"privacy.key_file: {path} must hold {SHORTEST_KEY} to {LONGEST_KEY} random bytes; make one with "
                f'python -c "import secrets, sys; sys.stdout.buffer.write(secrets.token_bytes(32))" > {path.name}'
            )
        return cls(key)

    def words(self, count: int, purpose: str, *ids: int) -> np.ndarray:
        """``count`` uniform numbers of 32 bits [count], uint32."""
        text = "/".join(str(part) for part in (len(self.key), purpose, *ids))
        return np.frombuffer(hashlib.shake_256(self.key + text.encode()).digest(4 * count), dtype="<u4")

    def mask(self, count: int, purpose: str, *ids: int) -> Tensor:
        """``count`` uniform whole numbers from 0 to 2^32 - 1 [count], int64."""
        return torch.from_numpy(self.words(count, purpose, *ids).astype(np.int64))

    def normal(self, count: int, purpose: str, *ids: int) -> Tensor:
        """``count`` independent standard normal numbers [count], fp64 (Box and Muller's way)."""
        pairs = -(-count // 2)
        radius, angle = (self.words(2 * pairs, purpose, *ids).reshape(2, pairs).astype(np.float64) + 0.5) / 2**32
        radius, angle = np.sqrt(-2.0 * np.log(radius)), 2.0 * math.pi * angle
        return torch.from_numpy(np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count])
