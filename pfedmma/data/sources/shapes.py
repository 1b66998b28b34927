"""The ``shapes`` data set: 120 colour-shape classes drawn by `pfedmma.data.drawn.drawing`, any number of images, from the seed."""

from __future__ import annotations

import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.data.drawn.drawing import COLOURS, PATTERNS, SHAPES, draw_random
from pfedmma.data.sources.base import Source, Split

PER_CLASS = {"train": 64, "val": 10, "test": 10}
CAMERA = 0.5  # strength of the clients' cameras, see pfedmma.data.partition.camera.camera


def classes() -> list[tuple[int, int]]:
    """(colour, shape) of each label, ordered so that the first half (base) and the second (novel) hold all colours and shapes.

    Novel classes are unseen combinations of seen parts.
    """
    grid = [(colour, shape) for shape in range(len(SHAPES)) for colour in range(len(COLOURS))]
    return sorted(grid, key=lambda pair: sum(pair) % 2)  # stable: even sums first


def load(seed: int, size: int) -> Source:
    """The source at ``size`` pixels a side; every image follows from (seed, split, class, position)."""
    return Source(
        name="shapes",
        class_names=tuple(f"{COLOURS[colour]} {SHAPES[shape]}" for colour, shape in classes()),
        splits={name: _split(name, seed, size) for name in PER_CLASS},
        augment="none",
        camera=CAMERA,
    )


def _split(name: str, seed: int, size: int) -> Split:
    count = PER_CLASS[name]
    pairs = classes()
    drawn: dict[int, Tensor] = {}  # label -> [count, 3, size, size], drawn when first asked for

    def read(index: int) -> Tensor:
        label, position = divmod(index, count)
        if label not in drawn:
            colour, shape = pairs[label]
            gen = rng.generator(seed, "shapes", name, label)
            patterns = torch.randint(len(PATTERNS), (count,), generator=gen)
            fill = lambda value: torch.full((count,), value)  # noqa: E731
            drawn[label] = draw_random(fill(shape), fill(colour), patterns, fill(0), gen, size)
        return drawn[label][position]

    return Split(torch.arange(len(pairs)).repeat_interleave(count), read)
