"""What a data set is before it is divided: ordered class names, and up to three splits of labelled images that are read one by one.

Shape legend: n images of a split, H x W pixels.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pfedmma.system.errors import RankFailure, UserError


class Unreadable(RankFailure):
    """An image file that cannot be decoded; the message names it."""


GENERIC_TEMPLATE = "a photo of a {}."
LONGEST_TEMPLATE = 1000


def template_problem(template: str) -> str:
    """What is wrong with a class prompt, after "the class prompt"; empty if it is a text with a place for the class name."""
    if len(template) > LONGEST_TEMPLATE:
        return f"is longer than {LONGEST_TEMPLATE} characters"
    try:
        # A width is filled up, and so may fill the memory.
        if any(re.search(r"\d{4}", spec or "") for _, _, spec, _ in string.Formatter().parse(template)):
            return "fills the name up to more than 999 characters"
        texts = {template.format(name).encode() for name in ("a", "b")}
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        return f"cannot be filled in ({error})"
    return "" if len(texts) == 2 else "has no place for the name"


@dataclass(frozen=True)
class Split:
    """Labelled images of one split.

    ``labels`` [n] int64, indices into the source's class names. ``read(i)`` decodes image i: uint8 [3, H, W], sizes
    may differ from image to image; it raises `Unreadable`, which names the file, if that cannot be done. ``domains`` [n] are indices
    into the source's domains. ``files``: the path of each image, counted from a folder that holds them all, and its size in bytes.
    ``read_smaller(i, least)``: the same, with a shorter side of at most ``least`` pixels; None where all images are small.
    """

    labels: Tensor
    read: Callable[[int], Tensor]
    domains: Tensor | None = None
    files: tuple[tuple[str, int], ...] | None = None
    read_smaller: Callable[[int, int], Tensor] | None = None

    def reduced(self, least: int) -> Split:
        """The same images, of which none has a shorter side of more than ``least`` pixels."""
        read = self.read_smaller
        return self if read is None else replace(self, read=lambda index: read(index, least))

    def domain_of(self, positions: Tensor) -> Tensor:
        """The domain of each of these images [n]; 0 where there are no domains."""
        return torch.zeros_like(positions) if self.domains is None else self.domains[positions]


@dataclass(frozen=True)
class Source:
    """A data set before it is divided among clients."""

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    template: str = GENERIC_TEMPLATE
    own_template: str = ""  # the usual prompt of this data set, where it has one
    made_split: dict[str, Any] | None = None  # a split that was made up because the data came without one
    augment: str = "crop"  # what "auto" means for this source
    cameras: Mapping[str, float] = field(default_factory=dict)  # likewise: strength of the clients' cameras, by their kind
    medium: float = 0.0  # how far its pictures are prints, see `pfedmma.data.pixels.medium`
    domains: tuple[str, ...] = ()
    coarse: tuple[int, ...] | None = None  # superclass of each class, where there are superclasses
    notes: tuple[str, ...] = ()  # what a user should know of how it was read, a sentence each

    def with_smaller(self, name: str, least: int) -> Source:
        """The same, with the images of a split as `Split.reduced` gives them."""
        return replace(self, splits={**self.splits, name: self.splits[name].reduced(least)})

    def split_for_tests(self, name: str) -> Split:
        """The split ``test`` or ``val``; a `UserError` if the source has none of that name."""
        if name not in self.splits:
            raise UserError(f"evaluation.split: {self.name} has no '{name}' split; it has {', '.join(self.splits)}")
        return self.splits[name]


@dataclass(frozen=True)
class Wanted:
    """What is asked for when a data set is opened; each data set reads what concerns it.

    - ``root``: the folder with the data set, as the user gave it; empty for none.
    - ``seed``: of the run, for images that are drawn. ``size``: pixels a side of these.
    - ``test_fraction``: share of the images that becomes the test split, where none comes with the data.
    - ``all_classes``: rather than the usual few. ``download``: whether files may be fetched.
    - ``domains``: which of the domains and in which order; empty for all there are.
    """

    name: str
    root: str
    seed: int
    size: int
    test_fraction: float = 0.3
    all_classes: bool = False
    download: bool = False
    domains: tuple[str, ...] = ()


Open = Callable[[Wanted], Source]  # raises a UserError that says what was looked for and what is there
