"""The clients' cameras: shifts of equal strength in directions of their own; of the kind ``hue``, hues that turn and fade."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pfedmma.data.loading import DataConfig
from pfedmma.data.partition.camera import CELLS, Camera, camera
from pfedmma.system.errors import UserError


def pattern_of(*of: int | float) -> Tensor:
    pattern = camera(*of).pattern  # type: ignore[arg-type]
    assert pattern is not None
    return pattern


def hue_of(seed: int, client: int, strength: float) -> Tensor:
    colours = camera(seed, client, strength, "hue").colours
    assert colours is not None
    return colours


def test_all_patterns_are_as_strong_and_point_elsewhere():
    patterns = torch.stack([pattern_of(0, client, 0.18).flatten() for client in range(30)])
    torch.testing.assert_close(patterns.square().mean(dim=1).sqrt(), torch.full((30,), 0.18))
    cosines = torch.nn.functional.cosine_similarity(patterns[:, None], patterns, dim=2) - torch.eye(30)
    assert cosines.abs().max() < 0.1  # 5 standard deviations of directions drawn uniformly in 3,072 dimensions


def test_cameras_follow_from_seed_and_client():
    assert torch.equal(pattern_of(0, 3, 0.2), pattern_of(0, 3, 0.2))
    assert not torch.equal(pattern_of(0, 3, 0.2), pattern_of(1, 3, 0.2))
    torch.testing.assert_close(pattern_of(0, 3, 0.2), 2.0 * pattern_of(0, 3, 0.1))
    hues = [hue_of(0, client, 0.35) for client in range(10)]
    assert all(torch.equal(a, hue_of(0, client, 0.35)) for client, a in enumerate(hues))
    assert all((hues[i] - hues[j]).abs().max() > 1e-3 for i in range(10) for j in range(i))
    assert not torch.equal(hues[0], hue_of(1, 0, 0.35))


@pytest.mark.parametrize("size", [8, 32, 64, 80])
def test_a_cell_covers_the_same_part_of_any_picture(size: int):
    pattern = torch.arange(3 * CELLS * CELLS).view(3, CELLS, CELLS) / (3 * CELLS * CELLS)
    seen = Camera(pattern=pattern).see(torch.zeros(2, 3, size, size))
    for pixel in (0, size // 3, size - 1):
        cell = int((pixel + 0.5) / size * CELLS)
        assert torch.equal(seen[:, :, pixel, pixel], pattern[:, cell, cell].expand(2, 3))
        assert torch.equal(seen[:, :, 0, pixel], pattern[:, int(0.5 / size * CELLS), cell].expand(2, 3))


@pytest.mark.parametrize("kind", ["pattern", "hue"])
def test_cameras_of_the_first_clients_for_one_size_see_the_same(kind: str):
    every = Camera.stacked([camera(0, client, 0.3, kind) for client in range(3)])
    images = torch.rand(3, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(every.at(64).first(2).see(images[:2]), every.see(images)[:2])


def test_what_is_seen_is_between_black_and_white():
    ends = torch.tensor([-0.5, 0.25, 0.5])[:, None, None].expand(3, CELLS, CELLS)
    seen = Camera(pattern=ends).see(torch.full((1, 3, 4, 4), 0.75))
    assert seen[0, :, 0, 0].tolist() == [0.25, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["pattern", "hue"])
def test_cameras_side_by_side_see_what_each_sees(kind: str):
    images = torch.rand(3, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    cameras = [camera(0, client, 0.5, kind) for client in range(3)]
    seen = Camera.stacked(cameras).see(images)
    for client, own in enumerate(cameras):
        torch.testing.assert_close(seen[client], own.see(images[client]), atol=1e-6, rtol=0)
    assert (seen - images).abs().mean() > 0.05


def test_a_hue_of_strength_zero_is_the_identity():
    torch.testing.assert_close(hue_of(0, 3, 0.0), torch.eye(3), atol=0, rtol=0)


@pytest.mark.parametrize("strength", [0.1, 0.35, 1.0])
def test_hues_keep_gray_and_brightness(strength: float):
    for client in range(20):
        matrix = hue_of(0, client, strength)
        # Rows sum to 1: gray stays that gray. Columns, too: the mean of the channels stays.
        torch.testing.assert_close(matrix.sum(dim=1), torch.ones(3), atol=1e-6, rtol=0)
        torch.testing.assert_close(matrix.sum(dim=0), torch.ones(3), atol=1e-6, rtol=0)


def test_hues_turn_no_further_than_their_strength():
    # In the plane across the grey axis the matrix is (1 - grey) times a rotation.
    across = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]) / torch.tensor([[2.0], [6.0]]).sqrt()
    for client in range(50):
        plane = across @ hue_of(0, client, 0.4) @ across.T
        angle, kept = torch.atan2(plane[1, 0], plane[0, 0]), plane[:, 0].norm()
        assert abs(angle) <= 0.4 * torch.pi + 1e-5 and 0.6 - 1e-5 <= kept <= 1 + 1e-5


@pytest.mark.parametrize("name", ["camera", "medium"])
@pytest.mark.parametrize("strength", [1.5, -0.5])
def test_strengths_must_be_shares(name: str, strength: float):
    # A hue beyond 1 would lose more than all colour: colours come out inverted.
    with pytest.raises(UserError, match=rf"^{name}: must be from 0 to 1, or -1"):
        DataConfig(**{name: strength})


def test_a_kind_that_is_none_names_those_there_are():
    with pytest.raises(UserError, match="camera_kind: 'lens' is not known; choose one of pattern, hue"):
        DataConfig(camera_kind="lens")
