"""Images that cannot be read are left out, on every rank alike."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from pfedmma.clip.preprocess import Preprocess
from pfedmma.data.partition.federated import Client, EvaluationSet, FederatedData, without
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.pixels.unreadable import leave_out_unreadable
from pfedmma.data.sources.base import Source, Split, Unreadable
from pfedmma.system.errors import UserError
from tests.support.stacks import alone

CLIP = Preprocess(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CPU = torch.device("cpu")


def picture(index: int) -> Tensor:
    return torch.full((3, 8, 8), index, dtype=torch.uint8)


def source(bad_train: set[int], bad_test: set[int]) -> Source:
    """Twelve training and eight test images of two classes; reading one of the bad ones fails."""

    def split(count: int, bad: set[int]) -> Split:
        def read(index: int) -> Tensor:
            if index in bad:
                raise Unreadable(f"cannot read the image {index}.jpg")
            return picture(index)

        return Split(torch.arange(count) % 2, read)

    return Source("toy", ("a", "b"), {"train": split(12, bad_train), "test": split(8, bad_test)})


def federation(toy: Source) -> FederatedData:
    """Two clients of six training images; client 0 is tested on positions 0 .. 3 of the base test set, client 1 on the others."""
    labels = toy.splits["train"].labels
    clients = [Client(i, (0, 1), torch.arange(6 * i, 6 * i + 6), labels[6 * i : 6 * i + 6], torch.arange(4 * i, 4 * i + 4)) for i in (0, 1)]
    base = EvaluationSet("test", toy.class_names, torch.arange(8), toy.splits["test"].labels)
    return FederatedData(tuple(clients), base, None, toy.template)


@pytest.mark.parametrize("augment", ["none", "crop"])
def test_unreadable_images_are_left_out_and_counted(augment: str, capsys: pytest.CaptureFixture[str]):
    toy = source({1, 7, 8}, {2, 5})
    whole = federation(toy)
    (kept,), count = leave_out_unreadable([whole], Pixels(toy, CLIP, augment, CPU), alone(range(2)))
    assert count == 5
    assert kept.clients[0].train.tolist() == [0, 2, 3, 4, 5]
    assert kept.clients[1].train.tolist() == [6, 9, 10, 11]
    assert kept.clients[1].labels.tolist() == [0, 1, 0, 1]
    assert kept.base.indices.tolist() == [0, 1, 3, 4, 6, 7]
    # Client 0 had test images 0, 1, 2, 3: without 2 they stand at positions 0, 1, 2; client 1's 4, 6, 7 at 3, 4, 5.
    assert [client.test.tolist() for client in kept.clients] == [[0, 1, 2], [3, 4, 5]]
    assert capsys.readouterr().err.count("left out") == 5


def test_validation_images_are_left_out_as_well(capsys: pytest.CaptureFixture[str]):
    """Of the same clients; their training images are looked at, and counted, once."""
    toy = source({1}, {2})
    toy = dataclasses.replace(toy, splits=toy.splits | {"val": source(set(), {6, 7}).splits["test"]})
    tested = federation(toy)
    validated = dataclasses.replace(tested, base=dataclasses.replace(tested.base, split="val"))
    kept, count = leave_out_unreadable([tested, validated], Pixels(toy, CLIP, "none", CPU), alone(range(2)))
    assert count == 4 == capsys.readouterr().err.count("left out")
    assert [part.clients[0].train.tolist() for part in kept] == 2 * [[0, 2, 3, 4, 5]]
    assert [part.base.indices.tolist() for part in kept] == [[0, 1, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5]]
    assert [part.clients[1].test.tolist() for part in kept] == [[3, 4, 5, 6], [4, 5]]


def test_whole_federation_is_untouched():
    toy = source(set(), set())
    whole = federation(toy)
    (kept,), count = leave_out_unreadable([whole], Pixels(toy, CLIP, "crop", CPU), alone(range(2)))
    assert count == 0 and kept is whole


def test_a_client_without_a_readable_image_is_an_error():
    whole = federation(source(set(), set()))
    with pytest.raises(UserError, match="client 1"):
        without(whole, {"train": torch.arange(6, 12)})
    with pytest.raises(UserError, match="base test images"):
        without(whole, {"test": torch.arange(8)})


def test_without_keeps_what_it_is_not_told_of():
    whole = dataclasses.replace(federation(source(set(), set())), template="{}")
    kept = without(whole, {"train": torch.tensor([0])})
    assert kept.template == "{}" and kept.base.indices.tolist() == whole.base.indices.tolist()
