"""Clients of unlike width: a narrower one has the leading block of each tensor of the widest, and zeros in place of the rest.

A unit of an adapter that is cut off has zeros before and behind it. An activation leaves zero at zero, so such a unit says nothing, and all
of its gradients are exactly zero: the padded client trains as the narrow one, and clients of all widths share a pass.

Shape legend: C clients, P parameters of one client, X of them exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.stack.layout import Layout
from pfedmma.system import checks
from pfedmma.system.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Widths:
    """``of``: each client's width. ``masks``: of each width, 1 where a client has a number, else 0 [P]; ``sent``: how many it sends."""

    of: Mapping[int, int]
    masks: Mapping[int, Tensor]
    sent: Mapping[int, int]

    @classmethod
    def from_shapes(cls, of: Mapping[int, int], layout: Layout, shapes: Mapping[int, Shapes], device: torch.device) -> Widths:
        """``shapes``: of a client's tensors at each width; those of ``layout`` are the widest's."""
        ones = {name: torch.ones(shape) for name, shape in layout.shapes.items()}
        masks = {width: layout.pack(leading(ones, own)) for width, own in shapes.items()}
        sent = {width: int(mask[: layout.exchanged_size].sum()) for width, mask in masks.items()}
        return cls(of, {width: mask.to(device) for width, mask in masks.items()}, sent)

    def mask(self, client: int) -> Tensor:
        """[P]."""
        return self.masks[self.of[client]]

    def exchanged(self, client: int) -> int:
        """How many numbers a client sends."""
        return self.sent[self.of[client]]

    def cut(self, stack: Tensor, ids: Sequence[int]) -> None:
        """Zero what the clients ``ids`` do not have of ``stack`` [C, P], or of its exchanged part [C, X]."""
        for row, client in zip(stack, ids, strict=True):
            row.mul_(self.mask(client)[: len(row)])


def leading(tensors: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """The tensors with zeros outside of the leading block of each that is as large as ``shapes`` says."""
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        block = tuple(map(slice, shapes[name]))
        found[name][block] = tensor[block]
    return found


def shares_of(texts: Sequence[str]) -> dict[int, float]:
    """The share of clients of each width, from "width:share" each.

    Raises:
        UserError: not of that form, a width twice, or shares that are not above 0 and 1 together.
    """
    found: dict[int, float] = {}
    for text in texts:
        width, _, share = text.replace(" ", "").partition(":")
        try:
            number, part = int(width), float(share)
        except ValueError:
            raise UserError(f"dims: '{text[:40]}' is no width and its share of the clients, such as 8:0.5") from None
        checks.between("dims", number, 1, 4096)
        if number in found or not 0 < part <= 1:
            raise UserError(f"dims: each width stands there once, with a share above 0 and at most 1; '{text[:40]}' does not")
        found[number] = part
    if found and abs(sum(found.values()) - 1.0) > 1e-6:
        raise UserError(f"dims: the shares of all widths must be 1 together, not {sum(found.values()):g}")
    return found


def assigned(shares: Mapping[int, float], clients: int, seed: int) -> dict[int, int]:
    """The width of each client: as many of each as its share says (largest remainders), dealt out by the seed."""
    counts = {width: math.floor(share * clients + 1e-9) for width, share in shares.items()}
    left = sorted(shares, key=lambda width: (counts[width] - shares[width] * clients, width))
    for width in left[: clients - sum(counts.values())]:
        counts[width] += 1
    order = torch.randperm(clients, generator=rng.generator(seed, "widths")).tolist()
    return dict(zip(order, (width for width, count in counts.items() for _ in range(count)), strict=True))
