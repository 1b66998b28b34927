"""Splits made from a data set's own lists, where the CoOp split file is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pfedmma.data.sources import coop
from pfedmma.system.errors import UserError
from pfedmma.train import main


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def make_pets(root: Path) -> None:
    """Two breeds: ten images each in trainval, three each in test; the lists begin with comments, as the real ones do."""
    folder = root / "oxford_pets"
    for name, numbers in (("trainval", range(1, 11)), ("test", range(11, 14))):
        rows = [(f"{breed}_{i}", label) for label, breed in enumerate(("Abyssinian", "american_bulldog"), start=1) for i in numbers]
        write(folder / "annotations" / f"{name}.txt", "#Image CLASS-ID SPECIES BREED ID", *[f"{stem} {label} 1 1" for stem, label in rows])
        for stem, _ in rows:
            draw(folder / "images" / f"{stem}.jpg")


def make_ucf101(root: Path) -> None:
    folder, actions = root / "ucf101", ("ApplyEyeMakeup", "YoYo")
    write(folder / "ucfTrainTestlist" / "classInd.txt", *[f"{i} {action}" for i, action in enumerate(actions, start=1)])
    for name, groups, label in (("trainlist01", range(8, 18), True), ("testlist01", range(1, 4), False)):
        clips = [(action, f"v_{action}_g{group:02d}_c01", i) for i, action in enumerate(actions, start=1) for group in groups]
        write(folder / "ucfTrainTestlist" / f"{name}.txt", *[f"{a}/{clip}.avi{f' {i}' if label else ''}" for a, clip, i in clips])
        for action, clip, _ in clips:
            spoken = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "YoYo": "Yo_Yo"}[action]
            draw(folder / "UCF-101-midframes" / spoken / f"{clip}.jpg")


def make_sun397(root: Path) -> None:
    folder, places = root / "sun397", ("/a/abbey", "/c/church/outdoor")
    write(folder / "ClassName.txt", *places)
    for name, numbers in (("Training_01", range(10)), ("Testing_01", range(10, 13))):
        paths = [f"{place}/sun_{i}.jpg" for place in places for i in numbers]
        write(folder / f"{name}.txt", *paths)
        for path in paths:
            draw(folder / "SUN397" / path.removeprefix("/"))


def make_flowers(root: Path) -> None:
    """Ten images of each of two classes, in turn."""
    savemat = pytest.importorskip("scipy.io").savemat
    folder = root / "oxford_flowers"
    for i in range(1, 21):
        draw(folder / "jpg" / f"image_{i:05d}.jpg")
    savemat(str(folder / "imagelabels.mat"), {"labels": [[1 + i % 2 for i in range(20)]]})
    (folder / "cat_to_name.json").write_text(json.dumps({"1": "pink primrose", "2": "hard-leaved pocket orchid"}))


SETS = {
    "oxford_pets": (make_pets, ("abyssinian", "american_bulldog"), (16, 4, 6)),
    "ucf101": (make_ucf101, ("Apply_Eye_Makeup", "Yo_Yo"), (16, 4, 6)),
    "sun397": (make_sun397, ("abbey", "outdoor church"), (16, 4, 6)),
    "oxford_flowers": (make_flowers, ("pink primrose", "hard-leaved pocket orchid"), (10, 4, 6)),
}


@pytest.mark.parametrize("name", SETS)
def test_a_fifth_of_each_training_class_goes_to_val(name: str, tmp_path: Path):
    make, classes, sizes = SETS[name]
    make(tmp_path)
    source = coop.load(name, str(tmp_path))
    assert source.class_names == classes
    assert tuple(len(source.splits[part].labels) for part in ("train", "val", "test")) == sizes
    for part, size in zip(("train", "val", "test"), sizes, strict=True):
        assert source.splits[part].labels.bincount().tolist() == [size // 2] * 2
        assert source.splits[part].read(0).shape == (3, 4, 4)


@pytest.mark.parametrize("name", SETS)
def test_every_image_stands_once_and_the_draw_is_always_the_same(name: str, tmp_path: Path):
    SETS[name][0](tmp_path)
    made = coop.load(name, str(tmp_path)).made_split
    assert made is not None and made == coop.load(name, str(tmp_path)).made_split
    paths = [path for rows in made.values() for path, _, _ in rows]
    assert len(paths) == len(set(paths)) == sum(SETS[name][2])
    # Kept beside a run, the split can be put where the split file is looked for.
    layout = coop.LAYOUTS[name]
    (tmp_path / layout.folder / layout.split).write_text(json.dumps(made))
    again = coop.load(name, str(tmp_path))
    assert again.made_split is None and again.splits["train"].labels.tolist() == [label for _, label, _ in made["train"]]


@pytest.mark.parametrize(
    ("name", "file", "line", "message"),
    [
        ("oxford_pets", "annotations/trainval.txt", "Abyssinian_1", "at least 2 fields"),
        ("oxford_pets", "annotations/test.txt", "Abyssinian_1 x 1 1", "number classes from 1"),
        ("ucf101", "ucfTrainTestlist/trainlist01.txt", "Knitting/v_x.avi 3", "classInd.txt"),
        ("sun397", "Testing_01.txt", "/z/zoo/sun_1.jpg", "ClassName.txt"),
    ],
)
def test_broken_lists_are_named(name: str, file: str, line: str, message: str, tmp_path: Path):
    SETS[name][0](tmp_path)
    path = tmp_path / coop.LAYOUTS[name].folder / file
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=message):
        coop.load(name, str(tmp_path))


def test_a_missing_list_is_named(tmp_path: Path):
    make_pets(tmp_path)
    (tmp_path / "oxford_pets" / "annotations" / "test.txt").unlink()
    with pytest.raises(UserError, match=r"looked for the list .*test\.txt; that folder holds trainval\.txt"):
        coop.load("oxford_pets", str(tmp_path))


def test_the_made_split_is_kept_with_the_run_and_not_with_the_data(tmp_path: Path):
    make_pets(tmp_path / "data")
    before = sorted((tmp_path / "data").rglob("*"))
    settings = ["backbone.pretrained=none", "data.clients=1", "data.shots=1", "federation.rounds=1", "evaluation.every=0"]
    main([f"run_dir={tmp_path / 'run'}", "data.name=oxford_pets", f"data.root={tmp_path / 'data'}", *settings])
    assert json.loads((tmp_path / "run" / "split.json").read_text()) == coop.load("oxford_pets", str(tmp_path / "data")).made_split
    assert sorted((tmp_path / "data").rglob("*")) == before
