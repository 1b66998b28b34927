"""Checkpoints: whole or absent, checked before use, and never the reason that an earlier one is lost."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pfedmma
from pfedmma.records.checkpoint import manifest as checkpoint_manifest
from pfedmma.records.checkpoint import read
from pfedmma.system import files
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import small


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 rounds with a checkpoint after each; tests work on copies."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    main(small.settings(folder, "federation.rounds=3", "checkpoint.every=1", "checkpoint.keep=3"))
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, 4 rounds in one go."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    main(small.settings(folder, "federation.rounds=4", "checkpoint.every=0"))
    return folder


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def resume(run_dir: Path, *more: str) -> None:
    """Go on with the copied run to round 4."""
    settings = ["federation.rounds=4", "checkpoint.every=1", "checkpoint.keep=3", "resume=auto", *more]
    main(small.settings(run_dir, *settings))


def same_rows(run_dir: Path, other: Path) -> None:
    """Each round is recorded once, and as in the other run, to the last bit."""
    assert small.timeless(small.metrics(run_dir)) == small.timeless(small.metrics(other))


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Each damages the folder of a checkpoint in place.


def flip_bit(file: Path, place: float = 0.5) -> None:
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def in_manifest(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | changes))

    return damage


def flip_digit_of_the_totals(folder: Path) -> None:
    # One flipped bit that leaves valid JSON behind ('1' is 0x31, '0' is 0x30); not the first digit, which may become a leading 0.
    text = (folder / "manifest.json").read_text()
    digit = text.index('"uplink_bytes": ') + len('"uplink_bytes": ') + 1
    (folder / "manifest.json").write_text(text[:digit] + chr(ord(text[digit]) ^ 1) + text[digit + 1 :])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "bit flip in the clients' tensors": lambda d: flip_bit(d / "clients-00000-00000.safetensors"),
    "bit flip in the header": lambda d: flip_bit(d / "clients-00000-00000.safetensors", 0.0),
    "bit flip in the last byte": lambda d: flip_bit(d / "server.safetensors", 1.0),
    "truncated shard": lambda d: os.truncate(d / "clients-00000-00000.safetensors", 1000),
    "empty shard": lambda d: os.truncate(d / "server.safetensors", 0),
    "missing shard": lambda d: (d / "clients-00000-00000.safetensors").unlink(),
    "swapped shards": lambda d: swap(d / "clients-00000-00000.safetensors", d / "server.safetensors"),
    "shard of another round": lambda d: shutil.copy(d.with_name("round-000001") / "server.safetensors", d),
    "missing manifest": lambda d: (d / "manifest.json").unlink(),
    "truncated manifest": lambda d: os.truncate(d / "manifest.json", 500),
    "empty manifest": lambda d: os.truncate(d / "manifest.json", 0),
    "manifest is binary garbage": lambda d: (d / "manifest.json").write_bytes(bytes(range(128, 256))),
    "manifest is no object": lambda d: (d / "manifest.json").write_text("[1, 2]"),
    "manifest is a folder": lambda d: ((d / "manifest.json").unlink(), (d / "manifest.json").mkdir()),
    "manifest of another format": in_manifest(format="pfedmma-checkpoint/99"),
    "manifest names a file elsewhere": in_manifest(shards={"../round-000001/server.safetensors": ""}),
    "manifest lists no shards": in_manifest(shards={}),
    "manifest without progress": in_manifest(progress={}),
    "manifest says another round": in_manifest(round=1),
    "bit flip in a number of the manifest": flip_digit_of_the_totals,
    "empty folder": lambda d: (shutil.rmtree(d), d.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_passed_over(run_dir: Path, damage: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]) -> None:
    root = run_dir / "checkpoints"
    damage(root / "round-000003")
    found = read.newest_good(root)
    assert found is not None
    assert found.round == 2
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert warnings[0].startswith("warning:") and "round 3" in warnings[0]


def test_an_undamaged_checkpoint_is_taken_without_a_word(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = read.newest_good(run_dir / "checkpoints")
    assert found is not None
    assert found.round == 3
    assert capsys.readouterr().err == ""


def test_resume_from_the_one_before_repeats_its_rounds(run_dir: Path, straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_bit(run_dir / "checkpoints" / "round-000003" / "server.safetensors")
    resume(run_dir)
    same_rows(run_dir, straight)
    assert "from round 3" in capsys.readouterr().out


def test_all_damaged_starts_again_with_a_warning_each(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # resume=auto goes on from the newest good checkpoint, or starts when there is none: a requeued job must not stand still.
    before = [row["loss"] for row in small.metrics(run_dir)]
    for round_ in (1, 2, 3):
        flip_bit(run_dir / "checkpoints" / f"round-{round_:06d}" / "server.safetensors")
    capsys.readouterr()
    resume(run_dir)
    printed = capsys.readouterr()
    assert printed.err.count("is damaged") == 3
    assert "from round" not in printed.out
    rows = small.metrics(run_dir)
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert [row["loss"] for row in rows[:3]] == before


def test_a_damaged_newer_checkpoint_never_pushes_out_a_good_one(run_dir: Path) -> None:
    # Rounds 2 and 3 are damaged, the run goes on from 1 and writes 2 anew. Counted by number alone, the damaged 3 would be the one to
    # keep, and the next crash would find no good one.
    for round_ in (2, 3):
        flip_bit(run_dir / "checkpoints" / f"round-{round_:06d}" / "server.safetensors")
    resume(run_dir, "federation.rounds=2", "checkpoint.keep=1")
    found = read.newest_good(run_dir / "checkpoints")
    assert found is not None
    assert found.round == 2


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [4, 3]), (9, [4, 3, 2, 1])])
def test_keep(tmp_path: Path, keep: int, left: list[int]) -> None:
    main(small.settings(tmp_path / "run", "federation.rounds=4", "checkpoint.every=1", f"checkpoint.keep={keep}"))
    assert checkpoint_manifest.rounds(tmp_path / "run" / "checkpoints") == left


def test_the_last_round_is_always_kept_and_zero_means_never(tmp_path: Path) -> None:
    main(small.settings(tmp_path / "odd", "federation.rounds=3", "checkpoint.every=2", "checkpoint.keep=9"))
    assert checkpoint_manifest.rounds(tmp_path / "odd" / "checkpoints") == [3, 2]
    main(small.settings(tmp_path / "never", "checkpoint.every=0"))
    assert checkpoint_manifest.rounds(tmp_path / "never" / "checkpoints") == []


def test_older_ones_go_only_when_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "run" / "checkpoints"
    newest_at_removal = []
    real = shutil.rmtree

    def rmtree(path: Path, **options: Any) -> None:
        if path.exists() and path.name.startswith("round-"):
            found = read.newest_good(root)
            newest_at_removal.append((path.name, found and found.round))
        real(path, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    main(small.settings(tmp_path / "run", "federation.rounds=3", "checkpoint.every=1", "checkpoint.keep=1"))
    assert newest_at_removal == [("round-000001", 2), ("round-000002", 3)]


@pytest.mark.parametrize("failing", ["clients-00000-00000.safetensors", "server.safetensors", "manifest.json", "checkpoints"])
def test_a_disk_that_is_full_leaves_the_older_ones(run_dir: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """``failing``: the file, or the folder, whose flush to disk fails."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if failing in os.readlink(f"/proc/self/fd/{handle}").rsplit("/", 1)[-1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(UserError, match=r"cannot write .*checkpoints.*: No space left on device"):
        resume(run_dir)
    assert set(checkpoint_manifest.rounds(run_dir / "checkpoints")) >= {3, 2, 1}
    monkeypatch.undo()
    found = read.newest_good(run_dir / "checkpoints")
    assert found is not None
    assert found.round >= 3


def test_another_config_is_refused_by_the_names_of_its_keys(run_dir: Path) -> None:
    before = content(run_dir)
    with pytest.raises(UserError) as error:
        resume(run_dir, "optimizer.lr=0.5", "seed=7")
    message = str(error.value)
    assert "optimizer.lr (was 0.01, is 0.5)" in message
    assert "seed (was 0, is 7)" in message
    assert "federation.rounds" not in message
    assert content(run_dir) == before


def test_more_rounds_may_be_asked_for(run_dir: Path, straight: Path) -> None:
    resume(run_dir)
    same_rows(run_dir, straight)
    assert small.summary(run_dir)["rounds"] == 4


def test_resume_of_a_folder_takes_its_own_settings(run_dir: Path, straight: Path) -> None:
    main([f"resume={run_dir}", "federation.rounds=4"])
    same_rows(run_dir, straight)


def test_resume_of_a_finished_run_changes_no_round(run_dir: Path) -> None:
    before = small.timeless(small.metrics(run_dir)), small.timeless(small.summary(run_dir))
    main(small.settings(run_dir, "federation.rounds=3", "checkpoint.every=1", "checkpoint.keep=3", "resume=auto"))
    assert small.timeless(small.metrics(run_dir)) == before[0]
    after = small.timeless(small.summary(run_dir))
    assert {**after, "comm": None} == {**before[1], "comm": None}
    for name in ("payload_bytes", "uplink_bytes", "downlink_bytes", "ring_bytes_per_rank", "collectives"):
        assert after["comm"][name] == before[1]["comm"][name]


def test_a_torn_last_line_of_the_metrics_is_recorded_again(run_dir: Path, straight: Path) -> None:
    with open(run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"round": 4, "cli')  # the machine went down here
    resume(run_dir)
    same_rows(run_dir, straight)


def test_tensors_are_keyed_by_client(run_dir: Path) -> None:
    # Every client that has trained, and no other: those never sampled follow from the seed.
    trained = {client for row in small.metrics(run_dir) for client in row["clients"]}
    assert small.final_tensors(run_dir).keys() == {"server.shared", "initial"} | {f"{client}.private" for client in trained}


def test_nothing_is_unpickled() -> None:
    loaders = {"torch.load", "torch.save", "numpy.load", "np.load", "pandas.read_pickle"}
    for path in Path(pfedmma.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        of_tensors = {id(call.func) for call in calls if "weights_only=True" in map(ast.unparse, call.keywords)}
        for node in ast.walk(tree):
            if id(node) in of_tensors:
                continue
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in imported}
            assert not roots & {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}, path
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) in loaders), f"{path}: {ast.unparse(node)}"
