"""Operations and kept bytes, by hand."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pfedmma.cost.counting import count


def test_products_count_two_operations_a_multiply_add() -> None:
    """[3,4] @ [4,5] is 60 multiply-adds."""
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert count(lambda: a @ b).flop == 120
    assert count(lambda: F.linear(a, b.T, torch.ones(5))).flop == 120
    assert count(lambda: a + 1).flop == 0


def test_the_meta_device_counts_as_well() -> None:
    a, b = torch.ones(2, 3, 4, device="meta"), torch.ones(2, 4, 5, device="meta")
    assert count(lambda: torch.bmm(a, b)).flop == 240


def test_what_was_made_and_is_kept_counts_once_and_neither_inputs_nor_weights_do() -> None:
    x, frozen = torch.ones(3, 4), torch.ones(4, 4)
    trained = torch.ones(4, 4, requires_grad=True)

    def work() -> torch.Tensor:
        hidden = x @ trained  # keeps x
        made = hidden.relu()  # keeps its result: 3 x 4 numbers of 4 bytes
        return (made @ frozen).sum() + (made * 2).sum()  # keeps the frozen weights

    assert count(work).kept_bytes == 3 * 4 * 4
    with torch.no_grad():
        assert count(work).kept_bytes == 0


def test_a_view_of_what_is_kept_is_not_counted_again() -> None:
    x = torch.ones(3, 4, requires_grad=True)

    def work() -> torch.Tensor:
        made = x.exp()  # kept
        return made.view(4, 3) * made.view(4, 3)  # keeps views of it

    assert count(work).kept_bytes == 3 * 4 * 4
