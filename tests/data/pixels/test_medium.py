"""The medium that all clients share: a halftone print."""

from __future__ import annotations

import pytest
import torch

from pfedmma.data.pixels.medium import LINES, printed, screen


def test_strength_goes_from_the_picture_to_its_print():
    picture, thresholds = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), screen(16)
    assert torch.equal(printed(picture, 0.0, thresholds), picture)
    whole = printed(picture, 1.0, thresholds)
    assert torch.equal(whole > 0.5, picture > thresholds), "ink stands where a channel is above the threshold"
    torch.testing.assert_close(printed(picture, 0.25, thresholds), 0.75 * picture + 0.25 * whole)
    assert whole.min() >= 0.0 and whole.max() <= 1.0


def test_a_print_is_about_as_bright_as_its_picture():
    for level in (0.3, 0.5, 0.7):
        assert printed(torch.full((3, 64, 64), level), 1.0, screen(64)).mean() == pytest.approx(level, abs=0.08)


def test_lines_of_dots_run_at_45_degrees():
    thresholds = screen(64)
    assert 0.0 <= thresholds.min() < 0.01 and 0.99 < thresholds.max() <= 1.0
    # The diagonal of a picture is sqrt(2) pictures long: 8 sqrt(2) dots, and as many times it is at its brightest.
    along = thresholds.diagonal()
    peaks = (along[1:-1] > along[:-2]) & (along[1:-1] >= along[2:])
    assert int(peaks.sum()) == int(LINES * 2**0.5)


def test_the_lines_are_the_same_on_a_picture_of_any_size():
    small = torch.nn.functional.avg_pool2d(screen(256)[None], 4)[0]
    torch.testing.assert_close(small, screen(64), atol=0.03, rtol=0)
