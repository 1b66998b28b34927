"""Images at a backbone's size: the same pixels as open_clip and torchvision make."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv1
from torchvision.transforms.v2 import functional as tv2

from pfedmma.clip import tiny
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.preprocess import Preprocess
from pfedmma.data.pixels.crop import crop_box, fit, random_crop
from pfedmma.data.pixels.decode import decode
from tests.support.pictures import CLIP, open_clip_transform, picture, pixels_of, to_pil


def check_like_open_clip(image: Image.Image, ours: Tensor, preprocess: Preprocess = CLIP) -> None:
    """``ours`` is what `decode` makes of ``image``."""
    fitted = fit(ours, preprocess)
    assert fitted.dtype == torch.uint8 and fitted.shape == (3, preprocess.size, preprocess.size)
    plain = open_clip_transform(preprocess, normalised=False)(image)
    assert torch.equal(fitted, (plain * 255).round().to(torch.uint8))  # not one grey level apart
    normalised = open_clip_transform(preprocess, normalised=True)(image)
    torch.testing.assert_close(pixels_of([ours], "none", None, preprocess).normalise(fitted), normalised, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (224, 224), (225, 337), (60, 90), (400, 5), (5, 400), (224, 500), (1, 1)])
def test_fit_equals_open_clip(size: tuple[int, int]):
    image = picture(*size)
    check_like_open_clip(to_pil(image), image)


@pytest.mark.parametrize("preprocess", [Preprocess(32, CLIP.mean, CLIP.std), Preprocess(96, (0.5,) * 3, (0.5,) * 3, "bilinear")])
def test_fit_follows_the_preprocess(preprocess: Preprocess):
    image = picture(123, 200)
    check_like_open_clip(to_pil(image), image, preprocess)


def test_fit_equals_open_clip_on_grayscale_files(tmp_path: Path):
    to_pil(picture(150, 201)).convert("L").save(tmp_path / "gray.jpg")
    # open_clip resizes the one channel and converts after; here conversion comes first.
    check_like_open_clip(Image.open(tmp_path / "gray.jpg"), decode(tmp_path / "gray.jpg"))


@pytest.mark.parametrize("folder", ["caltech-101/101_ObjectCategories", "dtd/images"])
def test_fit_equals_open_clip_on_photographs(real_data: Path, folder: str):
    files = sorted((real_data / folder).glob("*/*.jpg"))
    chosen = files[:: max(1, len(files) // 12)]
    gray = [file for file in files[:: max(1, len(files) // 400)] if Image.open(file).mode == "L"]
    largest = max(files, key=lambda file: file.stat().st_size)
    assert len(chosen) >= 12 and gray, "photographs in colour and in grayscale"
    for file in [*chosen, gray[0], largest]:
        check_like_open_clip(Image.open(file), decode(file))


def test_preprocess_of_a_model_that_squashes():
    # open_clip's ViT-H-14 `dfn5b`, MetaCLIP 2 and all CLIPA weights see the whole picture squashed, not its centre.
    model = open_clip.create_model(f"local-dir:{tiny.FOLDER}", load_weights=False)
    model.visual.preprocess_cfg = {**model.visual.preprocess_cfg, "resize_mode": "squash"}
    preprocess = Backbone.freeze(model).preprocess
    image = picture(70, 100)
    expected = open_clip_transform(preprocess, normalised=False, resize_mode="squash")(to_pil(image))
    difference = (fit(image, preprocess).float() / 255 - expected).abs().max().item()
    assert difference <= 1 / 255 + 1e-6


def boxes(height: int, width: int, count: int) -> tuple[Tensor, Tensor]:
    """[count, 4] (top, left, height, width): ours and torchvision's."""
    draws = torch.rand(count, 10, 4, generator=torch.Generator().manual_seed(0))
    ours = [crop_box(height, width, row) for row in draws]
    image = torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    return torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (300, 480), (500, 180)])
def test_crop_boxes_are_distributed_as_torchvisions(height: int, width: int):
    measures = []
    for rows in boxes(height, width, 5000):
        top, left, h, w = rows.T
        assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
        room = (height - h > 0) & (width - w > 0)
        measures.append(
            {
                "area": h * w / (height * width),
                "log aspect": (w / h).log() / torch.log(torch.tensor(16 / 9)),  # over the range's width, 3/4 .. 4/3
                "top": (top / (height - h + 1))[room],  # uniform where there is room
                "left": (left / (width - w + 1))[room],
                "centre": (top + h / 2) / height,
            }
        )
    ours, theirs = measures
    shares = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    for name in ours:
        # 5000 draws: the standard error of a mean is below 0.005, of a quantile below 0.01.
        assert abs(ours[name].mean() - theirs[name].mean()) < 0.02, name
        assert (ours[name].quantile(shares) - theirs[name].quantile(shares)).abs().max() < 0.04, name
        assert abs(ours[name].std() - theirs[name].std()) < 0.015, name


@pytest.mark.parametrize(("height", "width"), [(5, 400), (400, 5), (1, 1), (1, 300)])
def test_images_too_thin_for_any_crop_fall_back_to_the_centre(height: int, width: int):
    # 5 x 400: the least area, 8 %, at the widest aspect, 4:3, is sqrt(160 / (4/3)) = 11 pixels high. All ten tries fail.
    ours, theirs = boxes(height, width, 20)
    assert torch.equal(ours, theirs)
    assert len(ours.unique(dim=0)) == 1


def test_fallback_box_by_hand():
    draws = torch.rand(10, 4, generator=torch.Generator().manual_seed(0))
    assert crop_box(6, 400, draws) == (0, 196, 6, 8)  # 6 * 4/3 = 8 wide, (400 - 8) / 2 = 196
    assert crop_box(400, 6, draws) == (196, 0, 8, 6)  # 6 / (3/4) = 8 high


def test_first_try_that_fits_is_taken():
    # All of 200 x 240 at aspect 4:3 is 253 wide; it does not fit. The second try is a quarter of the area, square, sqrt(12000) = 110 a
    # side, in the last of the 91 rows and 131 columns where it has room.
    quarter = (0.25 - 0.08) / 0.92
    draws = torch.tensor([[1.0, 1.0, 0.0, 0.0], [quarter, 0.5, 0.995, 0.995], *[[1.0, 0.5, 0.0, 0.0]] * 8])
    assert crop_box(200, 240, draws) == (90, 130, 110, 110)


@pytest.mark.parametrize("flip", [False, True])
def test_random_crop_equals_torchvisions_resized_crop(flip: bool):
    gen = torch.Generator().manual_seed(0)
    for seed, size in enumerate([(300, 200), (120, 333), (60, 60), (7, 300)]):
        image, draws = picture(*size, seed), torch.rand(10, 4, generator=gen)
        ours = random_crop(image, CLIP, draws, flip)
        box = crop_box(*size, draws)
        expected = tv2.resized_crop(image, *box, [224, 224], tv2.InterpolationMode.BICUBIC, antialias=True)
        assert ours.dtype == torch.uint8
        assert torch.equal(ours, tv2.horizontal_flip(expected) if flip else expected)
        # And as the released code has it, through PIL: rounding differs by a level or two, except at a few hard edges.
        pil = tv1.pil_to_tensor(tv1.resized_crop(to_pil(image), *box, [224, 224], tv1.InterpolationMode.BICUBIC))
        difference = (ours.int() - (pil.flip(-1) if flip else pil).int()).abs().float()
        assert difference.mean() < 0.5 and (difference <= 3).float().mean() > 0.98


@pytest.mark.parametrize("shape", [(3, 1, 4000), (3, 4000, 1), (3, 1, 1), (3, 3000, 4000), (3, 7, 1001)])
def test_thin_and_large_pictures_are_fitted_and_cut(shape: tuple[int, ...]):
    image = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    preprocess = Preprocess(32, (0.5,) * 3, (0.5,) * 3)
    assert fit(image, preprocess).shape == (3, 32, 32)
    for seed in range(5):
        draws = torch.rand(10, 4, generator=torch.Generator().manual_seed(seed))
        assert random_crop(image, preprocess, draws, False).shape == (3, 32, 32)


@pytest.mark.parametrize("length", [4000, 4001])
def test_only_the_middle_of_a_line_is_resized(length: int):
    # 1 x 4000 at 224 pixels would be 224 x 896,000; the centre crop shows a pixel or two of it.
    line = torch.arange(length).expand(3, 1, length) % 251
    got = fit(line.to(torch.uint8), Preprocess(224, (0.5,) * 3, (0.5,) * 3))
    middle = [int(line[0, 0, i]) for i in (length // 2 - 1, length // 2)]
    assert got.shape == (3, 224, 224)
    assert min(middle) - 1 <= int(got[0, :, 112].min()) and int(got[0, :, 112].max()) <= max(middle) + 1
