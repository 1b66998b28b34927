"""A picture that is hard to get right, and the parts that read and cut it: for the tests of pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from pfedmma.clip.preprocess import Preprocess
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import Source, Split

CLIP = Preprocess(224, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 [3,H,W] with edges, gradients and grain, so that resizing has something to get wrong."""
    gen = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = torch.stack([torch.sin(9 * x + 5 * y), torch.cos(17 * x * y), torch.sin(40 * (x - y)).sign()])
    return ((waves * 0.4 + 0.5 + 0.1 * torch.randn(3, height, width, generator=gen)).clamp(0, 1) * 255).to(torch.uint8)


def smooth_pictures(sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Photograph-like pictures of these heights and widths: noise, blurred by enlarging it."""
    gen = torch.Generator().manual_seed(0)
    return [
        tv.resize(torch.randint(256, (3, 12, 12), generator=gen).to(torch.uint8), [height, width], antialias=True)
        for height, width in sizes
    ]


def to_pil(image: Tensor) -> Image.Image:
    """uint8 [3,H,W] as PIL has it."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def open_clip_transform(preprocess: Preprocess, normalised: bool, resize_mode: str = "shortest"):
    """open_clip's evaluation transform; without normalisation, floats in 0..1."""
    mean, std = (preprocess.mean, preprocess.std) if normalised else ((0.0,) * 3, (1.0,) * 3)
    config = PreprocessCfg(preprocess.size, mean=mean, std=std, interpolation=preprocess.interpolation, resize_mode=resize_mode)
    return image_transform_v2(config, is_train=False)


def pixels_of(
    images: list[Tensor], augment: str, reads: Counter | None = None, preprocess: Preprocess = CLIP, medium: float = 0.0
) -> Pixels:
    """`Pixels` over the same images in all three splits, in a medium; ``reads`` counts the decodings of (split, position)."""

    def split(name: str) -> Split:
        def read(index: int) -> Tensor:
            if reads is not None:
                reads[name, index] += 1
            return images[index]

        return Split(torch.zeros(len(images), dtype=torch.long), read)

    source = Source("toy", ("a",), {name: split(name) for name in ("train", "val", "test")}, medium=medium)
    return Pixels(source, preprocess, augment, torch.device("cpu"))
