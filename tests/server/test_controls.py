"""SCAFFOLD's control variate of the server: by how much the mean change of some clients changes the mean of all."""

from __future__ import annotations

import torch

from pfedmma.server.controls import MeanControl
from pfedmma.server.rules import SHARED, Uploads
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import CONTROL, MEAN, UNIFORM

LAYOUT = Layout({"a": (1,), "b": (1,)}, {"a": MEAN, "b": UNIFORM})


def test_by_hand() -> None:
    """Two of five clients, with 3 of 12 images: a quarter of the mean change where images count, else two fifths."""
    state = {SHARED: torch.zeros(2), CONTROL: torch.tensor([1.0, 1.0])}
    uploads = Uploads(1, [0, 3], [1, 2], [0, 3], torch.zeros(2, 2))
    after = MeanControl(LAYOUT, clients=5, images=12)(state, torch.tensor([8.0, 10.0]), uploads)
    assert after[CONTROL].tolist() == [3.0, 5.0] and after[SHARED] is state[SHARED]
    assert state[CONTROL].tolist() == [1.0, 1.0]
