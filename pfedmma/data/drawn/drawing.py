"""A world of drawn images: shape x colour x pattern, in several drawing styles.

The world exists so that the whole system runs, and means something, without data, weights or network: the ``tiny`` CLIP is
trained on captions of it and the data set ``shapes`` draws its images from it. An image is a pure function of its
attributes, one row of uniform numbers and its noise.

Shape legend: N images, S pixels a side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon", "diamond", "hexagon", "arrow", "flower")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "gray")
PATTERNS = ("solid", "striped", "dotted", "checkered")
STYLES = ("flat", "sketch", "night", "blurry")

# Colours as (hue in turns, saturation, value); each image jitters around them.
_HSV = torch.tensor(
    [
        (0.00, 0.90, 0.90),
        (0.08, 0.95, 0.98),
        (0.16, 0.85, 0.97),
        (0.35, 0.80, 0.65),
        (0.50, 0.75, 0.90),
        (0.62, 0.85, 0.85),
        (0.77, 0.70, 0.70),
        (0.92, 0.45, 0.97),
        (0.07, 0.65, 0.42),
        (0.00, 0.00, 0.55),
    ]
)
DRAWS = 16  # uniform numbers that an image takes, noise apart


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """[...] hue in turns, saturation and value in 0..1 -> [..., 3] RGB in 0..1."""
    offsets = torch.tensor([5.0, 3.0, 1.0])
    sector = (offsets + 6.0 * hue.unsqueeze(-1)) % 6.0
    ramp = torch.minimum(sector, 4.0 - sector).clamp(0.0, 1.0)
    return value.unsqueeze(-1) * (1.0 - saturation.unsqueeze(-1) * ramp)


def _polygon(x: Tensor, y: Tensor, sides: int, radius: float, turn: float = 0.0) -> Tensor:
    """Signed distance-like field of a regular polygon (negative inside)."""
    angle = torch.atan2(x, y) + turn
    wedge = 2.0 * math.pi / sides
    folded = torch.remainder(angle + wedge / 2.0, wedge) - wedge / 2.0
    return torch.hypot(x, y) * torch.cos(folded) - radius * math.cos(wedge / 2.0)


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(x.abs() - width, y.abs() - height)


def _star(x: Tensor, y: Tensor) -> Tensor:
    angle = torch.remainder(torch.atan2(x, y), 2.0 * math.pi / 5.0) - math.pi / 5.0
    along = angle.abs() / (math.pi / 5.0)  # 1 at a tip, 0 between two tips
    return torch.hypot(x, y) - (0.40 + 0.65 * along**1.3)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x, y = x * 1.15, y * 1.15 + 0.12
    sextic = (x * x + y * y - 0.6) ** 3 - 1.6 * x * x * y**3
    return 0.35 * sextic.sign() * (sextic.abs() ** (1.0 / 3.0))


def field(shape: int, x: Tensor, y: Tensor) -> Tensor:
    """Signed field of a shape in its own unit frame: negative inside, about one unit wide. x right, y up."""
    radius = torch.hypot(x, y)
    name = SHAPES[shape]
    if name == "circle":
        return radius - 0.9
    if name == "square":
        return _box(x, y, 0.78, 0.78)
    if name == "triangle":
        return _polygon(x, y + 0.15, 3, 1.1, math.pi)
    if name == "star":
        return _star(x, y)
    if name == "cross":
        return torch.minimum(_box(x, y, 0.95, 0.30), _box(x, y, 0.30, 0.95))
    if name == "ring":
        return (radius - 0.70).abs() - 0.24
    if name == "heart":
        return _heart(x, y)
    if name == "moon":
        return torch.maximum(radius - 0.95, 0.75 - torch.hypot(x - 0.45, y))
    if name == "diamond":
        return (x.abs() / 0.6 + y.abs() - 1.0) * 0.55
    if name == "hexagon":
        return _polygon(x, y, 6, 0.98)
    if name == "arrow":
        head = torch.maximum(y.abs() + (x - 0.1) * 0.9 - 0.75, 0.1 - x)
        return torch.minimum(head, _box(x + 0.35, y, 0.55, 0.22))
    assert name == "flower", name
    return radius - (0.62 + 0.33 * torch.cos(6.0 * torch.atan2(y, x)))


def _texture(patterns: Tensor, x: Tensor, y: Tensor, phase: Tensor) -> Tensor:
    """[N,S,S] in 0..1: 1 where the main colour shows, 0 where the pattern's second tone does."""
    wave_x, wave_y = torch.sin(7.0 * x + phase), torch.sin(7.0 * y + phase)
    stripes = (4.0 * torch.sin(9.0 * (x + y) / math.sqrt(2.0) + phase)).clamp(-1, 1)
    dots = 1.0 - 2.0 * (2.5 * (wave_x * wave_y).abs() - 1.2).clamp(0, 1)
    checks = (6.0 * wave_x * wave_y).clamp(-1, 1)
    stack = torch.stack([torch.ones_like(x), stripes, dots, checks])  # order of PATTERNS
    return 0.5 + 0.5 * stack[patterns, torch.arange(len(patterns))]


def _blur(images: Tensor) -> Tensor:
    """Out of focus, to the same share of the picture at any size."""
    size = images.shape[-1]
    if size > 32:
        small = torch.nn.functional.interpolate(images, size=32, mode="bilinear", antialias=True)
        return torch.nn.functional.interpolate(_blur(small), size=size, mode="bicubic").clamp(0.0, 1.0)
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16.0
    weight = (kernel[:, None] * kernel[None, :]).expand(3, 1, 5, 5)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    return torch.nn.functional.conv2d(padded, weight, groups=3)


def draw(shapes: Tensor, colours: Tensor, patterns: Tensor, styles: Tensor, uniforms: Tensor, noise: Tensor) -> Tensor:
    """Draw N images of the world, of the size of their noise.

    Args:
        shapes, colours, patterns, styles: [N] int64 indices into the tables above.
        uniforms: [N,DRAWS] in 0..1: position, size, rotation, tones.
        noise: [N,3,S,S] standard normal, the sensor's grain.

    Returns:
        [N,3,S,S] uint8.
    """
    size = noise.shape[-1]
    u = uniforms[:, :, None, None]
    x, y, pixel = _own_frame(u, size)
    main, second = _tones(colours, uniforms)
    texture = _texture(patterns, x, y, 2.0 * math.pi * u[:, 14])[:, None]
    ink = texture * main + (1.0 - texture) * second
    cover = _cover(shapes, styles, x, y, pixel)
    image = cover * ink + (1.0 - cover) * _ground(styles, u, size)
    blurry = styles == STYLES.index("blurry")
    if bool(blurry.any()):
        image[blurry] = _blur(image[blurry])
    image = image + (0.01 + 0.05 * u[:, 15:16]) * noise
    return (image.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """Down and to the right from the picture's centre [S,S], in half pictures."""
    axis = (torch.arange(size) + 0.5) / size * 2.0 - 1.0
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    return down, right


def _own_frame(u: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of every pixel x and y [N,S,S] in the frame of the drawing's own shape, which is moved, scaled and turned; a pixel's side [N,1,1]."""
    down, right = _grid(size)
    scale = 0.45 + 0.35 * u[:, 0]
    x = (right - (u[:, 1] - 0.5) * 0.6) / scale
    y = (-down - (u[:, 2] - 0.5) * 0.6) / scale
    turn = (u[:, 3] - 0.5) * 0.9
    x, y = x * torch.cos(turn) - y * torch.sin(turn), x * torch.sin(turn) + y * torch.cos(turn)
    return x, y, 2.0 / size / scale


def _cover(shapes: Tensor, styles: Tensor, x: Tensor, y: Tensor, pixel: Tensor) -> Tensor:
    """How far the shape covers each pixel [N,1,S,S], 0..1; of a sketch mostly its outline does."""
    distance = torch.empty_like(x)
    for shape in shapes.unique().tolist():
        rows = shapes == shape
        distance[rows] = field(shape, x[rows], y[rows])
    inside = (0.5 - distance / pixel).clamp(0.0, 1.0)
    outline = (0.5 - (distance.abs() - 0.13) / pixel).clamp(0.0, 1.0)
    sketch = (styles == STYLES.index("sketch"))[:, None, None]
    return torch.where(sketch, torch.maximum(outline, 0.25 * inside), inside)[:, None]


def _tones(colours: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The drawing's main colour and the second tone of its pattern [N,3,1,1]."""
    hsv = _HSV[colours] + (uniforms[:, 4:7] - 0.5) * torch.tensor([0.05, 0.15, 0.15])
    hsv[:, 1] = torch.where(colours == len(COLOURS) - 1, 0.03, hsv[:, 1])  # gray stays gray
    main = hsv_to_rgb(hsv[:, 0] % 1.0, hsv[:, 1].clamp(0, 1), hsv[:, 2].clamp(0, 1))[:, :, None, None]
    return main, main * 0.35 + 0.1 * uniforms[:, 7:8, None, None]


def _ground(styles: Tensor, u: Tensor, size: int) -> Tensor:
    """The background [N,3,S,S]: light or, at night, dark, in a tone of its own, with light that falls from one side."""
    down, right = _grid(size)
    night = (styles == STYLES.index("night"))[:, None, None, None]
    ground = torch.where(night, 0.05 + 0.15 * u[:, 8:9], 0.65 + 0.35 * u[:, 8:9]) * (0.9 + 0.1 * u[:, 9:12])
    return ground * (1.0 + 0.25 * (u[:, 12:13] - 0.5) * right + 0.25 * (u[:, 13:14] - 0.5) * down)


def draw_random(shapes: Tensor, colours: Tensor, patterns: Tensor, styles: Tensor, generator: torch.Generator, size: int = 32) -> Tensor:
    """`draw` at ``size`` pixels a side, with position, tones and grain taken from ``generator``: [N,3,S,S] uint8."""
    count = len(shapes)
    uniforms = torch.rand(count, DRAWS, generator=generator)
    noise = torch.randn(count, 3, size, size, generator=generator)
    return draw(shapes, colours, patterns, styles, uniforms, noise)
