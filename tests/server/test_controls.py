"""SCAFFOLD's control variate of the server: by how much the mean change of some clients changes the mean of all."""

from __future__ import annotations

import pytest
import torch

from pfedmma.server.controls import MeanControl
from pfedmma.server.rules import SHARED, Uploads
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import CONTROL, MEAN, UNIFORM
from pfedmma.stack.widths import Widths

CPU = torch.device("cpu")
LAYOUT = Layout({"a": (1,), "b": (1,)}, {"a": MEAN, "b": UNIFORM})


def test_by_hand() -> None:
    """Two of five clients, with 3 of 12 images: a quarter of the mean change where images count, else two fifths."""
    state = {SHARED: torch.zeros(2), CONTROL: torch.tensor([1.0, 1.0])}
    uploads = Uploads(1, [0, 3], [1, 2], [0, 3], torch.zeros(2, 2))
    update = MeanControl.from_images(LAYOUT, {0: 1, 1: 4, 2: 3, 3: 2, 4: 2}, CPU)
    after = update(state, torch.tensor([8.0, 10.0]), uploads)
    assert after[CONTROL].tolist() == [3.0, 5.0] and after[SHARED] is state[SHARED]
    assert state[CONTROL].tolist() == [1.0, 1.0]


def test_of_each_number_by_those_who_have_it() -> None:
    """Clients of 1, 2 and 3 images, of whom the last two have one number of two. The first and the last take part.

    The first number has 4 of 6 images behind it, the second 1 of 1. The means of their changes (8, 4) and (4, 0), by images, are (5, 1).
    """
    layout = Layout({"s": (2,)}, {"s": MEAN})
    widths = Widths.from_shapes({0: 2, 1: 1, 2: 1}, layout, {1: {"s": (1,)}, 2: {"s": (2,)}}, CPU)
    update = MeanControl.from_images(layout, {0: 1, 1: 2, 2: 3}, CPU, widths)
    assert update.of_all.tolist() == [6.0, 1.0]
    after = update({CONTROL: torch.zeros(2)}, torch.tensor([5.0, 1.0]), Uploads(1, [0, 2], [1, 3], [0, 2], torch.zeros(2, 2)))
    assert after[CONTROL].tolist() == pytest.approx([4 / 6 * 5, 4.0])
