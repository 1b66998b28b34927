"""Few-shot draws: some training images of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.data.sources.base import Source
from pfedmma.system.errors import UserError


def draw_shots(source: Source, label: int, shots: int, seed: int, domain: int | None = None) -> Tensor:
    """Positions [shots] of as many training images of a class (of one domain, if given), ascending; 0 takes all.

    Raises:
        UserError: there are fewer.
    """
    split = source.splits["train"]
    wanted = split.labels == label
    if domain is not None:
        wanted &= split.domain_of(torch.arange(len(wanted))) == domain
    pool = wanted.nonzero().squeeze(1)
    if len(pool) == 0 and not bool((split.labels == label).any()):
        raise UserError(
            f"data.root: class '{source.class_names[label]}' has 0 training images; put some in its folder, or take the class away"
        )
    count = shots or len(pool)
    if count > len(pool):
        of = "" if domain is None else f" of domain '{source.domains[domain]}'"
        raise UserError(
            f"data.shots: class '{source.class_names[label]}'{of} has {len(pool)} training images, fewer than {count} shots; "
            f"lower data.shots, or 0 takes all there are"
        )
    ids = (label,) if domain is None else (label, source.domains[domain])
    chosen = torch.randperm(len(pool), generator=rng.generator(seed, "shots", *ids))[:count]
    return pool[chosen].sort().values
