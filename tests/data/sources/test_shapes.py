"""The `shapes` data set: 120 classes whose images follow from (seed, split, class, position)."""

from __future__ import annotations

import torch

from pfedmma.data.drawn.drawing import COLOURS, SHAPES
from pfedmma.data.sources import shapes


def test_120_distinct_classes():
    source = shapes.load(seed=0, size=32)
    assert len(source.class_names) == len(set(source.class_names)) == len(COLOURS) * len(SHAPES) == 120
    assert all(name.split() == [COLOURS[c], SHAPES[s]] for name, (c, s) in zip(source.class_names, shapes.classes(), strict=True))


def test_base_and_novel_halves_both_hold_every_colour_and_shape():
    pairs = shapes.classes()
    for half in (pairs[:60], pairs[60:]):
        assert {colour for colour, _ in half} == set(range(len(COLOURS)))
        assert {shape for _, shape in half} == set(range(len(SHAPES)))
    assert not set(pairs[:60]) & set(pairs[60:])  # novel classes are unseen combinations


def test_splits_are_balanced():
    for name, split in shapes.load(seed=0, size=32).splits.items():
        assert torch.equal(split.labels.bincount(), torch.full((120,), shapes.PER_CLASS[name]))


def test_images_do_not_depend_on_the_order_of_access():
    one, other = (shapes.load(seed=0, size=32).splits["test"] for _ in range(2))
    positions = [3, 1199, 0, 612, 9, 3, 613]
    forward = {i: one.read(i).clone() for i in positions}
    for i in reversed(positions):
        assert torch.equal(other.read(i), forward[i])


def test_images_follow_from_seed_split_class_and_position():
    def image(seed: int, split: str, label: int, position: int) -> torch.Tensor:
        return shapes.load(seed, 32).splits[split].read(label * shapes.PER_CLASS[split] + position)

    here = image(0, "train", 5, 2)
    assert here.dtype == torch.uint8 and here.shape == (3, 32, 32)
    assert torch.equal(here, image(0, "train", 5, 2))
    others = [image(1, "train", 5, 2), image(0, "val", 5, 2), image(0, "test", 5, 2), image(0, "train", 6, 2), image(0, "train", 5, 3)]
    assert not any(torch.equal(here, other) for other in others)
    assert not torch.equal(others[1], others[2])


def test_no_image_of_a_class_is_drawn_twice():
    source = shapes.load(seed=0, size=32)
    images = {source.splits[name].read(7 * count + i).numpy().tobytes() for name, count in shapes.PER_CLASS.items() for i in range(count)}
    assert len(images) == sum(shapes.PER_CLASS.values())


def test_images_are_drawn_at_the_size_of_the_backbone():
    assert shapes.load(seed=0, size=64).splits["val"].read(0).shape == (3, 64, 64)
