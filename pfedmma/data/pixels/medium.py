"""The medium in which all clients see all pictures, where ``data.medium`` or the data set asks for it: a halftone print.

Shape legend: S pixels a side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LINES = 8  # of dots across a picture
SHARPNESS = 10.0  # how steeply a dot ends: of ink that is 0.1 above the threshold about 3 / 4 is there


def screen(size: int) -> Tensor:
    """The thresholds of a halftone screen [S,S] from 0 to 1: dots on lines at 45 degrees, the same lines on a picture of any size."""
    axis = (torch.arange(size) + 0.5) / size
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    turn = 2.0 * math.pi * LINES / math.sqrt(2.0)
    return 0.5 + 0.25 * (torch.cos(turn * (down + right)) + torch.cos(turn * (right - down)))


def printed(images: Tensor, strength: float, thresholds: Tensor) -> Tensor:
    """Pictures [..., 3,S,S] from 0 to 1, mixed with their prints: each channel is there where it is above the threshold [S,S].

    ``strength`` from 0 (the pictures) to 1 (prints alone).
    """
    return torch.lerp(images, torch.sigmoid(SHARPNESS * (images - thresholds)), strength)
