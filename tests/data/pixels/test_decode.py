"""From an image file to pixels: upright, in RGB, and a file that is no image is named."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from pfedmma.data.pixels import decode as decoding
from pfedmma.data.pixels.decode import FORMATS, MOST_PIXELS, decode, is_image
from pfedmma.system.errors import UserError
from tests.support.pictures import picture, smooth_pictures, to_pil


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


# Files of others


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 9 9
(MARK) (w) file closefile showpage
%%EOF
"""


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.eps", "x"])
def test_no_other_program_is_started_for_an_image(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")  # as where Ghostscript is installed
    for where in (subprocess, EpsImagePlugin.subprocess):
        for starter in ("call", "check_call", "Popen", "run"):
            monkeypatch.setattr(where, starter, lambda *args, **more: started.append(args))
    (tmp_path / name).write_bytes(EPS)
    assert not is_image(tmp_path / name)
    with pytest.raises(UserError, match="cannot read the image") as error:
        decode(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and not started


@pytest.mark.parametrize("kind", ["EPS", "PDF", "IM", "FITS", "WMF", "GRIB", "HDF5", "SPIDER", "ICNS", "MPEG", "FLI", "XPM"])
def test_the_list_of_formats_is_short(kind: str):
    assert kind not in FORMATS


def test_only_regular_files_are_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for a writer
    (tmp_path / "link.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(tmp_path / "socket.jpg"))
        for name in ("pipe.jpg", "link.jpg", "socket.jpg"):
            assert not is_image(tmp_path / name)
            with pytest.raises(UserError, match=rf"{name}: it is no regular file"):
                decode(tmp_path / name)


def png_of_size(path: Path, width: int, height: int) -> Path:
    """A file of a few bytes that says it is as large as this."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("size", [(20_000, 9_000), (1 << 16, 1 << 12), (MOST_PIXELS + 1, 1)])
@pytest.mark.parametrize("bound", [None, Image.MAX_IMAGE_PIXELS])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_before_any_is_made(tmp_path: Path, size: tuple[int, int], bound: int | None, monkeypatch: Any):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", bound)  # a program may have taken Pillow's own bound away
    path = png_of_size(tmp_path / "x.png", *size)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels are made"))
    with pytest.raises(UserError, match=r"x\.png"):
        decode(path)


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "I;16")]
)
def test_pictures_beyond_the_ordinary_are_halved(tmp_path: Path, kind: str, mode: str, monkeypatch: pytest.MonkeyPatch):
    ramp = np.linspace(0, 255, 301 * 401).reshape(301, 401)
    image = Image.fromarray((ramp * 257).astype(np.uint16)) if mode == "I;16" else Image.fromarray(ramp.astype(np.uint8)).convert(mode)
    image.save(tmp_path / "x", kind)
    whole = decode(tmp_path / "x")
    assert whole.shape == (3, 301, 401)
    for most, shape in ((301 * 401, (301, 401)), (301 * 401 - 1, (151, 201)), (20_000, (76, 101)), (2_000, (38, 51))):
        monkeypatch.setattr(decoding, "ORDINARY", most)
        small = decode(tmp_path / "x")
        assert small.shape == (3, *shape)
        if shape == (301, 401):
            assert torch.equal(small, whole)
        for corner in (0, -1):
            assert abs(float(small[0, corner, corner]) - float(whole[0, corner, corner])) < 8


def test_ordinary_photographs_come_as_they_are_and_those_of_cameras_bounded(tmp_path: Path):
    Image.new("RGB", (3264, 2448)).save(tmp_path / "8.jpg")
    assert decode(tmp_path / "8.jpg").shape == (3, 2448, 3264)
    Image.new("RGB", (4000, 3000)).save(tmp_path / "12.jpg")
    assert decode(tmp_path / "12.jpg").shape == (3, 1500, 2000)


def test_a_large_jpeg_is_never_there_at_its_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("RGB", (640, 480)).save(tmp_path / "x.jpg")
    monkeypatch.setattr(decoding, "ORDINARY", 10_000)
    sizes: list[tuple[int, int]] = []
    real = Image.Image.convert

    def convert(image: Image.Image, *args: Any, **more: Any) -> Image.Image:
        sizes.append(image.size)
        return real(image, *args, **more)

    monkeypatch.setattr(Image.Image, "convert", convert)
    assert decode(tmp_path / "x.jpg").shape == (3, 60, 80) and max(sizes) == (80, 60)


# Reduced to what crops need


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((90, 60), (60, 40)),  # the shorter side comes to 40
        ((61, 90), (40, 59)),
        ((40, 300), (40, 300)),  # it is there already
        ((30, 900), (30, 900)),
        ((2, 1), (2, 1)),
        ((50, 4000), (40, 3200)),
        ((1000, 800), (50, 40)),  # a JPEG is decoded to an eighth or a quarter first, with rounded sides
        ((333, 171), (78, 40)),
    ],
)
def test_a_picture_is_reduced_to_what_crops_need(kind: str, size: tuple[int, int], wanted: tuple[int, int], tmp_path: Path) -> None:
    """Height and width of the picture and of what is decoded; on smooth pictures, as a bicubic resize of the whole."""
    (image,) = smooth_pictures([size])
    to_pil(image).save(tmp_path / "x", kind, quality=95)
    whole, small = decode(tmp_path / "x"), decode(tmp_path / "x", least=40)
    assert whole.shape[1:] == size and small.shape[1:] == wanted
    resized = Image.fromarray(whole.permute(1, 2, 0).numpy()).resize(wanted[::-1], Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(resized).astype(int) - small.permute(1, 2, 0).numpy().astype(int))
    assert difference.mean() < 0.6 and difference.max() <= 12


def test_a_picture_of_its_own_size_is_not_touched_by_a_reduction(tmp_path: Path) -> None:
    to_pil(picture(40, 60)).save(tmp_path / "x.jpg")
    assert torch.equal(decode(tmp_path / "x.jpg", least=40), decode(tmp_path / "x.jpg"))


def test_a_picture_that_is_turned_is_reduced_by_its_shorter_side(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    to_pil(picture(90, 60)).save(tmp_path / "x.jpg", exif=exif)
    assert decode(tmp_path / "x.jpg").shape == (3, 60, 90) and decode(tmp_path / "x.jpg", least=20).shape == (3, 20, 30)


def test_a_large_jpeg_is_decoded_to_a_part_of_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (640, 480)).save(tmp_path / "x.jpg")
    sizes: list[tuple[int, int]] = []
    real = Image.Image.convert
    monkeypatch.setattr(Image.Image, "convert", lambda image, *args, **more: sizes.append(image.size) or real(image, *args, **more))
    assert decode(tmp_path / "x.jpg", least=60).shape == (3, 60, 80) and sizes == [(160, 120)]  # twice what is wanted
