"""Zero-shot CLIP on a run's own protocol: what every client's accuracy is compared with."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfedmma.accuracy.metrics import COLUMNS
from pfedmma.system.errors import UserError


@dataclass(frozen=True)
class Reference:
    """``accuracy``: the averages; ``table``: by client [K, 4] as `pfedmma.accuracy.evaluator.Evaluator.table`.

    Both are None where nothing is evaluated, ``table`` also in a run whose checkpoints were written before it was kept.
    """

    accuracy: dict[str, Any] | None = None
    table: Tensor | None = None

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps: the table as base64 of little-endian fp64, which stays small and quick with many clients."""
        packed = None if self.table is None else base64.b64encode(self.table.numpy().astype("<f8").tobytes()).decode()
        return {"zero_shot": self.accuracy, "zero_shot_clients": packed}

    @classmethod
    def of_progress(cls, progress: dict[str, Any], clients: int) -> Reference:
        """What `progress` put into a checkpoint. Raises a `UserError` if it is no table of so many clients."""
        packed = progress.get("zero_shot_clients")
        if packed is None:
            return cls(progress["zero_shot"])
        try:
            values = np.frombuffer(base64.b64decode(packed, validate=True), "<f8").astype(float)
            return cls(progress["zero_shot"], torch.from_numpy(values.reshape(clients, len(COLUMNS))))
        except (TypeError, ValueError):
            raise UserError(
                "the newest checkpoint's zero_shot_clients are no accuracies of its clients; remove it to go on from the one before"
            ) from None
