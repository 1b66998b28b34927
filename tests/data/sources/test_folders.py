"""Plain folders of images: classes, domains of classes, and what a user is told when the folder holds something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from pfedmma.data.loading import DataConfig, divide
from pfedmma.data.sources import folders
from pfedmma.data.sources.base import GENERIC_TEMPLATE, Source
from pfedmma.data.sources.folders import OFFICE
from tests.support.opened import opened, refusal

# The names that Office-Caltech10 (Gong et al. 2012) gives its class folders.
OFFICE_CLASSES = (
    "back_pack", "bike", "calculator", "headphones", "keyboard", "laptop_computer", "monitor", "mouse", "mug", "projector"
)  # fmt: skip


def fill(folder: Path, count: int, name: Callable[[int], str] = "img_{:02d}.jpg".format) -> None:
    """``count`` images, told apart by their red value (20 grey levels each)."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (12, 10), (20 * i, 0, 0)).save(folder / name(i))


def classes_in(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        fill(root / name, count)
    return root


def shades(source: Source, part: str) -> list[int]:
    """The numbers of the images of a split within their class folders."""
    split = source.splits[part]
    return [round(split.read(i)[0].float().mean().item() / 20) for i in range(len(split.labels))]


def counts(source: Source, part: str) -> list[int]:
    return source.splits[part].labels.bincount(minlength=len(source.class_names)).tolist()


def test_train_and_test_folders(tmp_path: Path):
    classes_in(tmp_path / "train", {"dog": 3, "cat": 2})
    classes_in(tmp_path / "test", {"dog": 1, "cat": 2})
    source = opened("imagefolder", tmp_path)
    assert (source.name, source.class_names, source.template, source.domains) == ("imagefolder", ("cat", "dog"), GENERIC_TEMPLATE, ())
    assert {part: split.labels.tolist() for part, split in source.splits.items()} == {"train": [0, 0, 1, 1, 1], "test": [0, 0, 1]}
    assert shades(source, "train") == [0, 1, 0, 1, 2]  # in order of name
    image = source.splits["train"].read(1)
    assert image.shape == (3, 10, 12) and image.dtype == torch.uint8


def test_a_val_folder_is_a_third_split(tmp_path: Path):
    for part in ("train", "val", "test"):
        classes_in(tmp_path / part, {"a": 2, "b": 2})
    assert list(opened("imagefolder", tmp_path).splits) == ["train", "val", "test"]


def test_only_images_count(tmp_path: Path):
    for name in ("a.JPG", "b.jpeg", "c.PNG", "d.bmp", "e.webp", "f.tif"):
        (tmp_path / "x").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "x" / name)
    for name in ("Thumbs.db", "._a.JPG", "notes.txt"):  # as other systems leave them
        (tmp_path / "x" / name).write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README").touch()
    source = opened("imagefolder", tmp_path, test_fraction=0.5)
    assert source.class_names == ("x",) and sum(len(split.labels) for split in source.splits.values()) == 6


@pytest.mark.parametrize(("fraction", "expected"), [(0.3, [3, 1, 1, 0]), (0.5, [5, 2, 1, 0]), (0.01, [1, 1, 1, 0]), (1.0, [9, 3, 1, 0])])
def test_one_folder_is_split_by_class(tmp_path: Path, fraction: float, expected: list[int]):
    # At least one image of a class in each part, where there are two; a single one is for training.
    classes_in(tmp_path, {"a": 10, "b": 4, "c": 2, "d": 1})
    source = opened("imagefolder", tmp_path, test_fraction=fraction)
    assert counts(source, "test") == expected
    assert counts(source, "train") == [whole - part for whole, part in zip([10, 4, 2, 1], expected, strict=True)]
    held = {part: set(zip(source.splits[part].labels.tolist(), shades(source, part), strict=True)) for part in ("train", "test")}
    assert not held["train"] & held["test"] and len(held["train"] | held["test"]) == 17


def test_the_split_is_part_of_the_data_and_the_same_for_every_seed(tmp_path: Path):
    classes_in(tmp_path, {"a": 10, "b": 10})
    one, again, other = (shades(opened("imagefolder", tmp_path, seed=seed), "test") for seed in (1, 1, 2))
    assert one == again == other
    assert one[:3] != one[3:]  # each class has its own draw


def test_a_class_of_the_test_set_alone_is_an_error(tmp_path: Path):
    classes_in(tmp_path / "train", {"a": 2})
    classes_in(tmp_path / "test", {"a": 2, "b": 2})
    assert refusal("imagefolder", tmp_path).endswith(f"{tmp_path / 'test'} holds class 'b', which {tmp_path / 'train'} does not")


@pytest.mark.parametrize("name", ["imagefolder", "domainfolder"])
def test_roots_that_are_none(tmp_path: Path, name: str):
    assert refusal(name, "") == "data.root: give the folder of images"
    assert refusal(name, tmp_path / "absent") == f"data.root: there is no folder '{tmp_path / 'absent'}'"
    assert refusal(name, tmp_path).endswith(f"looked for a folder for each class in {tmp_path}, which holds nothing")
    fill(tmp_path / "flat", 2)
    assert refusal(name, tmp_path / "flat").endswith("which holds img_00.jpg, img_01.jpg")


@pytest.mark.parametrize("parts", [("train",), ("val", "test"), ("Testing",)])
def test_train_without_test_is_not_taken_for_a_class(tmp_path: Path, parts: Sequence[str]):
    for part in parts:
        classes_in(tmp_path / part, {"a": 2, "b": 2})
    message = refusal("imagefolder", tmp_path)
    assert "looked for images in train/<class>/ and test/<class>/, or <class>/," in message
    assert f"{tmp_path / min(parts)} is a part of a split rather than a class" in message


def test_class_folders_without_images(tmp_path: Path):
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
    assert "found none to train on" in refusal("imagefolder", tmp_path)
    fill(tmp_path / "train" / "b", 2)
    assert "found none to test on" in refusal("imagefolder", tmp_path)
    (tmp_path / "domains" / "photo" / "dog").mkdir(parents=True)
    assert "looked for images in <domain>/<class>/" in refusal("domainfolder", tmp_path / "domains")


@pytest.mark.parametrize("name", ["imagefolder", "domainfolder"])
def test_two_classes_of_one_prompt(tmp_path: Path, name: str):
    # "_" becomes a space in prompts: no model could tell these classes apart.
    classes_in(tmp_path if name == "imagefolder" else tmp_path / "photo", {"hot_dog": 2, "hot dog": 2, "cat": 2})
    told = f"the folders in {tmp_path} give the class name 'hot dog' to two classes, the other time as 'hot_dog'"
    assert refusal(name, tmp_path).endswith(told)


def test_domains_of_classes(tmp_path: Path):
    classes_in(tmp_path / "sketch", {"dog": 4, "cat": 4})
    classes_in(tmp_path / "photo", {"dog": 10, "cat": 4, "emu": 2})
    source = opened("domainfolder", tmp_path, test_fraction=0.5)
    assert (source.class_names, source.domains) == (("cat", "dog", "emu"), ("photo", "sketch"))
    for part, expected in (("train", [[2, 5, 1], [2, 2, 0]]), ("test", [[2, 5, 1], [2, 2, 0]])):
        split = source.splits[part]
        assert split.domains is not None
        assert [split.labels[split.domains == d].bincount(minlength=3).tolist() for d in range(2)] == expected


def office(root: Path, domains: Sequence[str] = OFFICE) -> Path:
    """Office-Caltech10 as it is unpacked: ``frame_0001.jpg`` in three domains, ``image_0001.jpg`` in caltech."""
    for domain in domains:
        for name in OFFICE_CLASSES:
            fill(root / domain / name, 4, ("image_{:04d}.jpg" if domain == "caltech" else "frame_{:04d}.jpg").format)
    return root


def test_office_caltech10(tmp_path: Path):
    office(tmp_path / "office_caltech_10")
    (tmp_path / "office_caltech_10" / "Original_images").mkdir()  # what else lies there is no domain
    for root in (tmp_path, tmp_path / "office_caltech_10"):
        source = opened("office_caltech10", root, test_fraction=0.25)
        assert (source.name, source.domains, source.class_names) == ("office_caltech10", OFFICE, OFFICE_CLASSES)
        assert counts(source, "train") == [12] * 10 and counts(source, "test") == [4] * 10
    config = DataConfig(name="office_caltech10", root=str(tmp_path), protocol="domains", clients=12, shots=0)
    clients = divide(opened("office_caltech10", tmp_path), config, 0, "test").clients
    assert [client.domain for client in clients] == [name for name in OFFICE for _ in range(3)]  # the paper's 4 x 3


def test_office_caltech10_without_a_domain(tmp_path: Path):
    office(tmp_path, OFFICE[:3])
    message = refusal("office_caltech10", tmp_path)
    assert "looked for the domain folders amazon, caltech, dslr, webcam in" in message
    assert message.endswith("which holds amazon, caltech, dslr; data.domains chooses among domains")
    assert "office_caltech_10/" in refusal("office_caltech10", "")


def test_listing_is_short(tmp_path: Path):
    for i in range(30):
        (tmp_path / f"{i:02d}").mkdir()
    assert folders.listing(tmp_path) == "00, 01, 02, 03, 04, 05, 06, 07"


@pytest.fixture
def cifar(real_data: Path) -> Source:
    return opened("imagefolder", real_data / "cifar10-images")


@pytest.fixture
def pacs(real_data: Path) -> Source:
    return opened("domainfolder", real_data / "pacs")


def test_real_cifar_as_imagefolder(cifar: Source):
    assert cifar.class_names == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert counts(cifar, "train") == [500] * 10 and counts(cifar, "test") == [100] * 10
    assert cifar.splits["test"].read(999).shape == (3, 32, 32)


@pytest.mark.parametrize("protocol", ["iid", "dirichlet"])
def test_real_cifar_among_clients(cifar: Source, protocol: str):
    config = DataConfig(name="imagefolder", root="-", protocol=protocol, clients=100, shots=0, min_samples=5)
    federation = divide(cifar, config, seed=0, test_split="test")
    assert sorted(torch.cat([client.train for client in federation.clients]).tolist()) == list(range(5000))
    assert min(len(client.train) for client in federation.clients) >= 5
    spread_of_classes = sum(len(client.classes) for client in federation.clients) / 100
    assert (spread_of_classes > 9.5) if protocol == "iid" else (spread_of_classes < 9.0)


def test_real_pacs_in_four_domains_of_two_clients(pacs: Source):
    assert pacs.domains == ("art_painting", "cartoon", "photo", "sketch") and len(pacs.class_names) == 7
    assert counts(pacs, "train") == [84] * 7 and counts(pacs, "test") == [36] * 7  # 30 of a class and domain, 0.3 of them for tests
    config = DataConfig(name="domainfolder", root="-", protocol="domains", clients=8, shots=0)
    federation = divide(pacs, config, seed=0, test_split="test")
    assert [client.domain for client in federation.clients] == [name for name in pacs.domains for _ in range(2)]
    for first, second in zip(federation.clients[::2], federation.clients[1::2], strict=True):
        assert len(first.train) + len(second.train) == 7 * 21
    assert pacs.splits["train"].read(0).shape == (3, 227, 227)


def test_real_pacs_with_a_domain_held_out(pacs: Source):
    config = DataConfig(name="domainfolder", root="-", protocol="domains", clients=6, shots=16, held_out_domain="sketch")
    federation = divide(pacs, config, seed=0, test_split="test")
    assert sum(len(client.train) for client in federation.clients) == 3 * 7 * 16
    assert federation.unseen is not None and len(federation.unseen.indices) == 7 * 9 and len(federation.base.indices) == 3 * 7 * 9
