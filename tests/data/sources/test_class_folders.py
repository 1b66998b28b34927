"""What lies in people's folders: system folders, empty classes, subfolders, other file types, and parts of a split by other names."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from pfedmma.data.loading import DataConfig, divide, open_source
from pfedmma.data.sources.base import Source
from pfedmma.data.sources.images import find
from pfedmma.system.errors import UserError


def fill(folder: Path, count: int = 4, suffix: str = ".jpg") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 6), (20 * number, 0, 0)).save(folder / f"{number}{suffix}")
    return folder


def opened(root: Path, name: str = "imagefolder", **settings: object) -> Source:
    return open_source(DataConfig(name=name, root=str(root), **settings), 0, 32)  # type: ignore[arg-type]


def refusal(root: Path, name: str = "imagefolder", **settings: object) -> str:
    with pytest.raises(UserError) as error:
        opened(root, name, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def counts(source: Source) -> dict[str, int]:
    """Images of each class, over all splits."""
    every = [label for split in source.splits.values() for label in split.labels.tolist()]
    return {name: every.count(label) for label, name in enumerate(source.class_names)}


def note(source: Source, begin: str) -> str:
    """The one note that begins like this."""
    (found,) = (text for text in source.notes if text.startswith(begin))
    return found


SYSTEM = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "#recycle", ".ipynb_checkpoints", "__pycache__")


# A: folders that hold no images


@pytest.mark.parametrize("junk", SYSTEM)
@pytest.mark.parametrize("name", ["imagefolder", "domainfolder"])
def test_a_system_folder_is_no_class_and_no_domain(tmp_path: Path, junk: str, name: str):
    data = tmp_path / "photo" if name == "domainfolder" else tmp_path
    for animal in ("ant", "bee"):
        fill(data / animal)
        fill(data / animal / junk)
    fill(data / junk)
    fill(data / junk / "ant")
    fill(tmp_path / junk / "ant")
    source = opened(tmp_path, name)
    assert counts(source) == {"ant": 4, "bee": 4} and source.domains in ((), ("photo",)) and source.notes == ()


def test_empty_classes_are_left_out_by_name(tmp_path: Path):
    for animal in ("ant", "bee", "cat", "dog"):
        fill(tmp_path / animal)
    for animal in ("aaa", "yak", "zebra"):
        (tmp_path / animal).mkdir()
    source = opened(tmp_path)
    assert source.class_names == ("ant", "bee", "cat", "dog") and counts(source) == dict.fromkeys(source.class_names, 4)
    assert note(source, "left out: ") == "left out: the classes aaa, yak, zebra, of which there is no image"
    federated = divide(source, DataConfig(clients=2, shots=1), 0, "test")
    assert federated.base.classes == ("ant", "bee") and federated.novel is not None and federated.novel.classes == ("cat", "dog")


def test_empty_classes_of_train_and_test_folders(tmp_path: Path):
    for part in ("train", "test"):
        fill(tmp_path / part / "ant")
        fill(tmp_path / part / "cat")
        (tmp_path / part / "bee").mkdir()
    source = opened(tmp_path)
    assert counts(source) == {"ant": 8, "cat": 8} and "the classes bee," in note(source, "left out: ")


def test_empty_classes_and_domains_of_a_domain_folder(tmp_path: Path):
    fill(tmp_path / "photo" / "ant")
    fill(tmp_path / "sketch" / "ant")
    (tmp_path / "sketch" / "bee").mkdir()
    (tmp_path / "image_list").mkdir()
    (tmp_path / "image_list" / "photo_train.txt").write_text("photo/ant/0.jpg 0\n")
    (tmp_path / "models" / "best").mkdir(parents=True)
    source = opened(tmp_path, "domainfolder")
    assert source.domains == ("photo", "sketch") and counts(source) == {"ant": 8}
    assert source.splits["train"].domains is not None and source.splits["train"].domains.unique().tolist() == [0, 1]
    notes = " ".join(source.notes)
    assert "image_list, models" in notes and "the classes bee," in notes


def test_images_below_subfolders_of_a_class_are_its_own(tmp_path: Path):
    fill(tmp_path / "ant")
    fill(tmp_path / "bird" / "part1", 5)
    fill(tmp_path / "bird" / "part2" / "more", 3)
    source = opened(tmp_path)
    assert counts(source) == {"ant": 4, "bird": 8}
    assert note(source, "read below") == "read below subfolders: 8 images of class bird"


def test_a_link_back_to_a_folder_above_ends_there(tmp_path: Path):
    fill(tmp_path / "ant" / "part")
    fill(tmp_path / "bee")
    (tmp_path / "ant" / "part" / "again").symlink_to(tmp_path / "ant", target_is_directory=True)
    assert counts(opened(tmp_path)) == {"ant": 4, "bee": 4}


def test_linked_class_folders_keep_the_name_of_the_link(tmp_path: Path):
    fill(tmp_path / "store" / "xyz")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ant").symlink_to(tmp_path / "store" / "xyz", target_is_directory=True)
    fill(tmp_path / "data" / "bee")
    assert counts(opened(tmp_path / "data")) == {"ant": 4, "bee": 4}


def test_domains_are_not_taken_for_classes_nor_a_root_one_too_high(tmp_path: Path):
    for domain in ("photo", "sketch"):
        for animal in ("ant", "bee"):
            fill(tmp_path / "pacs" / domain / animal)
    message = refusal(tmp_path / "pacs")
    assert "all lie a folder deeper" in message and str(Path("photo", "ant", "0.jpg")) in message and "data.name=domainfolder" in message
    assert "all lie a folder deeper" in refusal(tmp_path, "domainfolder")


def test_parts_beside_classes_are_no_classes(tmp_path: Path):
    fill(tmp_path / "ant")
    fill(tmp_path / "train" / "ant")
    assert "is a part of a split rather than a class" in refusal(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path):
    fill(tmp_path / "train")
    fill(tmp_path / "bus")
    assert counts(opened(tmp_path)) == {"bus": 4, "train": 4}


# B: images of other kinds


def test_what_pillow_decodes_is_taken_and_the_rest_is_counted(tmp_path: Path):
    folder = tmp_path / "ant"
    folder.mkdir()
    picture = Image.new("RGB", (8, 6), (9, 9, 9))
    for name, kind in (
        ("a.gif", "GIF"), ("b.pgm", "PPM"), ("c.jfif", "JPEG"), ("d.jpe", "JPEG"), ("e", "PNG"), ("f.JPG", "JPEG"), ("g.dat", "WEBP"),
        ("h.jp2", "JPEG2000"), ("i.tga", "TGA"), ("j.ico", "ICO"), ("k.PNG.bak", "PNG"), ("l.pcx", "PCX"),
    ):  # fmt: skip
        picture.save(folder / name, kind)
    (folder / "m.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (folder / "n.txt").write_text("notes")
    (folder / "o.EPS").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    for name in ("Thumbs.db", ".DS_Store", "._a.gif", "desktop.ini"):
        (folder / name).touch()
    fill(tmp_path / "bee")
    source = opened(tmp_path)
    assert counts(source) == {"ant": 12, "bee": 4}
    told = note(source, "left out: ")
    assert told.startswith(f"left out: 3 of 19 files (1 .heic, 1 .txt, 1 .eps), first {folder / 'm.heic'}; they are no images of a kind")
    for split in source.splits.values():
        assert {tuple(split.read(i).shape[0:1]) for i in range(len(split.labels))} == {(3,)}


def test_files_that_are_no_files_are_not_opened(tmp_path: Path):
    folder = fill(tmp_path / "ant", 2)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(folder / "socket"))
        found = find(folder)
    assert [path.name for path in found.images] == ["0.jpg", "1.jpg"]
    assert [path.name for path in found.left_out] == ["pipe", "socket"]


def test_an_empty_image_file_is_named_when_it_is_read(tmp_path: Path):
    (fill(tmp_path / "ant") / "0.jpg").write_bytes(b"")
    source = opened(tmp_path, test_fraction=0.25)
    with pytest.raises(UserError, match=r"0\.jpg"):
        for split in source.splits.values():
            for position in range(len(split.labels)):
                split.read(position)


# C: one prompt for two classes


@pytest.mark.parametrize("other", ["dog", "DOG", "Dog_", "dog "])
def test_names_that_sound_alike(tmp_path: Path, other: str):
    fill(tmp_path / "photo" / "Dog")
    fill(tmp_path / "sketch" / other)
    assert "'Dog'" in (told := refusal(tmp_path, "domainfolder")) and f"'{other}'" in told and "to two classes" in told


# F: advice that helps


def test_a_class_without_training_images_is_told_so(tmp_path: Path):
    fill(tmp_path / "train" / "cat")
    for animal in ("ant", "bee"):
        (tmp_path / "train" / animal).mkdir()
    for animal in ("ant", "bee"):
        fill(tmp_path / "test" / animal)
    for config in (DataConfig(clients=1, shots=0), DataConfig(clients=1, shots=2), DataConfig(clients=1, shots=2, protocol="iid")):
        with pytest.raises(UserError) as error:
            divide(opened(tmp_path), config, 0, "test")
        assert "class 'ant' has 0 training images" in str(error.value) and "shots" not in str(error.value)


# Q: parts by other names, and a choice of domains


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "val"), ["train", "test"]),
        (("train", "valid"), ["train", "test"]),
        (("Train", "Test"), ["train", "test"]),
        (("TRAIN", "validation", "TEST"), ["train", "val", "test"]),
        (("training", "testing"), ["train", "test"]),
    ],
)
def test_parts_of_other_names(tmp_path: Path, folders: tuple[str, ...], splits: list[str]):
    for number, part in enumerate(folders):
        for animal in ("ant", "bee"):
            fill(tmp_path / part / animal, 3 - number)
    source = opened(tmp_path)
    assert list(source.splits) == splits and counts(source) == dict.fromkeys(("ant", "bee"), sum(3 - n for n in range(len(folders))))
    said = [text for text in source.notes if "serves as the test split" in text]
    assert len(said) == (splits == ["train", "test"] and folders[1].startswith("val"))


def test_test_images_without_labels_are_no_test_split(tmp_path: Path):
    for part in ("train", "val"):
        for animal in ("ant", "bee"):
            fill(tmp_path / part / animal)
    fill(tmp_path / "test")  # as competitions hand them out
    source = opened(tmp_path)
    assert counts(source) == {"ant": 8, "bee": 8} and any("val/ serves as the test split" in text for text in source.notes)


def test_two_folders_that_might_be_one_part(tmp_path: Path):
    for part in ("train", "valid", "validation"):
        fill(tmp_path / part / "ant")
    assert "might both be the val split" in refusal(tmp_path)


def test_a_test_split_that_is_a_link_to_the_training_split(tmp_path: Path):
    fill(tmp_path / "train" / "ant")
    (tmp_path / "test").symlink_to(tmp_path / "train", target_is_directory=True)
    assert opened(tmp_path).notes == (f"{tmp_path / 'test'} is the folder {tmp_path / 'train'}",)


def test_domains_are_chosen_in_order(tmp_path: Path):
    for domain in ("art", "photo", "sketch", "video"):
        fill(tmp_path / domain / "ant")
    source = opened(tmp_path, "domainfolder", domains=("sketch", "art"))
    assert source.domains == ("sketch", "art") and counts(source) == {"ant": 8}
    assert "looked for the domain folders sketch, film in" in refusal(tmp_path, "domainfolder", domains=("sketch", "film"))
    assert refusal(tmp_path / "art", domains=("ant",)).startswith("data.domains: imagefolder has no domains")
    (tmp_path / "empty").mkdir()
    assert "holds no image in class folders" in refusal(tmp_path, "domainfolder", domains=("art", "empty"))


# P: names


WNIDS = {"n01440764": "tench", "n01443537": "goldfish", "n02108089": "boxer, a dog"}


def test_ids_for_names_are_said(tmp_path: Path):
    for wnid in WNIDS:
        fill(tmp_path / wnid)
    (told,) = opened(tmp_path).notes
    assert "n01440764" in told and "data.class_names=FILE" in told


@pytest.mark.parametrize("home", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "n99999999 another\n" + "".join(f"{wnid} {name}\r\n" for wnid, name in WNIDS.items()),
        "\ufeff" + "".join(f"{wnid}\t{name}\n\n" for wnid, name in reversed(WNIDS.items())),
        "".join(f'{wnid},"{name}"\n' for wnid, name in WNIDS.items()),
        "\n".join(WNIDS.values()),
        '["tench", "goldfish", "boxer, a dog"]',
        '{"n02108089": "boxer, a dog", "n01440764": "tench", "n01443537": "goldfish"}',
        '{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"], "2": ["n02108089", "boxer, a dog"]}',
        '{"0": "tench", "1": "goldfish", "2": "boxer, a dog"}',
        '[["n02108089", "boxer, a dog"], ["n01440764", "tench"], ["n01443537", "goldfish"]]',
    ],
)
def test_a_file_of_class_names(tmp_path: Path, text: str, home: bool, monkeypatch: pytest.MonkeyPatch):
    for number, wnid in enumerate(WNIDS):
        fill(tmp_path / "data" / wnid, 2 + number)
    (tmp_path / "names").write_text(text, encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    source = opened(tmp_path / "data", class_names="~/names" if home else str(tmp_path / "names"))
    assert counts(source) == {"tench": 2, "goldfish": 3, "boxer, a dog": 4} and source.notes == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tench\ngoldfish\n", "gives 2 names to the 3 classes"),
        ("n01440764 tench\nn01443537 goldfish\n", "gives 2 names to the 3 classes"),
        ('{"n01440764": "tench"}', "gives no name to the class 'n01443537'"),
        ("tench\nTench\nboxer\n", "'tench' to two classes, the other time as 'Tench'"),
        ("[1, 2, 3]", "neither a list of names nor an object"),
        ("{", "cannot read"),
        (None, "cannot read"),
    ],
)
def test_a_file_that_does_not_name_the_classes(tmp_path: Path, text: str | None, told: str):
    for wnid in WNIDS:
        fill(tmp_path / "data" / wnid)
    if text is not None:
        (tmp_path / "names").write_text(text)
    message = refusal(tmp_path / "data", class_names=str(tmp_path / "names"))
    assert message.startswith("data.class_names: ") and told in message
