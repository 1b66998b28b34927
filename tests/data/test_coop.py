"""Data sets in the CoOp layout: what is read, and what a user is told when it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from pfedmma.data import coop
from pfedmma.errors import UserError

NAMES = ("face", "leopard", "water_lilly")
COUNTS = {"train": 3, "val": 1, "test": 2}
Parts = dict[str, list[list[object]]]


def split_of(root: Path) -> Path:
    return root / "caltech-101" / "split_zhou_Caltech101.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small Caltech101: three classes of flat JPEG files whose red value tells them apart."""
    parts: Parts = {}
    number = 0
    for part, count in COUNTS.items():
        parts[part] = []
        for label, name in enumerate(NAMES):
            for _ in range(count):
                number += 1
                file = Path(name) / f"image_{number:04d}.jpg"
                path = tmp_path / "caltech-101" / "101_ObjectCategories" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 16), (10 * number, 0, 0)).save(path, quality=95)
                parts[part].append([file.as_posix(), label, name])
    split_of(tmp_path).write_text(json.dumps(parts))
    return tmp_path


def edit(root: Path, **parts: list | None) -> None:
    """Replace parts of the split file; None removes one."""
    content = json.loads(split_of(root).read_text()) | parts
    split_of(root).write_text(json.dumps({name: rows for name, rows in content.items() if rows is not None}))


def refusal(root: Path | str) -> str:
    """What the user is told; one line."""
    with pytest.raises(UserError) as error:
        coop.load("caltech101", str(root))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_classes_and_splits_are_read_in_order(root: Path):
    source = coop.load("caltech101", str(root))
    assert source.name == "caltech101" and source.class_names == NAMES
    assert {name: split.labels.tolist() for name, split in source.splits.items()} == {
        "train": [0, 0, 0, 1, 1, 1, 2, 2, 2],
        "val": [0, 1, 2],
        "test": [0, 0, 1, 1, 2, 2],
    }


def test_each_position_reads_its_own_file(root: Path):
    source = coop.load("caltech101", str(root))
    number = 0  # files were numbered, and coloured, in this order
    for part in COUNTS:
        for i in range(len(source.splits[part].labels)):
            number += 1
            image = source.splits[part].read(i)
            assert image.shape == (3, 16, 20) and image.dtype == torch.uint8
            assert abs(image[0].float().mean().item() - 10 * number) < 3


def test_root_is_the_folder_of_all_sets_or_the_sets_own(root: Path):
    for given in (root, root / "caltech-101"):
        assert coop.load("caltech101", str(given)).class_names == NAMES


def test_labels_need_not_come_in_order(root: Path):
    rows = json.loads(split_of(root).read_text())["train"]
    edit(root, train=rows[::-1])
    source = coop.load("caltech101", str(root))
    assert source.class_names == NAMES and source.splits["train"].labels.tolist() == [2, 2, 2, 1, 1, 1, 0, 0, 0]


def test_no_root():
    assert "data.root" in refusal("") and "caltech-101/" in refusal("")


def test_missing_root_is_named(tmp_path: Path):
    assert refusal(tmp_path / "absent") == f"data.root: there is no folder '{tmp_path / 'absent'}'"


def test_home_of_an_unknown_user():
    # `expanduser` raises a RuntimeError of its own.
    assert "data.root" in refusal("~no-such-user-here/data")


def test_wrong_root_says_what_was_looked_for_and_what_is_there(tmp_path: Path):
    assert refusal(tmp_path).endswith("which holds nothing")
    (tmp_path / "dtd").mkdir()
    (tmp_path / "notes.txt").touch()
    message = refusal(tmp_path)
    assert "caltech-101/split_zhou_Caltech101.json" in message and "caltech-101/101_ObjectCategories/" in message
    assert message.endswith("which holds dtd, notes.txt")


def test_split_file_without_image_folder_is_a_wrong_root(root: Path):
    (root / "caltech-101" / "101_ObjectCategories").rename(root / "elsewhere")
    assert "caltech-101/101_ObjectCategories/" in refusal(root)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00"])
def test_split_file_that_is_no_json(root: Path, content: bytes):
    split_of(root).write_bytes(content)
    assert refusal(root).startswith(f"cannot read the split file {split_of(root)}")


@pytest.mark.parametrize("content", ["[]", "3", "null", '"train"'])
def test_split_file_that_is_no_mapping(root: Path, content: str):
    split_of(root).write_text(content)
    assert "under 'train'" in refusal(root)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_missing_part(root: Path, part: str):
    edit(root, **{part: None})
    assert refusal(root).endswith(f"must hold a list of [path, label, class name] under '{part}'")


@pytest.mark.parametrize(
    "row",
    [
        ["../../secret.jpg", 0, "face"],
        ["face/../../secret.jpg", 0, "face"],
        ["/etc/passwd", 0, "face"],
        ["face/image_0001.jpg", "0", "face"],
        ["face/image_0001.jpg", 0.0, "face"],
        ["face/image_0001.jpg", True, "face"],
        ["face/image_0001.jpg", 0, 7],
        ["face/image_0001.jpg", 0],
        [None, 0, "face"],
        "face/image_0001.jpg",
    ],
)
def test_entries_that_are_no_entry_or_leave_the_image_folder(root: Path, row: object):
    rows = json.loads(split_of(root).read_text())["val"]
    edit(root, val=[*rows, row])
    assert "must hold a list of [path, label, class name] under 'val'" in refusal(root)


@pytest.mark.parametrize("label", [4, -1])
def test_labels_with_a_gap(root: Path, label: int):
    rows = json.loads(split_of(root).read_text())["train"]
    edit(root, train=[*rows, ["face/image_0001.jpg", label, "odd"]])
    assert "must be 0 .. 3 without a gap" in refusal(root)


def test_two_names_for_a_label(root: Path):
    rows = json.loads(split_of(root).read_text())["test"]
    edit(root, test=[*rows, ["face/image_0001.jpg", 1, "lynx"]])
    assert refusal(root).endswith("gives label 1 two class names, 'leopard' and 'lynx'")


def test_one_name_for_two_labels(root: Path):
    # Two equal prompts: no model could tell the classes apart.
    rows = json.loads(split_of(root).read_text())["train"]
    edit(root, train=[*rows, ["face/image_0001.jpg", 3, "leopard"]])
    assert refusal(root).endswith("gives the class name 'leopard' to two labels")


def test_missing_images_are_counted_and_the_first_is_named(root: Path):
    images = root / "caltech-101" / "101_ObjectCategories"
    for number in (2, 4):
        next(images.glob(f"*/image_{number:04d}.jpg")).unlink()
    message = refusal(root)
    assert "2 of 9 images" in message and "under 'train'" in message
    assert f"first {images / 'face' / 'image_0002.jpg'};" in message and f"into {images}" in message


def test_unreadable_image_is_named_when_it_is_read(root: Path):
    path = root / "caltech-101" / "101_ObjectCategories" / "face" / "image_0001.jpg"
    path.write_bytes(b"not an image")
    source = coop.load("caltech101", str(root))
    with pytest.raises(UserError, match=r"face/image_0001\.jpg"):
        source.splits["train"].read(0)


@pytest.mark.parametrize(("name", "folder", "classes"), [("caltech101", "caltech-101", 100), ("dtd", "dtd", 10)])
def test_real_sets(real_data: Path, name: str, folder: str, classes: int):
    if not (real_data / folder).is_dir():
        pytest.skip(f"no {folder} in ../shared/data")
    source = coop.load(name, str(real_data))
    assert len(source.class_names) == classes
    for split in source.splits.values():
        assert set(split.labels.tolist()) == set(range(classes))
        image = split.read(len(split.labels) // 2)
        assert image.dtype == torch.uint8 and image.shape[0] == 3
    listed = json.loads((real_data / folder / coop.LAYOUTS[name].split).read_text())
    assert all(source.class_names[label] == text for rows in listed.values() for _, label, text in rows)
