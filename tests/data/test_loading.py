"""From settings to the images of a run: the table of data sets, and what its entries are told."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pfedmma.clip.preprocess import Preprocess
from pfedmma.comm.world import World
from pfedmma.data.loading import DataConfig, load, open_source
from pfedmma.data.sources import cifar, coop, folders, lists, shapes
from pfedmma.data.sources.base import Source, Split, Wanted
from pfedmma.data.sources.registry import DATA_SETS, NAMES
from pfedmma.system.errors import UserError

CPU = torch.device("cpu")


def toy(read_by: set[str] | None = None, barrier: threading.Barrier | None = None) -> Source:
    """Two classes of eight images; ``read_by`` gathers the names of the threads that read, as many at once as the barrier asks for."""

    def read(index: int) -> torch.Tensor:
        if read_by is not None and barrier is not None:
            read_by.add(threading.current_thread().name)
            barrier.wait(timeout=600)
        return torch.full((3, 16, 16), index, dtype=torch.uint8)

    splits = {name: Split(torch.arange(16) % 2, read) for name in ("train", "test")}
    return Source("toy", ("a", "b"), splits, own_template="a toy {}.", augment="crop")


def test_no_name_stands_for_two_data_sets():
    families = (shapes, coop, lists, cifar, folders)
    assert sum(len(family.DATA_SETS) for family in families) == len(NAMES) == len(DATA_SETS)


def test_a_name_that_is_none_lists_those_there_are():
    with pytest.raises(UserError) as error:
        DataConfig(name="shape")
    assert all(name in str(error.value) for name in NAMES)


def test_an_entry_is_told_what_the_settings_say(monkeypatch: pytest.MonkeyPatch):
    asked: list[Wanted] = []

    def opened(wanted: Wanted) -> Source:
        asked.append(wanted)
        return toy()

    monkeypatch.setitem(DATA_SETS, "domainnet", opened)
    config = DataConfig(name="domainnet", root="somewhere", test_fraction=0.25, all_classes=True, download=True)
    source = open_source(config, 3, 64)
    assert asked == [Wanted("domainnet", "somewhere", 3, 64, test_fraction=0.25, all_classes=True, download=True)]
    assert source.template == "a photo of a {}."
    for template, wanted in (("dataset", "a toy {}."), ("my {}", "my {}")):
        assert open_source(dataclasses.replace(config, template=template), 3, 64).template == wanted


def test_the_world_says_how_many_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch):
    names: set[str] = set()
    monkeypatch.setitem(DATA_SETS, "shapes", lambda wanted: toy(names, threading.Barrier(2)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    world = World(0, 1, CPU)
    world.local_size = 4
    config = DataConfig(protocol="iid", clients=1, shots=0)
    _, pixels = load(config, 0, "test", Preprocess(8, (0.5,) * 3, (0.5,) * 3), world)
    pixels.training(torch.arange(16), torch.Generator())
    assert len(names) == 2


def test_what_is_to_be_said_of_the_data_is_said_by_one_rank(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(DATA_SETS, "shapes", lambda wanted: dataclasses.replace(toy(), notes=("left out: much", "made up: more")))
    config = DataConfig(protocol="iid", clients=1, shots=0)
    for rank, told in ((0, "warning: left out: much\nwarning: made up: more\n"), (1, "")):
        world = World(0, 1, CPU)
        world.rank = rank
        load(config, 0, "test", Preprocess(8, (0.5,) * 3, (0.5,) * 3), world)
        assert capsys.readouterr().err == told


def test_domains_and_class_names_reach_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Wanted] = []
    monkeypatch.setitem(DATA_SETS, "domainnet", lambda wanted: asked.append(wanted) or dataclasses.replace(toy(), domains=("x", "y")))
    (tmp_path / "names").write_text("a ape\nb bear\n")
    source = open_source(DataConfig(name="domainnet", domains=("y", "x"), class_names=str(tmp_path / "names")), 0, 32)
    assert asked[0].domains == ("y", "x") and source.class_names == ("ape", "bear")


def test_training_images_are_reduced_and_those_of_tests_are_not(tmp_path: Path) -> None:
    """With ``data.decode=reduced`` the shorter side comes to twice the backbone's input."""
    for part in ("train", "test"):
        for number, name in enumerate(("one", "two")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (90, 60), (number, 9, 9)).save(tmp_path / part / name / "x.png")
    config = DataConfig(name="imagefolder", root=str(tmp_path), protocol="iid", clients=1, shots=0, decode="reduced")
    preprocess, world = Preprocess(16, (0.5,) * 3, (0.5,) * 3), World(0, 1, CPU)
    _, pixels = load(config, 0, "test", preprocess, world)
    assert pixels.decoded[0].shape == (3, 32, 48) and pixels.source.splits["test"].read(0).shape == (3, 60, 90)
    _, pixels = load(dataclasses.replace(config, decode="full"), 0, "test", preprocess, world)
    assert pixels.decoded[0].shape == (3, 60, 90)
    with pytest.raises(UserError, match=r"data\.decode: reduced is about training images that are cropped, and these are not; use full"):
        load(dataclasses.replace(config, augment="none"), 0, "test", preprocess, world)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"decode": "half"}, "decode: 'half' is not known; choose one of full, reduced"),
        ({"device_cache_gb": -1.0}, "device_cache_gb: must be at least 0"),
    ],
)
def test_how_images_are_kept_is_checked(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        DataConfig(**settings)
