"""Images that cannot be decoded are left out, where that is asked for, before the first round."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from pfedmma.comm.world import World
from pfedmma.data.partition.federated import Client, FederatedData, without
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import Unreadable


def leave_out_unreadable(federated: FederatedData, pixels: Pixels, world: World, hosted: list[Client]) -> tuple[FederatedData, int]:
    """The federated without images that cannot be decoded, and their number. All ranks enter and agree.

    Each rank tries the training images of its own clients and its share of the test images; what it decodes is kept.
    """
    train = torch.cat([client.train for client in hosted]) if hosted else torch.empty(0, dtype=torch.long)
    bad = {"train": _unreadable(pixels, "train", train)}
    for images in federated.sets().values():
        mine = images.indices[world.rank :: world.size]
        bad[images.split] = torch.cat([bad.get(images.split, mine[:0]), _unreadable(pixels, images.split, mine)])
    agreed = {}
    for split, positions in bad.items():
        flags = torch.zeros(len(pixels.source.splits[split].labels))
        flags[positions] = 1.0
        agreed[split] = world.sum(flags, "input").nonzero().squeeze(1)
    count = sum(map(len, agreed.values()))
    return (without(federated, agreed) if count else federated), count


def _unreadable(pixels: Pixels, split: str, positions: Tensor) -> Tensor:
    bad = []
    for position in positions.tolist():
        try:
            if split == "train" and pixels.augment != "none":
                pixels.decoded[position]
            else:
                pixels.fitted(split, torch.tensor([position]))
        except Unreadable as error:
            print(f"warning: left out: {error}", file=sys.stderr)
            bad.append(position)
    return torch.tensor(bad, dtype=torch.long)
