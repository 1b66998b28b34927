"""Small open_clip models for tests of methods."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from torch import nn

from pfedmma import rng


def random_clip(vision: dict, text: dict, embedding: int = 16, spread: float = 0.1, **options: Any) -> nn.Module:
    """A small CLIP whose every tensor is random: layer norms and biases too, which start as ones and zeros.

    ``spread``: the deviation of what is added to each number; ``options``: of open_clip's ``CLIP``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.CLIP(embed_dim=embedding, vision_cfg=vision, text_cfg=text, **options).eval().requires_grad_(False)
    generator = rng.generator(0, "weights")
    for parameter in clip.parameters():
        parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return clip
