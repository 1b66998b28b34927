"""CIFAR through torchvision: a few random images in its own files, with the hashes that torchvision asks for replaced."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from pfedmma.data.loading import DataConfig, divide, open_source
from pfedmma.data.sources import cifar
from pfedmma.system.errors import UserError

FINE = tuple(sorted(name for members in cifar.SUPERCLASSES.values() for name in members.split()))
TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
KINDS = {"cifar10": (datasets.CIFAR10, TEN), "cifar100": (datasets.CIFAR100, FINE)}
Images = dict[str, np.ndarray]


def fake(name: str, root: Path, patch: pytest.MonkeyPatch) -> Images:
    """Write the files of ``name`` with 6 images a class in training and 2 in test; the images as bytes [n, 3072]."""
    kind, names = KINDS[name]
    folder = root / kind.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    written: Images = {}

    def save(file: str, content: object) -> str:
        raw = pickle.dumps(content)
        (folder / file).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    for part, listed, each in (("train", "train_list", 6), ("test", "test_list", 2)):
        files = [file for file, _ in getattr(kind, listed)]
        images = rng.integers(0, 256, (each * len(names), 3072), dtype=np.uint8)
        label = np.arange(len(images)) % len(names)
        sums = []
        for file, own, labels in zip(files, np.array_split(images, len(files)), np.array_split(label, len(files)), strict=True):
            sums.append([file, save(file, {"data": own, "labels" if name == "cifar10" else "fine_labels": labels.tolist()})])
        patch.setattr(kind, listed, sums)
        written[part] = images
    md5 = save(kind.meta["filename"], {kind.meta["key"]: list(names)})
    patch.setattr(kind, "meta", kind.meta | {"md5": md5})
    return written


@pytest.mark.parametrize("name", KINDS)
def test_files_are_read_in_order(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = fake(name, tmp_path, monkeypatch)
    names = KINDS[name][1]
    source = open_source(DataConfig(name=name, root=str(tmp_path)), 0, 224)
    assert (source.name, source.class_names, list(source.splits)) == (name, names, ["train", "test"])
    for part, written in images.items():
        split = source.splits[part]
        assert split.labels.tolist() == [i % len(names) for i in range(len(written))]
        for i in (0, len(written) - 1):
            assert torch.equal(split.read(i), torch.from_numpy(written[i]).view(3, 32, 32))  # planes of red, green, blue
    assert (source.coarse is None) == (name == "cifar10")


@pytest.mark.parametrize("protocol", ["pachinko", "dirichlet", "base_to_novel"])
def test_protocols_of_cifar100(protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake("cifar100", tmp_path, monkeypatch)
    config = DataConfig(name="cifar100", root=str(tmp_path), protocol=protocol, clients=10, shots=0)
    federation = divide(open_source(config, 0, 224), config, 0, "test")
    assert sum(len(client.train) for client in federation.clients) == (300 if protocol == "base_to_novel" else 600)


def test_pachinko_is_not_for_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake("cifar10", tmp_path, monkeypatch)
    config = DataConfig(name="cifar10", root=str(tmp_path), protocol="pachinko", shots=0)
    with pytest.raises(UserError, match="pachinko needs superclasses, which cifar10 has not"):
        divide(open_source(config, 0, 224), config, 0, "test")


def test_superclasses_are_20_groups_of_5():
    assert len(cifar.SUPERCLASSES) == 20 and len(set(FINE)) == len(FINE) == 100
    coarse = cifar.superclasses(FINE)
    assert torch.tensor(coarse).bincount().tolist() == [5] * 20
    groups = list(cifar.SUPERCLASSES)
    for fine, group in (("maple_tree", "trees"), ("boy", "people"), ("tank", "vehicles 2"), ("aquarium_fish", "fish")):
        assert groups[coarse[FINE.index(fine)]] == group


def test_superclasses_follow_the_order_of_the_names():
    assert cifar.superclasses(FINE[::-1]) == cifar.superclasses(FINE)[::-1]


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_roots_that_are_none(name: str, folder: str, tmp_path: Path):
    def refusal(root: str) -> str:
        with pytest.raises(UserError) as error:
            open_source(DataConfig(name=name, root=root), 0, 224)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert refusal("") == f"data.root: give the folder that holds {folder}/"
    for root in (tmp_path, tmp_path / "absent"):
        message = refusal(str(root))
        assert message.startswith(f"data.root: looked for a whole {folder}/ in '{root}'") and message.endswith(
            "data.download=true fetches it"
        )


def test_a_damaged_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # The files are pickles: they may only be opened once their hash is known to be right.
    fake("cifar10", tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="looked for a whole cifar-10-batches-py/"):
        open_source(DataConfig(name="cifar10", root=str(tmp_path)), 0, 224)
    assert not (tmp_path / "owned").exists()
