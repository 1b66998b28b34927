"""A run notices that its data are others: what is the same elsewhere is the same, and the first difference is named."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pfedmma import describe
from pfedmma.config import schema
from pfedmma.data.fingerprint import fingerprint, first_difference
from pfedmma.data.loading import divide, open_source
from pfedmma.evaluate import main as evaluate
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import small

CLASSES = ("ant", "bee", "cat", "dog")


def paint(root: Path) -> Path:
    """Four classes of six flat pictures."""
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (40, 36 + number), (30 * label, 40 * number, 90)).save(root / name / f"{number}.png")
    return root


def settings(root: Path, *more: str) -> list[str]:
    return ["data.name=imagefolder", f"data.root={root}", "data.clients=2", "data.shots=2", *more]


def of(root: Path, *more: str) -> dict[str, object]:
    config = schema.load(None, settings(root, *more))
    source = open_source(config.data, config.seed, 32)
    return fingerprint(source, divide(source, config.data, config.seed, config.evaluation.split))


def add(folder: Path, name: str) -> None:
    Image.new("RGB", (40, 40), (1, 2, 3)).save(folder / name)


def replace(folder: Path) -> None:
    """Another picture of another size under the same name."""
    Image.new("RGB", (70, 50), (1, 200, 3)).save(folder / "0.png")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "image added": (lambda root: add(root / "bee", "9.png"), r"class 'bee' had \d+ \w+ images and has \d+"),
    "image removed": (lambda root: (root / "cat" / "3.png").unlink(), r"class 'cat' had \d+ \w+ images and has \d+"),
    "image renamed": (
        lambda root: (root / "dog" / "2.png").rename(root / "dog" / "2b.png"),
        r"class 'dog' has other \w+ images, as many as before",
    ),
    "image replaced": (lambda root: replace(root / "ant"), r"class 'ant' has other \w+ images, as many as before"),
    "class in front": (
        lambda root: shutil.copytree(root / "ant", root / "aardvark"),
        "class 0 was 'ant' and is 'aardvark'",
    ),
    "class at the end": (
        lambda root: shutil.copytree(root / "ant", root / "eel"),
        "there were 4 classes and are 5",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_first_difference_is_named(tmp_path: Path, name: str) -> None:
    root = paint(tmp_path / "images")
    then = of(root)
    change, told = CHANGES[name]
    change(root)
    assert re.fullmatch(told, first_difference(then, of(root)))


def test_the_same_elsewhere_is_the_same(tmp_path: Path) -> None:
    root = paint(tmp_path / "images")
    shutil.copytree(root, tmp_path / "elsewhere" / "pictures")
    assert of(root) == of(tmp_path / "elsewhere" / "pictures")
    assert first_difference(of(root), of(root)) == ""


def test_another_partition_is_other_data(tmp_path: Path) -> None:
    root = paint(tmp_path / "images")
    assert first_difference(of(root), of(root, "seed=1")) == "the clients hold other training images"


def train(root: Path, run: Path, *more: str) -> None:
    main(small.settings(run, *settings(root), "federation.rounds=1", "data.augment=none", *more))


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_does_not_go_on_with_other_data(tmp_path: Path, name: str) -> None:
    root, run = paint(tmp_path / "images"), tmp_path / "run"
    train(root, run)
    CHANGES[name][0](root)
    for command in (lambda: main([f"resume={run}", "federation.rounds=2"]), lambda: evaluate([str(run)])):
        with pytest.raises(UserError, match=r"^data: .*run was made with other data: (class|there were)"):
            command()
    assert len(small.metrics(run)) == 1


def test_a_moved_root_goes_on(tmp_path: Path) -> None:
    root, run = paint(tmp_path / "images"), tmp_path / "run"
    train(root, run)
    root.rename(tmp_path / "moved")
    main([f"resume={run}", "federation.rounds=2", f"data.root={tmp_path / 'moved'}"])
    assert len(small.metrics(run)) == 2


def test_an_edited_partition_file_is_refused(tmp_path: Path) -> None:
    root, run, file = paint(tmp_path / "images"), tmp_path / "run", tmp_path / "who.json"
    describe.main([*settings(root), "--out", str(file)])
    train(root, run, f"data.partition_file={file}")
    describe.main([*settings(root), "seed=3", "--out", str(file)])
    with pytest.raises(UserError, match=r"^data: .*run was made with other data: the clients hold other training images"):
        main([f"resume={run}", "federation.rounds=2"])
