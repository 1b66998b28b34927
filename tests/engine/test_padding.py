"""The sizes of batches: on a GPU there are few of them, and what a batch is padded with counts for nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from pfedmma.engine.batches import Batches, Stack
from pfedmma.engine.cohort import PassWidth, train_cohort
from tests.support.stacks import SIZES, gathered, new_clients, new_members, new_training, strong_adapters


def on_a_gpu(batches: Batches, batch_size: int) -> Batches:
    """Batches of a method whose backbone says it lies on a GPU."""

    class Elsewhere:
        device = torch.device("cuda")

    work = dataclasses.replace(batches.work, batch_size=batch_size)
    return Batches(Elsewhere(), batches.pixels, work)  # type: ignore[arg-type]


def test_batches_of_a_gpu_have_few_sizes(tiny_clip: nn.Module) -> None:
    """Multiples of 8, and no more than a full batch; on a CPU as large as they need be."""
    batches = new_training(strong_adapters(tiny_clip)).batches
    sizes = [on_a_gpu(batches, 20).padded(images) for images in range(1, 21)]
    assert sizes == [8] * 8 + [16] * 8 + [20] * 4
    assert on_a_gpu(batches, 4).padded(3) == 4
    assert [batches.padded(images) for images in range(1, 5)] == [1, 2, 3, 4]


def test_a_staged_batch_is_as_large_as_said(tiny_clip: nn.Module) -> None:
    """Padding repeats an image of the client and has weight 0."""
    training = new_training(strong_adapters(tiny_clip))
    clients = [new_clients()[i] for i in (3, 1)]
    chosen = [torch.tensor([4, 2, 9, 0, 1]), torch.tensor([2, 0])]
    batch = on_a_gpu(training.batches, 32).stage(Stack(clients, 1), chosen, 0, pixels=False)
    assert batch.rows.tolist() == [[4, 2, 9, 0, 1, 4, 4, 4], [2, 0, 2, 2, 2, 2, 2, 2]]
    torch.testing.assert_close(batch.weights, torch.tensor([[0.2] * 5 + [0.0] * 3, [0.5] * 2 + [0.0] * 6]))


@pytest.mark.parametrize("augment", ["none", "crop"])
def test_padding_changes_no_result(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch, augment: str) -> None:
    """A round of clients of unequal size, padded as on a GPU and not at all."""
    ends = []
    for padded in (False, True):
        if padded:
            monkeypatch.setattr(Batches, "padded", lambda self, images: 8)
        method = strong_adapters(tiny_clip)
        training, members = new_training(method, augment=augment), new_members(method)
        start = gathered(members)
        trained = train_cohort(training, new_clients(), members, 1, PassWidth(len(SIZES)))
        ends.append((trained.losses, trained.uploads - start[:, : training.layout.exchanged_size]))
    torch.testing.assert_close(ends[1][0], ends[0][0], rtol=1e-5, atol=1e-6)
    assert (ends[1][1] - ends[0][1]).norm() < 1e-4 * ends[0][1].norm() and ends[0][1].norm() > 0
