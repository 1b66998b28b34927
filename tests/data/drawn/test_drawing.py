"""The drawn world: pure functions, every attribute visible."""

from __future__ import annotations

import colorsys
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pfedmma.data.drawn import drawing
from pfedmma.data.drawn.drawing import COLOURS, DRAWS, PATTERNS, SHAPES, STYLES, draw, draw_random, hsv_to_rgb

TABLES = {"shape": SHAPES, "colour": COLOURS, "pattern": PATTERNS, "style": STYLES}


def attributes(count: int, seed: int = 0) -> list[Tensor]:
    """[count] random shapes, colours, patterns and styles."""
    gen = torch.Generator().manual_seed(seed)
    return [torch.randint(len(table), (count,), generator=gen) for table in TABLES.values()]


def variants(attribute: str, count: int = 48, size: int = 32) -> Tensor:
    """[values, N, 3, S, S]: N drawings for each value of one attribute, equal in all else and without grain."""
    uniforms = torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(1))
    rows = []
    for value in range(len(TABLES[attribute])):
        others = attributes(count)
        others[list(TABLES).index(attribute)] = torch.full((count,), value)
        rows.append(draw(*others, uniforms, torch.zeros(count, 3, size, size)).float())
    return torch.stack(rows)


def test_same_generator_same_images():
    first = draw_random(*attributes(12), torch.Generator().manual_seed(3))
    assert torch.equal(first, draw_random(*attributes(12), torch.Generator().manual_seed(3)))
    assert not torch.equal(first, draw_random(*attributes(12), torch.Generator().manual_seed(4)))


def test_an_image_depends_on_its_own_row_alone():
    shapes, colours, patterns, styles = attributes(16)
    gen = torch.Generator().manual_seed(5)
    uniforms, noise = torch.rand(16, DRAWS, generator=gen), torch.randn(16, 3, 32, 32, generator=gen)
    together = draw(shapes, colours, patterns, styles, uniforms, noise)
    for i in (0, 7, 15):
        row = slice(i, i + 1)
        alone = draw(shapes[row], colours[row], patterns[row], styles[row], uniforms[row], noise[row])
        # One grey level of room: a batch of another size may round the last float bit otherwise.
        assert (together[i].int() - alone[0].int()).abs().max() <= 1


def test_arguments_are_left_as_they_were():
    # `draw` works in place on its intermediates; none of them may be a view of an argument or of a table.
    gen = torch.Generator().manual_seed(0)
    arguments = [*attributes(8), torch.rand(8, DRAWS, generator=gen), torch.randn(8, 3, 32, 32, generator=gen)]
    before, table = [a.clone() for a in arguments], drawing._HSV.clone()
    draw(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))
    assert torch.equal(drawing._HSV, table)


@pytest.mark.parametrize("attribute", list(TABLES))
def test_every_value_of_an_attribute_looks_different(attribute: str):
    drawings = variants(attribute)
    for a, b in itertools.combinations(range(len(drawings)), 2):
        difference = (drawings[a] - drawings[b]).abs().mean()
        # In grey levels over the whole picture; the nearest pair, circle and hexagon, stands at 1.8.
        assert difference > 1.5, f"{TABLES[attribute][a]} and {TABLES[attribute][b]} differ by {difference:.2f} grey levels"


@pytest.mark.parametrize("size", [32, 64, 224])
def test_any_size_is_drawn_in_full_range(size: int):
    images = draw_random(*attributes(24), torch.Generator().manual_seed(0), size)
    assert images.dtype == torch.uint8 and images.shape == (24, 3, size, size)
    assert images.min() < 30 and images.max() > 225
    assert (images.float().flatten(1).std(dim=1) > 3.0).all()  # no empty picture


def test_size_changes_resolution_not_content():
    shapes, colours, patterns, _ = attributes(16)
    flat, uniforms = torch.zeros(16, dtype=torch.long), torch.rand(16, DRAWS, generator=torch.Generator().manual_seed(2))
    small = draw(shapes, colours, patterns, flat, uniforms, torch.zeros(16, 3, 32, 32)).float()
    large = draw(shapes, colours, patterns, flat, uniforms, torch.zeros(16, 3, 128, 128)).float()
    difference = (F.avg_pool2d(large, 4) - small).abs().mean(dim=(1, 2, 3))
    unlike = (F.avg_pool2d(large, 4) - small.roll(1, 0)).abs().mean(dim=(1, 2, 3))
    assert difference.max() < 6.0 < 20.0 < unlike.min()


def test_shapes_fill_a_sensible_part_of_their_frame():
    axis = torch.linspace(-1.2, 1.2, 97)
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    for number, name in enumerate(SHAPES):
        inside = (drawing.field(number, x, y) < 0).float().mean().item()
        assert 0.1 < inside < 0.7, f"{name} covers {inside:.0%}"


def test_gray_has_no_hue_and_red_has():
    # Flat style, solid pattern, a pixel in the middle of a square.
    uniforms = torch.rand(20, DRAWS, generator=torch.Generator().manual_seed(0))
    uniforms[:, 1:4] = 0.5  # centred, upright
    square, zeros = torch.full((20,), SHAPES.index("square")), torch.zeros(20, dtype=torch.long)
    spread = {}
    for name in ("gray", "red"):
        colour = torch.full((20,), COLOURS.index(name))
        middle = draw(square, colour, zeros, zeros, uniforms, torch.zeros(20, 3, 32, 32))[:, :, 16, 16].float()
        spread[name] = middle.amax(dim=1) - middle.amin(dim=1)
    assert spread["gray"].max() < 10 and spread["red"].min() > 100


@settings(deadline=None, max_examples=200)
@given(*[st.floats(0.0, 1.0, width=32)] * 3)
def test_hsv_to_rgb_equals_colorsys(hue: float, saturation: float, value: float):
    ours = hsv_to_rgb(*(torch.tensor(v, dtype=torch.float32) for v in (hue, saturation, value)))
    torch.testing.assert_close(ours, torch.tensor(colorsys.hsv_to_rgb(hue, saturation, value)), atol=1e-5, rtol=0)


def test_hsv_to_rgb_keeps_leading_axes():
    hue = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    assert hsv_to_rgb(hue, torch.ones(2, 3), torch.ones(2, 3)).shape == (2, 3, 3)
