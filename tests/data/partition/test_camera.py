"""The clients' cameras: hues turn and fade as far as their strength says, and grey stays grey."""

from __future__ import annotations

import pytest
import torch

from pfedmma.data.loading import DataConfig
from pfedmma.data.partition.camera import camera
from pfedmma.system.errors import UserError


def test_camera_of_strength_zero_is_the_identity():
    torch.testing.assert_close(camera(0, 3, 0.0), torch.eye(3), atol=0, rtol=0)


@pytest.mark.parametrize("strength", [0.1, 0.35, 1.0])
def test_camera_keeps_gray_and_brightness(strength: float):
    for client in range(20):
        matrix = camera(0, client, strength)
        # Rows sum to 1: gray stays that gray. Columns, too: the mean of the channels stays.
        torch.testing.assert_close(matrix.sum(dim=1), torch.ones(3), atol=1e-6, rtol=0)
        torch.testing.assert_close(matrix.sum(dim=0), torch.ones(3), atol=1e-6, rtol=0)


def test_camera_turns_hues_no_further_than_its_strength():
    # In the plane across the grey axis the matrix is (1 - grey) times a rotation.
    across = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]) / torch.tensor([[2.0], [6.0]]).sqrt()
    for client in range(50):
        plane = across @ camera(0, client, 0.4) @ across.T
        angle, kept = torch.atan2(plane[1, 0], plane[0, 0]), plane[:, 0].norm()
        assert abs(angle) <= 0.4 * torch.pi + 1e-5 and 0.6 - 1e-5 <= kept <= 1 + 1e-5


def test_cameras_follow_from_seed_and_client():
    first = [camera(0, client, 0.35) for client in range(10)]
    assert all(torch.equal(a, camera(0, client, 0.35)) for client, a in enumerate(first))
    assert all((first[i] - first[j]).abs().max() > 1e-3 for i in range(10) for j in range(i))
    assert not torch.equal(first[0], camera(1, 0, 0.35))


@pytest.mark.parametrize("strength", [1.5, -0.5])
def test_camera_strength_must_be_a_share(strength: float):
    # Beyond 1 more than all colour would be lost: colours come out inverted.
    with pytest.raises(UserError, match="camera"):
        DataConfig(camera=strength)
