"""Images that cannot be decoded are left out before the first round, on all ranks alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pfedmma.comm.assignment import Assignment
from pfedmma.data.partition.federated import FederatedData, without
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import Unreadable
from pfedmma.system.console import warn


def leave_out_unreadable(parts: Sequence[FederatedData], pixels: Pixels, assignment: Assignment) -> tuple[list[FederatedData], int]:
    """The data without images that cannot be decoded, and how many these are. All ranks enter and agree.

    ``parts``: of the same clients and training images, tested on different splits. Each rank tries the training images of the clients at
    home there and its part of the test images; what it decodes is kept.

    Raises:
        UserError: a client or a test set would be left without an image.
    """
    world = assignment.world
    tests = [images for federated in parts for images in federated.sets().values()]
    mine = [("train", client.train) for client in parts[0].clients if assignment.keeps(client.id)]
    mine += [(images.split, images.indices[world.rank :: world.size]) for images in tests]
    # A mark for each image of each split; the splits, and so the sums, are the same on all ranks, in the same order.
    splits = ["train", *(images.split for images in tests)]
    marks = {split: torch.zeros(len(pixels.source.splits[split].labels)) for split in splits}
    for split, positions in mine:
        marks[split][_undecodable(pixels, split, positions)] = 1.0
    bad = {split: world.sum(mark, "input").nonzero().squeeze(1) for split, mark in marks.items()}
    count = sum(map(len, bad.values()))
    return [without(federated, bad) if count else federated for federated in parts], count


def _undecodable(pixels: Pixels, split: str, positions: Tensor) -> Tensor:
    """Those of the images at ``positions`` [n] of a split that cannot be decoded [m]; each is named on stderr."""
    bad = []
    for position in positions.tolist():
        try:
            if split == "train" and pixels.augment != "none":
                pixels.decoded[position]
            else:
                pixels.fitted(split, torch.tensor([position]))
        except Unreadable as error:
            warn(f"left out: {error}")
            bad.append(position)
    return torch.tensor(bad, dtype=torch.long)
