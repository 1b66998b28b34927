"""From an image file to pixels: upright, in RGB, and a file that is no image is named."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfedmma.data.pixels.decode import decode
from pfedmma.system.errors import UserError
from tests.support.pictures import picture, to_pil


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


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (9, 7), (255, 255, 255)).convert(mode).save(tmp_path / f"white.{suffix}")
    image = decode(tmp_path / f"white.{suffix}")
    assert image.shape == (3, 7, 9) and int(image.min()) >= 254


def test_sixteen_bit_grey_is_scaled_not_cut_off(tmp_path: Path):
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png")[0].tolist() == [[0, 1, 128, 255]]


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
