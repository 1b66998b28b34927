"""Checkpoints that are damaged anywhere, or of another run, and the order in which they come and go."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfedmma.records.checkpoint import manifest, read, write
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import small

THREE_ROUNDS = ("federation.rounds=3", "checkpoint.every=1", "checkpoint.keep=3")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds, a checkpoint after each, in several shards."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "SHARD_BYTES", 1)  # each client has its own
        main(small.settings(folder, *THREE_ROUNDS))
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with another seed."""
    folder = tmp_path_factory.mktemp("other") / "run"
    main(small.settings(folder, *THREE_ROUNDS, "seed=1"))
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def alike(one: manifest.Manifest, other: manifest.Manifest) -> bool:
    """Manifests hold tensors, which are not compared as a whole."""
    return one.to_json() == other.to_json()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(data=st.data())
def test_damage_at_any_place_is_noticed(finished: Path, data: st.DataObject) -> None:
    """A bit flipped, or an end cut off; where that leaves what the file says as it was, the checkpoint is as good as before."""
    folder = manifest.folder_of(finished / "checkpoints", 3)
    whole = manifest.read_manifest(folder)
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        damaged = content[:place]
    else:
        damaged = content[:place] + bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))]) + content[place + 1 :]
    file.write_bytes(damaged)
    try:
        found = read.newest_good(finished / "checkpoints")
    finally:
        file.write_bytes(content)
    assert found is not None
    assert found.round == 2 or (file.name == "manifest.json" and alike(found, whole))


def test_every_part_of_the_manifest_counts(copy: Path) -> None:
    """A bit in every thirteenth byte: numbers, names and hashes that still are some."""
    folder = manifest.folder_of(copy / "checkpoints", 3)
    whole, content = manifest.read_manifest(folder), (folder / "manifest.json").read_bytes()
    taken = 0
    places = range(0, len(content), 13)
    for place in places:
        flipped = content[:place] + bytes([content[place] ^ 1 << place % 3]) + content[place + 1 :]
        (folder / "manifest.json").write_bytes(flipped)
        try:
            assert alike(manifest.read_manifest(folder), whole)
            taken += 1
        except manifest.Damaged:
            continue
    assert taken < len(places) / 10, "but for blanks between them"


def test_two_shards_swapped(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = manifest.folder_of(copy / "checkpoints", 3)
    one, two = sorted(folder.glob("clients-*"))[:2]
    one.rename(folder / "aside")
    two.rename(one)
    (folder / "aside").rename(two)
    found = read.newest_good(copy / "checkpoints")
    assert found is not None and found.round == 2
    assert f"{one.name} does not have the hash" in capsys.readouterr().err


def test_a_shard_too_many_is_not_read(copy: Path, other: Path) -> None:
    folder = manifest.folder_of(copy / "checkpoints", 3)
    shutil.copy(next((other / "checkpoints" / "round-000003").glob("clients-*")), folder / "clients-00009-00000.safetensors")
    small.assert_same_tensors(copy, copy)
    assert small.final_tensors(copy).keys() == {"server.shared", "initial"} | {
        f"{client}.private" for row in small.metrics(copy) for client in row["clients"]
    }


def test_a_checkpoint_of_another_run_is_refused(copy: Path, other: Path) -> None:
    folder = manifest.folder_of(copy / "checkpoints", 3)
    shutil.rmtree(folder)
    shutil.copytree(other / "checkpoints" / "round-000003", folder)
    before = sorted((path, path.stat().st_mtime_ns) for path in copy.rglob("*"))
    with pytest.raises(UserError, match=rf"^resume: the run in {copy} is of another configuration: seed \(was 1, is 0\)$"):
        main(small.settings(copy, *THREE_ROUNDS, "federation.rounds=4", "resume=auto"))
    assert sorted((path, path.stat().st_mtime_ns) for path in copy.rglob("*")) == before, "nothing is touched"


def test_what_was_half_written_is_cleared_by_the_next(copy: Path) -> None:
    """Drafts that a killed process left: of a checkpoint, and of files of the run."""
    (copy / "checkpoints" / ".draft-000004").mkdir()
    (copy / "checkpoints" / ".draft-000004" / ".server.safetensors.77.draft").write_bytes(b"half")
    for name in ("config.yaml", "metrics.jsonl", "summary.json"):
        (copy / f".{name}.77.draft").write_bytes(b"half")
    (copy / ".report.html.78.draft").write_bytes(b"half")  # of a report, which may be at work right now
    main(small.settings(copy, *THREE_ROUNDS, "federation.rounds=4", "resume=auto"))
    assert sorted(path.name for path in copy.rglob("*draft*")) == [".report.html.78.draft"]


def test_everything_is_on_disk_before_the_old_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut loses what was not flushed: the order is files, their folder, the new name, that name's folder, the removal."""
    happened: list[str] = []
    fsync, rename, rmtree = os.fsync, Path.rename, shutil.rmtree

    def flush(handle: int) -> None:
        happened.append("flush " + Path(os.readlink(f"/proc/self/fd/{handle}")).name.strip(".").split(".")[0])
        fsync(handle)

    def take_name(path: Path, target: Path) -> Path:
        happened.append(f"rename {path.name}")
        return rename(path, target)

    def remove(path: Path, **options: Any) -> None:
        if path.exists():
            happened.append(f"remove {path.name}")
        rmtree(path, **options)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "rename", take_name)
    monkeypatch.setattr(shutil, "rmtree", remove)
    main(small.settings(tmp_path / "run", "federation.rounds=2", "checkpoint.every=1", "checkpoint.keep=1"))
    assert happened[happened.index("flush checkpoints") + 1 :] == [
        "flush metrics",  # a checkpoint has the rounds that it counts
        "flush clients-00000-00000",
        "flush server",
        "flush manifest",
        "flush draft-000002",
        "rename .draft-000002",
        "flush checkpoints",
        "remove round-000001",
        "flush summary",
    ]
