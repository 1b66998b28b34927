"""No file that a user can name is unpickled: a pickle that would leave a mark is put wherever a file is read.

The exceptions are CIFAR's own batches, whose checksums torchvision compares first, and what a user allows by
``backbone.allow_torchscript``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import datasets

from pfedmma import train
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.data.sources import cifar, coop_splits
from pfedmma.system.errors import UserError
from tests.support import small
from tests.support.scripted import OPENAI, scripted
from tests.support.specimens import SPECIMENS


class Marking:
    """Whose unpickling makes the folder ``mark``."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


def saved_by_torch(thing: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def saved_by_numpy(thing: object, several: bool) -> bytes:
    buffer, array = io.BytesIO(), np.array([thing], dtype=object)
    if several:
        np.savez(buffer, array)
    else:
        np.save(buffer, array)
    return buffer.getvalue()


def archive(of: bytes, more: dict[str, bytes]) -> bytes:
    """A zip file with the members of another one, and more."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(of)) as old, zipfile.ZipFile(buffer, "w") as new:
        members = {name: old.read(name) for name in old.namelist()} | more
        for name, content in members.items():
            new.writestr(name, content)
    return buffer.getvalue()


def old_tar(thing: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(thing)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


PICKLES: dict[str, Callable[[Path], bytes]] = {
    "pickle of protocol 0": lambda mark: pickle.dumps(Marking(mark), 0),
    "pickle of protocol 2": lambda mark: pickle.dumps(Marking(mark), 2),
    "pickle of protocol 5": lambda mark: pickle.dumps({"data": Marking(mark)}, 5),
    "of torch.save": lambda mark: saved_by_torch({"state_dict": {"logit_scale": Marking(mark)}}),
    "of torch.save as it was": lambda mark: saved_by_torch(Marking(mark), zipped=False),
    "of torch.save as it was before": lambda mark: old_tar(Marking(mark)),
    "of numpy": lambda mark: saved_by_numpy(Marking(mark), several=False),
    "of numpy, zipped": lambda mark: saved_by_numpy(Marking(mark), several=True),
    "called TorchScript": lambda mark: archive(
        saved_by_torch(Marking(mark)), {f"archive/{name}": pickle.dumps(Marking(mark), 2) for name in ("constants.pkl", "data.pkl")}
    ),
}


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@pytest.mark.parametrize("kind", PICKLES)
def test_the_pickles_would_leave_their_mark(kind: str, mark: Path):
    # Or the other tests would show nothing: the bytes of a pickle are in the file, and loading those makes the folder.
    content = PICKLES[kind](mark)
    at = min(i for name in (b"posix", b"nt\n") if (i := content.find(name)) >= 0)
    starts = [i for i in range(at) if content[i : i + 1] in (b"\x80", b"c", b"(")]
    for start in reversed(starts):
        with contextlib.suppress(Exception):  # where no pickle begins, or more follows
            pickle.loads(content[start:])
        if mark.exists():
            return
    raise AssertionError(f"no pickle in {content[:100]!r}")


# Wherever a file can be named.


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("suffix", ["pt", "npz", "safetensors", ""])
@pytest.mark.parametrize("kind", PICKLES)
def test_as_weights(kind: str, suffix: str, allowed: bool, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # The variable makes torch.load unpickle wherever it is not told otherwise.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    file = tmp_path / f"weights.{suffix}"
    file.write_bytes(PICKLES[kind](mark))
    with pytest.raises(UserError, match=r"^backbone\.pretrained: ") as error:
        create_model(BackboneConfig("tiny", str(file), allow_torchscript=allowed), seed=0)
    assert "\n" not in str(error.value) and not mark.exists()


@pytest.mark.parametrize("name", SPECIMENS)
@pytest.mark.parametrize("kind", PICKLES)
def test_as_any_other_file(kind: str, name: str, mark: Path, tmp_path: Path):
    outcome = SPECIMENS[name].outcome(tmp_path / "here", PICKLES[kind](mark))
    assert outcome.startswith("refused: ") or name == "metrics"  # of which lines that are none are left out
    assert not mark.exists()


@pytest.mark.parametrize("kind", PICKLES)
def test_as_labels_of_flowers(kind: str, mark: Path, tmp_path: Path):
    (tmp_path / "imagelabels.mat").write_bytes(PICKLES[kind](mark))
    with pytest.raises(UserError, match="looked for imagelabels"):
        coop_splits.flowers(tmp_path, 0)
    assert not mark.exists()


@pytest.mark.parametrize("tag", ["python/object/apply:os.mkdir", "python/object/new:os.mkdir", "python/name:os.mkdir"])
@pytest.mark.parametrize("name", ["config", "comparison", "setting"])
def test_as_tags_of_yaml(name: str, tag: str, mark: Path, tmp_path: Path):
    value = f"!!{tag} [{mark}]" if "name" not in tag else f"!!{tag}"
    text = {"config": f"seed: {value}", "comparison": f"methods: {value}", "setting": f"seed={value}"}[name]
    assert SPECIMENS[name].outcome(tmp_path / "here", text.encode()).startswith("refused: ")
    assert not mark.exists()


@pytest.mark.parametrize("bad", ["train", "test", "meta"])
@pytest.mark.parametrize("kind", [datasets.CIFAR10, datasets.CIFAR100])
def test_as_a_file_of_cifar(kind: type, bad: str, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All other files have the checksums that torchvision wants."""
    name = "cifar10" if kind is datasets.CIFAR10 else "cifar100"
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    batch = {"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10)), "fine_labels": list(range(10))}
    content = {"train": batch, "test": batch, "meta": {kind.meta["key"]: [f"c{i}" for i in range(10)]}}
    sums = {}
    for part, thing in content.items():
        good = pickle.dumps(thing)
        sums[part] = hashlib.md5(good).hexdigest()
        (folder / part).write_bytes(pickle.dumps(Marking(mark)) if part == bad else good)
    monkeypatch.setattr(kind, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"filename": "meta", "md5": sums["meta"]})
    with pytest.raises(UserError, match=r"looked for a whole cifar-.*data\.download=true fetches it"):
        cifar.load(name, str(tmp_path), download=False)
    assert not mark.exists()


# Weights that may be read.


@pytest.fixture(scope="module")
def of_openai(tmp_path_factory: pytest.TempPathFactory, tiny_clip: nn.Module) -> Path:
    """The weights of the tiny CLIP as OpenAI published its own: a TorchScript archive, with three numbers that are no weights."""
    return scripted(tiny_clip.state_dict() | OPENAI, tmp_path_factory.mktemp("scripted") / "ViT.pt")


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    wanted = other.state_dict()
    assert one.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in one.state_dict().items())


def test_a_torchscript_archive_is_taken_when_it_is_allowed(of_openai: Path, tiny_clip: nn.Module):
    with pytest.raises(UserError, match=r"is a TorchScript archive, .*set backbone\.allow_torchscript=true"):
        create_model(BackboneConfig("tiny", str(of_openai)), seed=5)
    assert_same_weights(create_model(BackboneConfig("tiny", str(of_openai), allow_torchscript=True), seed=5), tiny_clip)


def test_the_main_job_says_how_to_allow_it(of_openai: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"backbone\.allow_torchscript=true"):
        train.main([f"run_dir={tmp_path / 'run'}", f"backbone.pretrained={of_openai}"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["safetensors", "zip", "old", "training"])
def test_tensors_are_read(form: str, tiny_clip: nn.Module, tmp_path: Path):
    state = dict(tiny_clip.state_dict())
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "training":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    assert_same_weights(create_model(BackboneConfig("tiny", str(path)), seed=5), tiny_clip)


def test_a_storage_that_claims_more_than_the_file_holds(tmp_path: Path):
    # Read past its end, it would be other memory of this process, or a crash.
    small = saved_by_torch({"logit_scale": torch.zeros(77)})
    with zipfile.ZipFile(io.BytesIO(small)) as members:
        name = next(name for name in members.namelist() if name.endswith("data.pkl"))
        text = members.read(name)
    assert text.count(b"K\x4d") >= 2  # of the storage and of the tensor, as one byte
    path = tmp_path / "w.pt"
    path.write_bytes(archive(small, {name: text.replace(b"K\x4d", b"J\x00\x00\x00\x10")}))
    with pytest.raises(UserError, match=r"^backbone\.pretrained: cannot load"):
        create_model(BackboneConfig("tiny", str(path)), seed=0)


def test_a_tensor_larger_than_what_is_stored_of_it(tmp_path: Path, tiny_clip: nn.Module):
    # One number, said to be as many as no memory holds.
    path = tmp_path / "w.pt"
    torch.save(tiny_clip.state_dict() | {"visual.positional_embedding": torch.zeros(1).expand(10**12, 128)}, path)
    with pytest.raises(UserError, match=r"visual\.positional_embedding in it is larger than what is stored of it"):
        create_model(BackboneConfig("tiny", str(path)), seed=0)


# A whole run.

RUN = """
import collections, json, pickle, sys
found = []
sys.addaudithook(lambda event, args: found.append(args[:2]) if event == "pickle.find_class" else None)
sys.path.insert(0, sys.argv[2])
from tests.support import small
from pfedmma import evaluate, export, train, load_adapter
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.data.sources import shapes
from pathlib import Path
shapes.PER_CLASS = {"train": 2, "val": 1, "test": 1}
root = Path(sys.argv[1])
run = root / "run"
quick = ["evaluation.every=1", "data.clients=2", "checkpoint.every=1", "optimizer.state=persist"]
train.main(small.settings(run, "federation.rounds=1", *quick))
train.main(small.settings(run, "federation.rounds=2", "resume=auto", *quick))
evaluate.main([str(run)])
export.main([str(run), "--client", "1", "--out", str(root / "one.safetensors")])
load_adapter(create_model(BackboneConfig("tiny", "none"), seed=0), root / "one.safetensors")
during = list(found)
pickle.loads(pickle.dumps(collections.Counter()))
assert len(found) == len(during) + 1, "the hook hears nothing"
print("FOUND", json.dumps(during))
"""


def test_a_run_unpickles_nothing(tmp_path: Path):
    command = [sys.executable, "-c", RUN, str(tmp_path), str(Path(__file__).resolve().parents[2])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=small.PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "FOUND []"
