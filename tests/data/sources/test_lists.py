"""DomainNet, FGVC-Aircraft and ImageNet: a few generated images under the real names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pfedmma.data.loading import DataConfig, divide
from pfedmma.data.sources import lists
from pfedmma.data.sources.base import Source
from pfedmma.system.errors import UserError
from tests.support.opened import opened, refusal


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def labels(source: Source) -> dict[str, list[int]]:
    return {part: split.labels.tolist() for part, split in source.splits.items()}


VARIANTS = ("707-320", "A300B4", "Falcon 900")  # names may hold spaces
PARTS = {"train": 2, "val": 1, "test": 1}


@pytest.fixture
def aircraft(tmp_path: Path) -> Path:
    folder = tmp_path / "fgvc_aircraft"
    folder.mkdir()
    (folder / "variants.txt").write_text("\n".join(VARIANTS) + "\n")
    number = 1025000
    for part, count in PARTS.items():
        lines = []
        for name in VARIANTS[::-1] * count:
            number += 1
            image(folder / "images" / f"{number:07d}.jpg")
            lines.append(f"{number:07d} {name}\n")
        (folder / f"images_variant_{part}.txt").write_text("".join(lines))
    return tmp_path


def test_aircraft_by_variant(aircraft: Path):
    for root in (aircraft, aircraft / "fgvc_aircraft"):
        source = opened("fgvc_aircraft", root)
        assert (source.name, source.class_names) == ("fgvc_aircraft", VARIANTS)
        assert labels(source) == {"train": [2, 1, 0, 2, 1, 0], "val": [2, 1, 0], "test": [2, 1, 0]}
        assert source.splits["test"].read(2).shape == (3, 8, 8)
    assert opened("fgvc_aircraft", aircraft, template="dataset").template == "a photo of a {}, a type of aircraft."


def test_aircraft_lists_that_are_wrong(aircraft: Path):
    folder = aircraft / "fgvc_aircraft"
    missing = sorted((folder / "images").iterdir())
    for path in missing[:2]:  # both of train, the later first in the list's order of classes
        path.unlink()
    message = refusal("fgvc_aircraft", aircraft)
    assert "2 of 6 images that images_variant_train.txt lists are missing" in message
    assert f"first {missing[0]}, {missing[1]}; unpack the images into {folder / 'images'}" in message
    with open(folder / "images_variant_train.txt", "a") as file:
        file.write("1025001 747-400\n")
    assert refusal("fgvc_aircraft", aircraft).endswith("images_variant_train.txt names the variant '747-400', which variants.txt does not")
    (folder / "variants.txt").write_text("\n".join([*VARIANTS, "A300B4"]))
    assert refusal("fgvc_aircraft", aircraft).endswith("the lines of variants.txt give the class name 'A300B4' to two classes")


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [
        ("fgvc_aircraft", "variants.txt", "fgvc_aircraft/"),
        ("imagenet", "classnames.txt", "imagenet/"),
        ("domainnet", "clipart_train.txt", "domainnet/"),
    ],
)
def test_roots_that_are_none(tmp_path: Path, name: str, file: str, folder: str):
    assert refusal(name, "").endswith(f"give the folder that holds {folder}")
    assert refusal(name, tmp_path / "absent") == f"data.root: there is no folder '{tmp_path / 'absent'}'"
    message = refusal(name, tmp_path)
    assert "looked for the " in message and f"at {tmp_path / file}" in message and message.endswith("that folder holds nothing")
    (tmp_path / "caltech-101").mkdir()
    (tmp_path / "notes.txt").touch()
    assert refusal(name, tmp_path).endswith("that folder holds caltech-101, notes.txt")
    (tmp_path / file).write_bytes(b"\xff\xfe\x00")  # no text
    assert "looked for the " in refusal(name, tmp_path)


WNIDS = {"n01440764": "tench", "n01443537": "goldfish", "n02108089": "boxer dog"}


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    folder = tmp_path / "imagenet"
    for wnid in WNIDS:
        for i in range(3):
            image(folder / "images" / "train" / wnid / f"{wnid}_{i}.JPEG")
        image(folder / "images" / "val" / wnid / "ILSVRC2012_val_00000001.JPEG")
    (folder / "classnames.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in WNIDS.items()))
    return tmp_path


def test_imagenet_in_the_order_of_its_class_names(imagenet: Path):
    source = opened("imagenet", imagenet)
    assert source.class_names == ("tench", "goldfish", "boxer dog")
    assert labels(source) == {"train": [0, 0, 0, 1, 1, 1, 2, 2, 2], "test": [0, 1, 2]}  # CoOp tests on the val folder


def test_imagenet_may_call_two_labels_the_same(imagenet: Path):
    # As the usual list of names does, with "missile" and "sunglasses".
    (imagenet / "imagenet" / "classnames.txt").write_text("".join(f"{wnid} missile\n" for wnid in WNIDS))
    source = opened("imagenet", imagenet)
    assert source.class_names == ("missile",) * 3 and labels(source)["test"] == [0, 1, 2]


def test_imagenet_class_names_that_are_wrong(imagenet: Path):
    file = imagenet / "imagenet" / "classnames.txt"
    file.write_text("n01440764 tench\nn01443537\n")
    assert refusal("imagenet", imagenet).endswith("classnames.txt must give a folder and a name on each line, not 'n01443537'")
    file.write_text("n01440764 tench\nn01440764 goldfish\n")
    assert refusal("imagenet", imagenet).endswith("classnames.txt names the folder 'n01440764' on two lines")


def test_imagenet_without_images(imagenet: Path):
    (imagenet / "imagenet" / "images" / "val").rename(imagenet / "elsewhere")
    assert "looked for images in" in refusal("imagenet", imagenet) and "val/<wnid>/ and found none" in refusal("imagenet", imagenet)


ALL = (*lists.TEN_CLASSES, "The_Eiffel_Tower", "aircraft_carrier")


@pytest.fixture
def domainnet(tmp_path: Path) -> Path:
    """Twelve of the 345 classes, 2 + 1 images of each in each domain."""
    folder = tmp_path / "domainnet"
    folder.mkdir()
    for number, domain in enumerate(lists.DOMAINNET):
        for part, taken in (("train", (1, 2)), ("test", (3,))):
            lines = []
            for label, name in enumerate(sorted(ALL, key=str.lower)):
                for i in taken:
                    path = f"{domain}/{name}/{domain}_{label:03d}_{number * 100 + i:06d}.jpg"
                    image(folder / path)
                    lines.append(f"{path} {label}\n")
            (folder / f"{domain}_{part}.txt").write_text("".join(lines))
    return tmp_path


@pytest.mark.parametrize("all_classes", [False, True])
def test_domainnet(domainnet: Path, all_classes: bool):
    source = opened("domainnet", domainnet, all_classes=all_classes)
    names = tuple(sorted(ALL)) if all_classes else lists.TEN_CLASSES
    assert (source.class_names, source.domains) == (names, lists.DOMAINNET)  # an ordered list, not a set's order
    for part, each in (("train", 2), ("test", 1)):
        split = source.splits[part]
        assert split.domains is not None
        pairs = split.domains * len(names) + split.labels
        assert pairs.bincount().tolist() == [each] * (6 * len(names))
    config = DataConfig(name="domainnet", root="-", protocol="domains", clients=6, shots=0)
    assert [client.domain for client in divide(source, config, 0, "test").clients] == list(lists.DOMAINNET)


def test_domainnet_images_belong_to_their_labels(domainnet: Path):
    folder = domainnet / "domainnet"
    for path in folder.glob("*/tiger/*"):
        Image.new("RGB", (8, 8), (255, 0, 0)).save(path)
    source = opened("domainnet", domainnet)
    split = source.splits["test"]
    red = torch.tensor([split.read(i)[0].float().mean() > 128 for i in range(len(split.labels))])
    assert torch.equal(red, split.labels == lists.TEN_CLASSES.index("tiger"))


def test_domainnet_without_one_of_its_lists(domainnet: Path):
    (domainnet / "domainnet" / "sketch_test.txt").unlink()
    assert f"looked for the test list at {domainnet / 'domainnet' / 'sketch_test.txt'}" in refusal("domainnet", domainnet)


def test_domainnet_without_one_of_the_ten_classes(domainnet: Path):
    for path in (domainnet / "domainnet").glob("*.txt"):
        path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "/whale/" not in line))
    assert refusal("domainnet", domainnet).endswith("hold no image of class 'whale'")


def test_domainnet_with_missing_images(domainnet: Path):
    for path in (domainnet / "domainnet").glob("quickdraw/bird/*"):
        path.unlink()
    message = refusal("domainnet", domainnet)
    assert "2 of 120 images that <domain>_train.txt lists are missing, first " in message
    assert "quickdraw/bird/quickdraw_" in message


@pytest.mark.parametrize(
    "line", ["bird.jpg 0", "clipart/bird 0", "/clipart/bird/x.jpg 0", "clipart/../../x.jpg 0", "../bird/x.jpg 0", "a/clipart/bird/x.jpg 0"]
)
def test_domainnet_lines_of_another_form(domainnet: Path, line: str):
    with open(domainnet / "domainnet" / "real_train.txt", "a") as file:
        file.write(f"{line}\n")
    assert refusal("domainnet", domainnet).endswith(
        f"real_train.txt must list <domain>/<class>/<image> and a label on each line, not '{line}'"
    )


# Files as people have them.


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_with_a_byte_order_mark(imagenet: Path, domainnet: Path, encoding: str):
    assert imagenet == domainnet
    for path in imagenet.rglob("*.txt"):
        path.write_text(path.read_text(), encoding=encoding)
    source = opened("imagenet", imagenet)
    assert source.class_names == ("tench", "goldfish", "boxer dog") and labels(source)["train"] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert labels(opened("domainnet", domainnet))["test"] == list(range(10)) * 6


def test_imagenet_classes_without_an_image_are_left_out_by_name(imagenet: Path):
    file = imagenet / "imagenet" / "classnames.txt"
    file.write_text("n00000001 nothing\n" + file.read_text())
    source = opened("imagenet", imagenet)
    assert source.class_names == ("tench", "goldfish", "boxer dog") and labels(source)["test"] == [0, 1, 2]
    assert source.notes == ("left out: the classes n00000001, of which there is no image",)


def test_imagenet_says_which_classes_have_one_name(imagenet: Path):
    (imagenet / "imagenet" / "classnames.txt").write_text("n01440764 missile\nn01443537 Missile\nn02108089 boxer\n")
    (told,) = opened("imagenet", imagenet).notes
    assert "which no prompt tells apart: missile" in told


def test_domainnet_with_four_of_six_domains(domainnet: Path):
    for path in [*(domainnet / "domainnet").glob("quickdraw*.txt"), *(domainnet / "domainnet").glob("real*.txt")]:
        path.unlink()
    assert "data.domains=[clipart, infograph, painting, sketch]" in refusal("domainnet", domainnet)
    source = opened("domainnet", domainnet, domains=("sketch", "clipart"))
    assert source.domains == ("sketch", "clipart") and len(source.splits["test"].labels) == 20
    with pytest.raises(UserError, match=r"^data.domains: domainnet has no domain 'film'; it has clipart, "):
        opened("domainnet", domainnet, domains=("film",))


def test_an_image_in_two_parts_is_said_and_one_under_two_labels_is_refused(aircraft: Path):
    folder = aircraft / "fgvc_aircraft"
    first = (folder / "images_variant_train.txt").read_text().splitlines()[0]
    with open(folder / "images_variant_test.txt", "a") as file:
        file.write(f"{first}\n")
    (told,) = opened("fgvc_aircraft", aircraft).notes
    path = folder / "images" / f"{first.split()[0]}.jpg"
    assert told == f"images_variant_*.txt lists 1 images more than once, first {path} in train and in test"
    with open(folder / "images_variant_test.txt", "a") as file:
        file.write(f"{first.split()[0]} 707-320\n")
    assert f"lists the image {path} under two labels" in refusal("fgvc_aircraft", aircraft)
