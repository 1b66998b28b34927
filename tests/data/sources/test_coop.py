"""Data sets in the CoOp layout: what is read, and what a user is told when it cannot be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from pfedmma.data.loading import DataConfig, open_source
from pfedmma.data.sources import coop
from pfedmma.data.sources.base import GENERIC_TEMPLATE, Source
from pfedmma.system.errors import UserError

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
    edit(root, train=[*rows, ["face/image_0001.jpg", 3, "Leopard"]])
    assert refusal(root).endswith("give the class name 'leopard' to two classes, the other time as 'Leopard'")


def test_missing_images_are_counted_and_the_first_is_named(root: Path):
    images = root / "caltech-101" / "101_ObjectCategories"
    for number in (2, 4):
        next(images.glob(f"*/image_{number:04d}.jpg")).unlink()
    message = refusal(root)
    assert "2 of 9 images" in message and "under 'train'" in message
    assert f"first {images / 'face' / 'image_0002.jpg'}, " in message and f"into {images}" in message


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


# Of each set: files as they are really called, of its first classes, and the names that the split file gives them.
REAL = {
    "caltech101": [("Faces/image_{:04d}.jpg", "face"), ("Leopards/image_{:04d}.jpg", "leopard"), ("ant/image_{:04d}.jpg", "ant")],
    "oxford_pets": [("Abyssinian_{}.jpg", "abyssinian"), ("american_bulldog_{}.jpg", "american_bulldog")],
    "oxford_flowers": [("image_0676{}.jpg", "pink primrose"), ("image_0509{}.jpg", "hard-leaved pocket orchid")],
    "food101": [("apple_pie/10056{}.jpg", "apple_pie"), ("baby_back_ribs/10058{}.jpg", "baby_back_ribs")],
    "dtd": [("banded/banded_{:04d}.jpg", "banded"), ("blotchy/blotchy_{:04d}.jpg", "blotchy")],
    "sun397": [("a/abbey/sun_aaalbzqrimafwbi{}.jpg", "abbey"), ("a/apse/indoor/sun_bkqwltbssajthgv{}.jpg", "indoor_apse")],
    "ucf101": [("Apply_Eye_Makeup/v_ApplyEyeMakeup_g{:02d}_c01.jpg", "Apply_Eye_Makeup"), ("Yo_Yo/v_YoYo_g{:02d}_c01.jpg", "Yo_Yo")],
    "eurosat": [("AnnualCrop/AnnualCrop_{}.jpg", "Annual Crop Land"), ("Forest/Forest_{}.jpg", "Forest")],
    "stanford_cars": [("cars_train/0000{}.jpg", "2000 AM General Hummer SUV"), ("cars_test/0010{}.jpg", "2012 Acura RL Sedan")],
}
BY_CLASS = ("caltech101", "food101", "dtd", "eurosat")


def imitation(name: str, root: Path) -> Path:
    """A few generated images under the names of the real set, and its split file; the set's folder."""
    layout = coop.LAYOUTS[name]
    folder = root / layout.folder
    parts: Parts = {part: [] for part in COUNTS}
    for label, (file, class_name) in enumerate(REAL[name]):
        for number, part in enumerate(part for part, count in COUNTS.items() for _ in range(count)):
            path = folder / layout.images / file.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6), (40 * number, 0, 0)).save(path)
            parts[part].append([file.format(number), label, class_name])
    (folder / layout.split).write_text(json.dumps(parts))
    return folder


def labels(source: Source) -> dict[str, list[int]]:
    return {name: split.labels.tolist() for name, split in source.splits.items()}


def test_every_layout_is_tried():
    assert REAL.keys() == coop.LAYOUTS.keys()
    assert tuple(name for name, layout in coop.LAYOUTS.items() if layout.by_class) == BY_CLASS


@pytest.mark.parametrize("name", REAL)
def test_every_layout_is_read(name: str, tmp_path: Path):
    folder = imitation(name, tmp_path)
    for given in (tmp_path, folder):
        source = coop.load(name, str(given))
        assert (source.name, source.class_names) == (name, tuple(class_name for _, class_name in REAL[name]))
        assert labels(source) == {part: [label for label in range(len(REAL[name])) for _ in range(n)] for part, n in COUNTS.items()}
        assert source.splits["test"].read(0)[0].float().mean().item() == pytest.approx(160, abs=3)  # the fifth of its class
        assert source.made_split is None


@pytest.mark.parametrize("name", REAL)
def test_templates(name: str, tmp_path: Path):
    imitation(name, tmp_path)

    def template(text: str) -> str:
        return open_source(DataConfig(name=name, root=str(tmp_path), template=text), 0, 224).template

    assert template("generic") == GENERIC_TEMPLATE == "a photo of a {}."
    assert template("dataset") == coop.LAYOUTS[name].template and template("dataset").count("{}") == 1
    assert template("a bad photo of the {}.") == "a bad photo of the {}."


def test_templates_are_the_usual_ones():
    # CoOp's CUSTOM_TEMPLATES (Zhou et al. 2022).
    usual = {"oxford_pets": "a photo of a {}, a type of pet.", "dtd": "{} texture.", "eurosat": "a centered satellite photo of {}."}
    assert {name: coop.LAYOUTS[name].template for name in usual} == usual


@pytest.mark.parametrize("text", ["", "a photo.", "a {} and a {}"])
def test_templates_without_one_place_for_the_name(text: str):
    with pytest.raises(UserError, match="must be 'generic', 'dataset' or a text with one "):
        DataConfig(template=text)


@pytest.mark.parametrize("name", [name for name in REAL if name not in BY_CLASS])
def test_without_split_file_a_set_that_is_not_split_by_class_asks_for_it(name: str, tmp_path: Path):
    layout = coop.LAYOUTS[name]
    (imitation(name, tmp_path) / layout.split).unlink()
    with pytest.raises(UserError) as error:
        coop.load(name, str(tmp_path))
    message = str(error.value)
    images = f"{layout.folder}/{layout.images}/" if layout.images else f"{layout.folder}/"
    assert message.startswith(f"data.root: looked for {layout.folder}/{layout.split} and {images} below '{tmp_path}'")
    assert message.endswith(f"which holds {layout.folder}")


def unsplit(root: Path, name: str, counts: dict[str, int]) -> Path:
    """Class folders without a split file."""
    images = root / coop.LAYOUTS[name].folder / coop.LAYOUTS[name].images
    for folder, count in counts.items():
        (images / folder).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (4, 4), (10 * i, 0, 0)).save(images / folder / f"image_{i:04d}.jpg")
    return images


def contents(root: Path) -> list[str]:
    return sorted(str(path) for path in root.rglob("*"))


def test_the_rule_by_class_gives_half_a_fifth_and_the_rest(tmp_path: Path):
    unsplit(tmp_path, "dtd", {"banded": 10, "blotchy": 13, "zigzagged": 5})
    before = contents(tmp_path)
    source = coop.load("dtd", str(tmp_path), seed=0)
    per_class = {part: split.labels.bincount().tolist() for part, split in source.splits.items()}
    # round(6.5) = 6 and round(2.5) = 2: Python rounds halves to even, as CoOp does.
    assert per_class == {"train": [5, 6, 2], "val": [2, 3, 1], "test": [3, 4, 2]}
    made = source.made_split
    assert made is not None
    listed = [row[0] for rows in made.values() for row in rows]
    assert len(listed) == len(set(listed)) == 28 and not any(Path(file).is_absolute() for file in listed)
    assert contents(tmp_path) == before  # nothing is written into the user's folder


@pytest.mark.parametrize("name", BY_CLASS)
def test_the_made_split_is_the_same_every_time_and_reads_as_a_split_file(name: str, tmp_path: Path):
    images = unsplit(tmp_path, name, {"alpha": 10, "beta": 10})
    one, again, other = (coop.load(name, str(tmp_path), seed=seed) for seed in (3, 3, 4))
    assert one.made_split == again.made_split != other.made_split
    split_file = images.parent / coop.LAYOUTS[name].split
    split_file.write_text(json.dumps(one.made_split))
    read = coop.load(name, str(tmp_path), seed=5)
    assert read.made_split is None and read.class_names == one.class_names and labels(read) == labels(one)
    for i in range(10):
        assert torch.equal(read.splits["train"].read(i), one.splits["train"].read(i))


def test_the_split_of_a_class_does_not_depend_on_the_other_classes(tmp_path: Path):
    unsplit(tmp_path / "few", "food101", {"waffles": 10})
    unsplit(tmp_path / "more", "food101", {"apple_pie": 10, "waffles": 10})
    few, more = (coop.load("food101", str(tmp_path / which)).made_split for which in ("few", "more"))
    assert few is not None and more is not None
    for part in COUNTS:
        assert [row[0] for row in few[part]] == [row[0] for row in more[part] if row[2] == "waffles"]


def test_caltech_skips_and_renames_folders(tmp_path: Path):
    folders = ("BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes", "accordion", "airplanes")
    unsplit(tmp_path, "caltech101", dict.fromkeys(folders, 10))
    source = coop.load("caltech101", str(tmp_path))
    assert source.class_names == ("face", "leopard", "motorbike", "accordion", "airplane")
    assert source.made_split is not None
    assert not any(file.startswith(("BACKGROUND_Google", "Faces_easy")) for rows in source.made_split.values() for file, _, _ in rows)


def test_eurosat_renames_folders(tmp_path: Path):
    folders = (
        "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial",
        "Pasture", "PermanentCrop", "Residential", "River", "SeaLake",
    )  # fmt: skip
    unsplit(tmp_path, "eurosat", dict.fromkeys(folders, 5))
    assert coop.load("eurosat", str(tmp_path)).class_names == (
        "Annual Crop Land", "Forest", "Herbaceous Vegetation Land", "Highway or Road", "Industrial Buildings", "Pasture Land",
        "Permanent Crop Land", "Residential Buildings", "River", "Sea or Lake",
    )  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_class_too_small_to_split_is_named(count: int, tmp_path: Path):
    unsplit(tmp_path, "dtd", {"banded": 10, "blotchy": count})
    with pytest.raises(UserError, match="too few to divide into train, val and test") as error:
        coop.load("dtd", str(tmp_path))
    assert "class 'blotchy'" in str(error.value) and f"has {count} images" in str(error.value)


def test_the_split_file_wins_over_the_rule(root: Path):
    assert coop.load("caltech101", str(root)).made_split is None


# Excerpts: the first and last 40 entries of each part, so that labels may have gaps.
EXCERPTS = {"eurosat": 10, "oxford_flowers": 102, "oxford_pets": 37, "stanford_cars": 196, "ucf101": 101}


@pytest.mark.parametrize("name", EXCERPTS)
def test_excerpts_of_the_real_split_files(real_data: Path, name: str):
    path = real_data / "splits" / coop.LAYOUTS[name].split
    if not path.is_file():
        pytest.skip(f"no {path.name} in ../shared/data/splits")
    parts = coop.read_split(path)
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 80, "val": 80, "test": 80}
    files = [file for rows in parts.values() for file, _, _ in rows]
    assert len(set(files)) == 240  # no image in two parts
    assert all(Path(file).suffix == ".jpg" for file in files)
    found = {label: class_name for rows in parts.values() for _, label, class_name in rows}
    assert all(found[label] == class_name for rows in parts.values() for _, label, class_name in rows)
    assert min(found) >= 0 and max(found) < EXCERPTS[name]
    with pytest.raises(UserError, match="without a gap"):  # what an excerpt is told, instead of wrong class numbers
        coop.class_names(parts, path)
    dense = {label: i for i, label in enumerate(sorted(found))}
    closed = {part: [(file, dense[label], class_name) for file, label, class_name in rows] for part, rows in parts.items()}
    assert coop.class_names(closed, path) == tuple(found[label] for label in sorted(found))


def test_eurosat_names_are_those_of_the_real_split_file(real_data: Path):
    parts = coop.read_split(real_data / "splits" / coop.LAYOUTS["eurosat"].split)
    renamed = dict(coop.LAYOUTS["eurosat"].rename)
    for rows in parts.values():
        for file, _, name in rows:
            assert renamed.get(file.split("/")[0], file.split("/")[0]) == name


# Split files as people have them.


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_split_file_with_a_byte_order_mark(root: Path, encoding: str):
    split_of(root).write_text(split_of(root).read_text(), encoding=encoding)
    assert coop.load("caltech101", str(root)).class_names == NAMES


@pytest.mark.parametrize("place", ["../{}", "{} (1)", "Copy of {}", "101_ObjectCategories/{}", "{}.txt", "lists/{}"])
def test_a_split_that_was_made_up_is_said_and_what_lies_near(root: Path, place: str):
    whole = split_of(root).name
    name = place.format(whole) if not place.endswith(")") else place.format(whole.removesuffix(".json")) + ".json"
    near = split_of(root).parent / name
    near.parent.mkdir(exist_ok=True)
    (root / "caltech-101" / "101_ObjectCategories" / "water_lilly" / "notes.txt").touch()
    split_of(root).rename(near)
    source = coop.load("caltech101", str(root))
    assert source.made_split is not None and len(source.splits["train"].labels) == 9
    made, left_out = source.notes
    assert made.startswith(f"there is no {whole} in {root / 'caltech-101'}, so the split into train, val and test was made anew")
    assert f"; is it {Path(os.path.normpath(near))}? Then move it to {split_of(root)}" in made
    assert left_out.startswith("left out: 1 of 19 files (1 .txt)")


def test_without_a_rule_what_lies_near_is_named(tmp_path: Path):
    folder = imitation("stanford_cars", tmp_path)
    near = (folder / "split_zhou_StanfordCars.json").rename(folder / "split_zhou_StanfordCars (1).json")
    with pytest.raises(UserError, match="looked for") as error:
        coop.load("stanford_cars", str(tmp_path))
    assert f"; is it {near}? Then move it to {folder / 'split_zhou_StanfordCars.json'}" in str(error.value)


def test_an_image_twice_in_one_part_is_said(root: Path):
    content = json.loads(split_of(root).read_text())
    edit(root, train=[*content["train"], content["train"][1]])
    (told,) = coop.load("caltech101", str(root)).notes
    assert "lists 1 images more than once" in told and told.endswith(f"{content['train'][1][0]} in train and in train")


def test_an_image_in_train_and_in_test_is_said(root: Path):
    content = json.loads(split_of(root).read_text())
    edit(root, test=[*content["test"], content["train"][0], content["val"][0]])
    (told,) = coop.load("caltech101", str(root)).notes
    path = root / "caltech-101" / "101_ObjectCategories" / content["train"][0][0]
    assert told == f"the split file {split_of(root)} lists 2 images more than once, first {path} in train and in test"


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_image_under_two_labels_is_refused(root: Path, part: str):
    content = json.loads(split_of(root).read_text())
    file = content["train"][0][0]
    edit(root, **{part: [*content[part], [f"./{file}", 2, NAMES[2]]]})
    assert f"lists the image {root / 'caltech-101' / '101_ObjectCategories' / file} under two labels, 0 and 2" in refusal(root)


def test_a_whole_split_has_nothing_to_say(root: Path):
    assert coop.load("caltech101", str(root)).notes == ()
