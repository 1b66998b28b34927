"""Where images come from: a source has ordered class names and three splits of labelled, addressable images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

GENERIC_TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Split:
    """Labelled images of one split.

    ``labels`` [n] int64, indices into the source's class names. ``read(i)`` decodes image i: uint8 [3, H, W], sizes
    may differ from image to image; it raises a `UserError` that names the file if that cannot be done.
    """

    labels: Tensor
    read: Callable[[int], Tensor]


@dataclass(frozen=True)
class Source:
    """A data set before it is divided among clients."""

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    template: str = GENERIC_TEMPLATE
    augment: str = "crop"  # what "auto" means for this source
    camera: float = 0.0  # likewise
