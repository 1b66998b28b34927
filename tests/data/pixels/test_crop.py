"""From files to pixels: the same pixels as open_clip and torchvision make, reproducible, and each file read once."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv1
from torchvision.transforms.v2 import functional as tv2

from pfedmma.clip import tiny
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.preprocess import Preprocess
from pfedmma.data.loading import DataConfig
from pfedmma.data.partition.camera import camera
from pfedmma.data.pixels.crop import crop_box, fit, random_crop
from pfedmma.data.pixels.decode import decode
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import Source, Split
from pfedmma.system.errors import UserError

CLIP = Preprocess(224, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
CPU = torch.device("cpu")


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 [3,H,W] with edges, gradients and grain, so that resizing has something to get wrong."""
    gen = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = torch.stack([torch.sin(9 * x + 5 * y), torch.cos(17 * x * y), torch.sin(40 * (x - y)).sign()])
    return ((waves * 0.4 + 0.5 + 0.1 * torch.randn(3, height, width, generator=gen)).clamp(0, 1) * 255).to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def open_clip_transform(preprocess: Preprocess, normalised: bool, resize_mode: str = "shortest"):
    """open_clip's evaluation transform; without normalisation, floats in 0..1."""
    mean, std = (preprocess.mean, preprocess.std) if normalised else ((0.0,) * 3, (1.0,) * 3)
    config = PreprocessCfg(preprocess.size, mean=mean, std=std, interpolation=preprocess.interpolation, resize_mode=resize_mode)
    return image_transform_v2(config, is_train=False)


def pixels_of(images: list[Tensor], augment: str, reads: Counter | None = None, preprocess: Preprocess = CLIP) -> Pixels:
    """`Pixels` over the same images in all three splits; ``reads`` counts the decodings of (split, position)."""

    def split(name: str) -> Split:
        def read(index: int) -> Tensor:
            if reads is not None:
                reads[name, index] += 1
            return images[index]

        return Split(torch.zeros(len(images), dtype=torch.long), read)

    return Pixels(Source("toy", ("a",), {name: split(name) for name in ("train", "val", "test")}), preprocess, augment, CPU)


def check_like_open_clip(image: Image.Image, ours: Tensor, preprocess: Preprocess = CLIP) -> None:
    """``ours`` is what `decode` makes of ``image``."""
    fitted = fit(ours, preprocess)
    assert fitted.dtype == torch.uint8 and fitted.shape == (3, preprocess.size, preprocess.size)
    plain = open_clip_transform(preprocess, normalised=False)(image)
    assert torch.equal(fitted, (plain * 255).round().to(torch.uint8))  # not one grey level apart
    normalised = open_clip_transform(preprocess, normalised=True)(image)
    torch.testing.assert_close(pixels_of([ours], "none", None, preprocess).normalise(fitted), normalised, atol=1e-5, rtol=0)


# --- the backbone's own preprocessing ---


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


def test_preprocess_of_a_model_is_the_one_open_clip_gives_it():
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny.FOLDER}", load_weights=False)
    preprocess = Backbone.freeze(model).preprocess
    image = picture(70, 100)
    ours = pixels_of([image], "none", None, preprocess)
    torch.testing.assert_close(ours.normalise(ours.fitted("test", torch.tensor([0])))[0], transform(to_pil(image)), atol=1e-5, rtol=0)


def test_preprocess_of_a_model_that_squashes():
    # open_clip's ViT-H-14 `dfn5b`, MetaCLIP 2 and all CLIPA weights see the whole picture squashed, not its centre.
    model = open_clip.create_model(f"local-dir:{tiny.FOLDER}", load_weights=False)
    model.visual.preprocess_cfg = {**model.visual.preprocess_cfg, "resize_mode": "squash"}
    preprocess = Backbone.freeze(model).preprocess
    image = picture(70, 100)
    expected = open_clip_transform(preprocess, normalised=False, resize_mode="squash")(to_pil(image))
    difference = (fit(image, preprocess).float() / 255 - expected).abs().max().item()
    assert difference <= 1 / 255 + 1e-6


# --- augmentation ---


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


def test_training_images_follow_from_the_generator_alone():
    images = [picture(40 + i, 60, i) for i in range(6)]
    batch = torch.tensor([4, 1, 5])

    def drawn(pixels: Pixels, seed: int) -> Tensor:
        return pixels.training(batch, torch.Generator().manual_seed(seed))

    fresh, used = pixels_of(images, "crop"), pixels_of(images, "crop")
    # Another rank has other images in memory, a generator of its own in another state, and has drawn for other clients before.
    used.training(torch.tensor([5, 0, 2, 4]), torch.Generator().manual_seed(9))
    used.fitted("test", torch.tensor([3]))
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    assert torch.equal(drawn(fresh, 7), drawn(used, 7))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(drawn(fresh, 7), drawn(fresh, 8))


def test_every_training_image_gets_its_own_crop_and_half_are_flipped():
    images = [picture(50, 50)] * 64
    pixels = pixels_of(images, "crop", None, Preprocess(32, CLIP.mean, CLIP.std))
    batch = pixels.training(torch.arange(64), torch.Generator().manual_seed(0))
    assert batch.shape == (64, 3, 32, 32) and batch.dtype == torch.uint8
    assert len({row.numpy().tobytes() for row in batch}) == 64
    # A ramp from left to right tells which pictures are mirrored.
    ramp = torch.arange(0, 250, 5, dtype=torch.uint8).expand(3, 50, 50)
    rising = pixels_of([ramp], "crop").training(torch.zeros(400, dtype=torch.long), torch.Generator().manual_seed(0)).float()
    share = (rising[..., -1].mean(dim=(1, 2)) < rising[..., 0].mean(dim=(1, 2))).float().mean()
    assert 0.4 < share < 0.6


def test_without_augmentation_training_sees_what_evaluation_sees():
    images = [picture(50, 70, i) for i in range(3)]
    pixels = pixels_of(images, "none")
    batch = torch.tensor([2, 0])
    assert torch.equal(pixels.training(batch, torch.Generator()), torch.stack([fit(images[i], CLIP) for i in (2, 0)]))


# --- reading once ---


@pytest.mark.parametrize("augment", ["crop", "none"])
def test_every_file_is_decoded_at_most_once(augment: str):
    reads: Counter = Counter()
    pixels = pixels_of([picture(30, 40, i) for i in range(4)], augment, reads, Preprocess(16, CLIP.mean, CLIP.std))
    gen = torch.Generator().manual_seed(0)
    assert not reads  # nothing is decoded before it is asked for
    pixels.fitted("train", torch.tensor([3]))
    for _ in range(3):
        pixels.training(torch.tensor([0, 1, 1]), gen)
        for split in ("train", "val", "test"):
            pixels.fitted(split, torch.tensor([2, 0, 2]))
    pixels.training(torch.tensor([3, 2]), gen)
    assert set(reads) == {*(("train", i) for i in range(4)), *((split, i) for split in ("val", "test") for i in (0, 2))}
    assert set(reads.values()) == {1}


# --- decoding ---


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera writes for an ``upright`` picture under an EXIF orientation."""
    turned = {5: upright.swapaxes(0, 1), 6: np.rot90(upright), 7: np.rot90(upright, 2).swapaxes(0, 1), 8: np.rot90(upright, -1)}
    mirrored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    return np.ascontiguousarray((turned | mirrored)[orientation])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_turns_pictures_upright(tmp_path: Path, orientation: int):
    upright = picture(20, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored(upright.permute(1, 2, 0).numpy(), orientation)).save(tmp_path / "x.png", exif=exif)
    assert torch.equal(decode(tmp_path / "x.png"), upright)


def test_decode_turns_a_picture_whose_other_exif_tags_are_broken(tmp_path: Path):
    # Orientation 6, and the camera's maker as a float instead of text. Photographs like this exist, and their pixels are fine.
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHIf", 0x010F, 11, 1, 1.0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    Image.new("RGB", (32, 16), (200, 30, 40)).save(tmp_path / "x.jpg", exif=exif)
    assert decode(tmp_path / "x.jpg").shape == (3, 32, 16)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_decode_makes_rgb_of_any_mode(tmp_path: Path, mode: str):
    rgb = to_pil(picture(12, 20))
    image = rgb.convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    decoded = decode(path)
    assert decoded.shape == (3, 12, 20) and decoded.dtype == torch.uint8 and decoded.is_contiguous()
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))
    if mode in ("L", "1", "LA"):
        assert torch.equal(decoded[0], decoded[1]) and torch.equal(decoded[0], decoded[2])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_truncated_files_are_named(tmp_path: Path, kind: str):
    path = tmp_path / "broken"
    to_pil(picture(40, 60)).save(path, kind)
    whole = path.read_bytes()
    for share in (0.0, 0.05, 0.3, 0.6):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError) as error:
            decode(path)
        assert str(path) in str(error.value)


def test_what_is_no_image_is_named(tmp_path: Path):
    (tmp_path / "text.jpg").write_text("hello")
    for path in (tmp_path / "text.jpg", tmp_path / "absent.jpg", tmp_path):
        with pytest.raises(UserError, match="cannot read the image") as error:
            decode(path)
        assert str(path) in str(error.value)


def test_huge_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    to_pil(picture(40, 60)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # PIL raises above twice that
    with pytest.raises(UserError, match=r"x\.png"):
        decode(tmp_path / "x.png")


# --- the clients' cameras ---


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


def test_normalise_sees_through_each_clients_camera():
    images = torch.stack([picture(8, 8, i) for i in range(2)]).expand(3, 2, 3, 8, 8)  # clients, images
    cameras = torch.stack([camera(0, client, 1.0) for client in range(3)])
    pixels = pixels_of([], "none")
    seen = pixels.normalise(images, cameras[:, None])
    for client in range(3):
        for i in range(2):
            colour = (images[client, i].float() / 255).permute(1, 2, 0) @ cameras[client].T
            expected = (colour.clamp(0, 1) - torch.tensor(CLIP.mean)) / torch.tensor(CLIP.std)
            torch.testing.assert_close(seen[client, i], expected.permute(2, 0, 1), atol=1e-5, rtol=0)
    gray = torch.full((3, 3, 4, 4), 77, dtype=torch.uint8)
    torch.testing.assert_close(pixels.normalise(gray, cameras), pixels.normalise(gray), atol=1e-5, rtol=0)
