"""Small open_clip models for tests of methods."""

from __future__ import annotations

import open_clip
import torch
from torch import nn

from pfedmma import rng


def random_clip(vision: dict, text: dict) -> nn.Module:
    """A small CLIP whose every tensor is random: layer norms and biases too, which start as ones and zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval().requires_grad_(False)
    generator = rng.generator(0, "weights")
    for parameter in clip.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return clip
