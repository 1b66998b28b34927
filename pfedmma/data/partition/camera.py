"""The cameras through which clients see their images, each client through its own, where ``data.camera`` or the data set asks for them.

Shape legend: C clients, N images a client, S pixels a side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma import rng

CELLS = 32  # of a pattern, a side
KINDS = ("pattern", "hue")


@dataclass(frozen=True)
class Camera:
    """What a client's camera does to every picture, in training and in tests: its ``colours`` [..., 3,3] are mixed, or ``pattern``
    [..., 3,CELLS,CELLS] is added, a grid of cells over the whole picture; one of the two is None. Leading axes are those of clients."""

    colours: Tensor | None = None
    pattern: Tensor | None = None

    @classmethod
    def stacked(cls, cameras: Sequence[Camera]) -> Camera:
        """Of clients [C] whose cameras are of one kind, to be applied to their images [C,N,3,S,S]."""

        def stack(parts: list[Tensor]) -> Tensor | None:
            return torch.stack(parts)[:, None] if parts else None

        colours = [camera.colours for camera in cameras if camera.colours is not None]
        return cls(stack(colours), stack([camera.pattern for camera in cameras if camera.pattern is not None]))

    def first(self, clients: int) -> Camera:
        """Those of the first clients."""
        return Camera(*(part if part is None else part[:clients] for part in (self.colours, self.pattern)))

    def at(self, size: int) -> Camera:
        """The same for pictures of S x S alone: what has to be done for each size is done."""
        return self if self.pattern is None else Camera(self.colours, _at(self.pattern, size))

    def see(self, images: Tensor) -> Tensor:
        """Pictures [..., 3,S,S] from 0 to 1 as they are seen, from 0 to 1; a cell covers the same part of a picture of any size."""
        if self.colours is not None:
            images = (self.colours.to(images.device) @ images.flatten(-2)).view(images.shape)
        if self.pattern is not None:
            images = images + _at(self.pattern, images.shape[-1]).to(images.device)
        return images.clamp(0.0, 1.0)


def _at(pattern: Tensor, size: int) -> Tensor:
    """[..., 3,CELLS,CELLS] -> [..., 3,S,S]; one of that size already stays."""
    if pattern.shape[-1] == size:
        return pattern
    pixel = torch.arange(size, device=pattern.device)
    cell = (pixel * CELLS + CELLS // 2) // size  # in which a pixel's centre lies
    return pattern[..., cell[:, None], cell]


def camera(seed: int, client: int, strength: float, kind: str = "pattern") -> Camera:
    """A client's own camera, the same for all its images; it follows from (seed, client).

    - ``pattern``: the fixed pattern of a sensor, one number a channel and cell. All clients' patterns have the root mean square
      ``strength`` (of the whole range 0..1), and their directions are uniform on the sphere. So no client's shift is larger than another's,
      and as the sphere has 3,072 dimensions, hardly any direction hurts more than another.
    - ``hue``: the hue turns by up to ``strength`` x 180 degrees either way, and up to ``strength`` of the colour is lost: shifts of very
      unequal strength. Version 0.1.0 had no other.
    """
    generator = rng.generator(seed, "camera", client)
    if kind == "hue":
        turn, fade = torch.rand(2, generator=generator).tolist()
        return Camera(colours=_hue(turn, fade, strength))
    direction = torch.randn(3, CELLS, CELLS, generator=generator)
    return Camera(pattern=direction * (strength / direction.square().mean().sqrt()))


def _hue(turn: float, fade: float, strength: float) -> Tensor:
    """A colour matrix [3,3] of two numbers from 0 to 1: how far hues turn, and how far they fade."""
    angle, grey = (2.0 * turn - 1.0) * strength * math.pi, fade * strength
    cos, sin = math.cos(angle), math.sin(angle)
    # Rotation about the grey axis (1,1,1)/sqrt(3), then a mix with the mean of the channels.
    along = torch.full((3, 3), 1.0 / 3.0)
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3.0)
    turned = cos * torch.eye(3) + (1.0 - cos) * along + sin * across
    return (1.0 - grey) * turned + grey * along
