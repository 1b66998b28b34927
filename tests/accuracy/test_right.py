"""Who is right about an image: ties are shared, and what is no number is an error."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pfedmma.accuracy.evaluator import all_finite, right
from pfedmma.system.errors import RankFailure
from tests.support.stacks import new_clients


def test_ties_are_shared_among_the_classes_that_tie() -> None:
    logits = torch.tensor([[[3.0, 1.0, 2.0], [5.0, 5.0, 1.0], [0.0, 0.0, 0.0], [1.0, 4.0, 4.0]]])
    assert right(logits, torch.tensor([0, 0, 0, 0])).tolist() == [[1.0, 0.5, 1 / 3, 0.0]]
    assert right(logits, torch.tensor([1, 1, 2, 2])).tolist() == [[0.0, 0.5, 1 / 3, 0.5]]


def test_a_model_that_says_nothing_is_right_by_chance() -> None:
    """Wherever its classes stand: with argmax alone the first class would be right each time."""
    labels = torch.arange(10).repeat(5)
    assert right(torch.zeros(1, 50, 10), labels).mean() == pytest.approx(0.1)
    assert right(torch.zeros(1, 50, 10), torch.zeros(50, dtype=torch.long)).mean() == pytest.approx(0.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_name_the_client(value: float) -> None:
    logits = torch.zeros(3, 2, 4)
    logits[1, 1, 2 if value != float("-inf") else slice(None)] = value
    correct = right(logits, torch.tensor([0, 1]))
    assert torch.isnan(correct).tolist() == [[False, False], [False, True], [False, False]]
    clients = [dataclasses.replace(new_clients()[0], id=i) for i in (2, 5, 8)]
    with pytest.raises(RankFailure, match=r"^the model of client 5 gives logits that are not finite"):
        all_finite(correct, clients)
    assert torch.equal(all_finite(correct[::2], clients[::2]), correct[::2])


def test_a_class_that_is_ruled_out_is_no_error() -> None:
    logits = torch.tensor([[[-torch.inf, 1.0], [2.0, -torch.inf]]])
    assert right(logits, torch.tensor([1, 1])).tolist() == [[1.0, 0.0]]
