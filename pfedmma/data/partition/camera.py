"""The cameras through which clients see their images, each client through its own, where ``data.camera`` or the data set asks for them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pfedmma import rng


def camera(seed: int, client: int, strength: float) -> Tensor:
    """A client's own camera: a colour matrix [3,3] that turns the hue and greys out, the same for all its images.

    ``strength`` 0..1: the hue turns by up to ``strength`` x 180 degrees either way, and up to ``strength`` of the colour is lost.
    """
    draw = torch.rand(2, generator=rng.generator(seed, "camera", client)).tolist()
    angle, grey = (2.0 * draw[0] - 1.0) * strength * math.pi, draw[1] * strength
    cos, sin = math.cos(angle), math.sin(angle)
    # Rotation about the grey axis (1,1,1)/sqrt(3), then a mix with the mean of the channels.
    along = torch.full((3, 3), 1.0 / 3.0)
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3.0)
    turn = cos * torch.eye(3) + (1.0 - cos) * along + sin * across
    return (1.0 - grey) * turn + grey * along
