"""The data set ``shapes``: 120 classes of a colour and a shape, drawn by `pfedmma.data.drawn.drawing` from the seed.

Its pictures differ from those that the ``tiny`` CLIP knows in something that all clients share, the medium, and in something that each
client has for itself, its camera. Both strengths were chosen on zero-shot accuracy alone, before anything was trained: either shift alone
takes Base from above 99 % to between 70 and 75 %, so that there is as much to learn together as alone, and under both every client's Base
lies between 40 and 70 %.

Shape legend: S pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.data.drawn.drawing import COLOURS, PATTERNS, SHAPES, STYLES, draw_random
from pfedmma.data.sources.base import Open, Source, Split
from pfedmma.system.errors import UserError

PER_CLASS = {"train": 64, "val": 10, "test": 10}
CAMERAS = {"pattern": 0.18, "hue": 0.5}  # strength of the clients' cameras, see `pfedmma.data.partition.camera`
MEDIUM = 0.5  # see `pfedmma.data.pixels.medium`


def classes() -> list[tuple[int, int]]:
    """(colour, shape) of each label, ordered so that the first half (base) and the second (novel) hold all colours and shapes.

    Novel classes are unseen combinations of seen parts.
    """
    grid = [(colour, shape) for shape in range(len(SHAPES)) for colour in range(len(COLOURS))]
    return sorted(grid, key=lambda pair: sum(pair) % 2)  # stable: even sums first


def load(seed: int, size: int, domains: Sequence[str] = ()) -> Source:
    """The source at ``size`` pixels a side; every image follows from (seed, split, class, position), and from its domain.

    Drawings are flat. ``domains``: they are in these of `STYLES`, `PER_CLASS` images a class in each.

    Raises:
        UserError: there is no such style.
    """
    chosen = tuple(dict.fromkeys(domains))
    if unknown := next((name for name in chosen if name not in STYLES), None):
        raise UserError(f"data.domains: shapes has no domain '{unknown[:60]}'; it has {', '.join(STYLES)}")
    return Source(
        name="shapes",
        class_names=tuple(f"{COLOURS[colour]} {SHAPES[shape]}" for colour, shape in classes()),
        splits={name: _split(name, seed, size, chosen) for name in PER_CLASS},
        domains=chosen,
        augment="none",
        cameras=CAMERAS,
        medium=MEDIUM,
    )


def _split(name: str, seed: int, size: int, domains: tuple[str, ...]) -> Split:
    """Class by class, and in each domain by domain."""
    count, groups = PER_CLASS[name], max(1, len(domains))
    pairs = classes()
    drawn: dict[tuple[int | str, ...], Tensor] = {}  # label, or label and domain -> [count,3,S,S], drawn when first asked for

    def read(index: int) -> Tensor:
        group, position = divmod(index, count)
        label, domain = divmod(group, groups)
        ids = (label, domains[domain]) if domains else (label,)
        if ids not in drawn:
            colour, shape = pairs[label]
            gen = rng.generator(seed, "shapes", name, *ids)
            patterns = torch.randint(len(PATTERNS), (count,), generator=gen)
            style = STYLES.index(domains[domain] if domains else "flat")
            shapes, colours, styles = (torch.full((count,), value) for value in (shape, colour, style))
            drawn[ids] = draw_random(shapes, colours, patterns, styles, gen, size)
        return drawn[ids][position]

    labels = torch.arange(len(pairs)).repeat_interleave(count * groups)
    return Split(labels, read, torch.arange(groups).repeat_interleave(count).repeat(len(pairs)) if domains else None)


DATA_SETS: dict[str, Open] = {"shapes": lambda wanted: load(wanted.seed, wanted.size, wanted.domains)}
