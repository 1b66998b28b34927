"""A folder of drawn pictures in two domains, and runs on it that take half a second with any method."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from pfedmma import rng
from pfedmma.data.drawn.drawing import COLOURS, SHAPES, STYLES, draw_random
from tests.support import small

# 4 colours x 3 shapes: 6 base and 6 novel classes. Over 5 clients the base classes are four runs of one and one of two: clients of 5 and
# of 10 images, thus of 2 and of 4 steps, the last one of each epoch ragged. 3 clients take part in a round.
KINDS = [(colour, shape) for colour in (0, 3, 5, 9) for shape in (0, 2, 3)]
DOMAINS = ("flat", "night")
PICTURES = 4  # of a class in each domain, one of them for tests
CLIENTS, PARTICIPANTS = 5, 3

# The shipped weights, which know these pictures: with random ones all classes are much alike, and so are all losses.
SETTINGS = [
    "backbone.pretrained=auto",
    "data.name=domainfolder",
    "data.augment=crop",
    "data.camera=0.2",
    f"data.clients={CLIENTS}",
    "data.shots=5",
    "federation.participation=0.6",
    "federation.batch_size=3",
]


def paint(root: Path) -> Path:
    """Draw the pictures below ``root``, ``<domain>/<class>/<number>.png``; returns ``root``."""
    for domain in DOMAINS:
        for colour, shape in KINDS:
            folder = root / domain / f"{COLOURS[colour]}_{SHAPES[shape]}"
            folder.mkdir(parents=True)
            shapes, colours, plain, style = (torch.full((PICTURES,), value) for value in (shape, colour, 0, STYLES.index(domain)))
            pictures = draw_random(shapes, colours, plain, style, rng.generator(0, "painted", domain, colour, shape))
            for number, picture in enumerate(pictures):
                Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return root


def settings(root: Path, run_dir: Path, name: str, *more: str) -> list[str]:
    """The small run of the method ``name`` on the pictures below ``root``, with ``more`` settings that take precedence."""
    return small.settings(run_dir, *SETTINGS, f"data.root={root}", f"method.name={name}", *more)
