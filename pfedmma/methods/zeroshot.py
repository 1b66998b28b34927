"""CLIP as it comes (Radford et al. 2021, arXiv 2103.00020): nothing is trained, nothing travels, all clients answer alike."""

from __future__ import annotations

from dataclasses import dataclass

from pfedmma.methods.base import Entry, Method


@dataclass(frozen=True)
class ZeroShot(Method):
    """Cosines of the frozen towers' features."""


ENTRIES = (Entry("zeroshot", lambda settings, backbone: ZeroShot(backbone), trains=False),)
