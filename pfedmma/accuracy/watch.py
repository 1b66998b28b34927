"""What an evaluation collects for the diagnostics while it tests: no image goes through a tower twice for them, but those of the CKA batch.

Shape legend: C clients of one part of an evaluation, N base test images, n of one pass, K classes, D embedding, B images for CKA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pfedmma.accuracy import diagnostics
from pfedmma.comm.world import World
from pfedmma.records.evaluated import Diagnostics
from pfedmma.system.fields import finite

MEANS = 3  # margin, gap, ECE


class Pass(NamedTuple):
    """Some clients on some images: features of images [C,n,...] and classes [C,K,...], logits [C,n,K], labels [n]."""

    images: Tensor
    texts: Tensor
    logits: Tensor
    labels: Tensor


class Seen:
    """What the models of C clients say of the base test images, pass by pass."""

    def __init__(self, clients: int, images: int) -> None:
        self.margin, self.confidence = torch.zeros(2, clients, images, dtype=torch.float64)
        self.offset = torch.full((clients, 1), torch.nan, dtype=torch.float64)  # [C,D] where features are comparable
        self.grams: Tensor | None = None  # [C,B,B]

    def add(self, rows: slice, tested: Tensor, found: Pass, scale: Tensor) -> None:
        """The pass of the clients ``rows`` over the images ``tested`` [n]; ``scale``: of the logits."""
        similarity = diagnostics.similarities(found.images, found.texts, found.logits, scale)
        self.margin[rows, tested] = diagnostics.margins(similarity, found.labels).double().cpu()
        self.confidence[rows, tested] = diagnostics.confidences(found.logits).double().cpu()
        if diagnostics.comparable(found.images, found.texts):
            offset = diagnostics.centre_offset(found.images, found.texts).cpu()
            if self.offset.shape[1] != offset.shape[1]:
                self.offset = offset.new_zeros(len(self.offset), offset.shape[1])
            self.offset[rows] += offset

    def values(self, right: Tensor) -> Tensor:
        """Margin, gap and ECE of each client [C, `MEANS`], from how right it is about each image [C,N]; NaN where there is none."""
        gap = self.offset.norm(dim=1) / right.shape[1]
        return torch.stack([self.margin.mean(dim=1), gap, diagnostics.calibration_error(self.confidence, right)], dim=1)


class Watch:
    """The diagnostics of one evaluation: sums over clients in one tensor, so that parts of an evaluation and ranks just add up."""

    def __init__(self, images: int) -> None:
        batch = len(diagnostics.spread(images))
        # Sums of `MEANS` values, of how many clients each is, sum of unit Gram matrices, of how many clients.
        self._total = torch.zeros(2 * MEANS + batch**2 + 1, dtype=torch.float64)

    def add(self, seen: Seen, right: Tensor, times: Sequence[int]) -> None:
        """C models; each is that of so many clients as ``times`` says."""
        weights = torch.tensor(times, dtype=torch.float64)
        values = seen.values(right)
        known = torch.isfinite(values)
        self._total[:MEANS] += weights @ values.masked_fill(~known, 0.0)
        self._total[MEANS : 2 * MEANS] += weights @ known.double()
        if seen.grams is not None:
            self._total[2 * MEANS : -1] += weights @ seen.grams.flatten(1)
            self._total[-1] += weights @ seen.grams.flatten(1).any(dim=1).double()

    def gather(self, world: World) -> None:
        """Add up what all ranks have seen. All enter."""
        self._total = world.sum(self._total, "metrics")

    def result(self) -> Diagnostics:
        """The means over clients."""
        sums, counts = self._total[:MEANS], self._total[MEANS : 2 * MEANS]
        margin, gap, error = map(finite, (sums / counts).tolist())  # 0 / 0 where no client has any
        return Diagnostics(margin, gap, error, diagnostics.mean_cka(self._total[2 * MEANS : -1], float(self._total[-1])))
