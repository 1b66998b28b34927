"""A disk that is full, or read-only, while a run writes: one sentence, nothing half-written, and the run goes on once there is room."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pfedmma import export, train
from pfedmma.data.pixels.cache import DecodedImages, FittedImages, create_images
from pfedmma.records.checkpoint import manifest
from pfedmma.records.checkpoint import write as checkpoint_write
from pfedmma.records.folder import RunFolder
from pfedmma.records.rows import RoundRow
from pfedmma.report import command as report
from pfedmma.stack import offload
from pfedmma.system import files
from pfedmma.system.errors import RankFailure, UserError
from tests.support import small
from tests.support.disks import PAGE, fill, make_read_only, make_writable, small_disk
from tests.support.ranks import run_ranks, values_of
from tests.support.reported import round_row

THREE_ROUNDS = ("federation.rounds=3", "checkpoint.every=1", "checkpoint.keep=1")
NO_ROOM = "No space left on device"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 5000) as place:
        yield place


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    train.main(small.settings(folder, *THREE_ROUNDS))
    return folder


def goes_on(run: Path, straight: Path) -> None:
    """The run can be resumed, ends like the one that was never disturbed, and leaves the same files."""
    train.main(small.settings(run, *THREE_ROUNDS, "resume=auto"))
    assert small.timeless(small.metrics(run)) == small.timeless(small.metrics(straight))
    small.assert_same_tensors(run, straight)
    assert files_of(run) == files_of(straight)


def files_of(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


def when_writing(name: str, time: int, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], Any]) -> None:
    """Let something happen just before a file of that name is written for the ``time``-th time."""
    real, times = files.write_atomically, 0

    def write(path: Path, content: bytes) -> None:
        nonlocal times
        times += path.name == name
        if path.name == name and times == time:
            happens()
        real(path, content)

    for module in (checkpoint_write, sys.modules[RunFolder.__module__]):
        monkeypatch.setattr(module, "write_atomically", write)


@pytest.mark.parametrize(
    ("name", "time", "leave", "good"),
    [
        ("config.yaml", 1, 0, None),
        ("clients-00000-00000.safetensors", 2, 5, 1),  # a few pages of it fit
        ("server.safetensors", 2, 5, 1),
        ("manifest.json", 3, 0, 2),
        ("summary.json", 1, 0, 3),
    ],
)
def test_full_when_a_file_is_written(
    straight: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, name: str, time: int, leave: int, good: int | None
) -> None:
    run = disk / "run"
    with monkeypatch.context() as patch:
        when_writing(name, time, patch, lambda: fill(disk, leave))
        with pytest.raises(UserError, match=rf"^cannot write {run}.*{name}: {NO_ROOM}$"):
            train.main(small.settings(run, *THREE_ROUNDS))
    visible = [file for file in files_of(run) if "draft" not in file]
    assert not any(file.endswith(name) for file in visible if not file.startswith("checkpoints/round-"))
    assert manifest.rounds(run / "checkpoints") == ([good] if good else []), "the new one is not there, the one before is"
    (disk / "filler").unlink()
    goes_on(run, straight)


def test_full_when_the_log_of_rounds_grows(disk: Path) -> None:
    """Lines are whole or absent, whichever line finds no room."""
    folder = RunFolder(disk / "run")
    folder.create("")
    fill(disk, leave=2)
    written = 0
    with pytest.raises(UserError, match=f"cannot write {folder.metrics}: {NO_ROOM}"):
        for written in range(100):
            folder.append_metrics(round_row(written + 1, clients=150))
    assert 3 < written < 20
    lines = folder.metrics.read_text().splitlines(keepends=True)
    assert len(lines) == written and all(line.endswith("}\n") for line in lines)
    (disk / "filler").unlink()
    folder.append_metrics(round_row(written + 1, clients=150))
    assert [row.round for row in folder.read_metrics()] == list(range(1, written + 2))


def test_the_log_on_a_full_disk_during_a_run(straight: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RunFolder.append_metrics

    def append(folder: RunFolder, row: RoundRow) -> None:
        if row.round == 3:
            folder.metrics.write_bytes(folder.metrics.read_bytes() + b" " * (-folder.metrics.stat().st_size % PAGE))
            fill(disk)
        real(folder, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_metrics", append)
        with pytest.raises(UserError, match=f"cannot write {disk}/run/metrics.jsonl: {NO_ROOM}"):
            train.main(small.settings(disk / "run", *THREE_ROUNDS))
    assert manifest.rounds(disk / "run" / "checkpoints") == [2]
    (disk / "filler").unlink()
    goes_on(disk / "run", straight)


def test_read_only_before_the_run(disk: Path) -> None:
    make_read_only(disk)
    with pytest.raises(UserError, match=f"run_dir: cannot write to {disk}; choose"):
        train.main(small.settings(disk / "run"))


def test_read_only_in_the_middle(straight: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        when_writing("server.safetensors", 3, patch, lambda: make_read_only(disk))
        with pytest.raises(UserError, match=rf"^cannot write {disk}/run/.*: Read-only file system$"):
            train.main(small.settings(disk / "run", *THREE_ROUNDS))
    make_writable(disk)
    assert manifest.rounds(disk / "run" / "checkpoints") == [2]
    goes_on(disk / "run", straight)


# Temporary files


def test_no_room_for_the_states_of_clients(straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(tensor.nbytes for name, tensor in small.final_tensors(straight).items() if name.endswith(".private"))
    four = 4 * row // PAGE + 1  # three clients train in a round
    with small_disk(tmp_path / "temporary", four) as temporary, monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        with pytest.raises(
            RankFailure, match=rf"^federation.host_gb: .* {temporary} \({NO_ROOM}\); raise federation.host_gb, or set TMPDIR"
        ):
            train.main(small.settings(tmp_path / "run", *THREE_ROUNDS, "federation.host_gb=0"))
        assert not list(temporary.iterdir())
    assert manifest.rounds(tmp_path / "run" / "checkpoints") == [1]
    goes_on(tmp_path / "run", straight)


def test_rows_that_fit_stay_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    width = 3 * PAGE // 4 // 2  # a page and a half each
    with small_disk(tmp_path / "temporary", 8) as temporary:
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        rows, kept = offload.RowFile(width), []
        with pytest.raises(RankFailure, match=NO_ROOM):
            for client in range(20):
                rows.write(client, torch.full((width,), float(client)))
                kept.append(client)
        assert len(kept) == 5 and list(rows.slots) == kept
        del rows


def test_no_room_for_decoded_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(index: int) -> torch.Tensor:
        return torch.full((3, 64, 64), index, dtype=torch.uint8)  # 3 pages

    with small_disk(tmp_path / "temporary", 10) as temporary:
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        images = DecodedImages(read, 0.0)
        with pytest.raises(RankFailure, match=rf"^data.cache_gb: .* {temporary} \({NO_ROOM}\); raise data.cache_gb, or set TMPDIR"):
            images.many(list(range(10)))
        del images


def fill_shared_images(meeting: list[str], folder: Path) -> tuple[str, int, list[int], str]:
    tempfile.tempdir = str(folder)
    create_images(folder / "shared", 100, 64)
    images = FittedImages(100, 64, lambda i: torch.full((3, 64, 64), i, dtype=torch.uint8), folder / "shared")  # 3 pages each
    with pytest.raises(RankFailure) as first:
        images.fill(torch.arange(100))
    made = int(images._made.sum())
    values = images[torch.arange(made)][:, 0, 0, 0].tolist()
    with pytest.raises(RankFailure) as second:
        create_images(folder / "more", 100, 64)
    return str(first.value), made, values, str(second.value)


def test_no_room_for_the_test_images_that_ranks_share(tmp_path: Path) -> None:
    """In a process of its own: written through a map of the file, they would end it by SIGBUS."""
    with small_disk(tmp_path / "temporary", 11) as temporary:
        (ended,) = run_ranks(tmp_path / "meet", 1, fill_shared_images, temporary)
    assert ended.status == 0, ended.stderr
    sentence = f"cannot keep decoded test images in {temporary} ({NO_ROOM}); set TMPDIR to a folder with more room"
    assert ended.value == (sentence, 3, [0, 1, 2], sentence), "what fits is there"


def train_with_temporary_folder(meeting: list[str], settings: list[str], folder: str) -> None:
    tempfile.tempdir = folder
    train.main([*meeting, *settings])


@pytest.mark.parametrize("pages", [1, 60])
def test_no_room_for_the_test_images_of_two_ranks(tmp_path: Path, pages: int) -> None:
    with small_disk(tmp_path / "temporary", pages) as temporary:
        settings = small.settings(tmp_path / "run", "evaluation.every=1")
        ended = run_ranks(tmp_path / "meet", 2, train_with_temporary_folder, settings, str(temporary))
        assert not list(temporary.iterdir())
    assert [rank.status for rank in ended] == [2, 2], "no signal ends them"
    said = [line for rank in ended for line in rank.stderr.splitlines() if line.startswith("error:")]
    assert len(said) == 2 and any(f"cannot keep decoded test images in {temporary} ({NO_ROOM})" in line for line in said)
    assert not any("Traceback" in rank.stderr for rank in ended)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("pages", [2, 40])
def test_no_room_for_the_state_of_clients_that_two_ranks_share(tmp_path: Path, pages: int) -> None:
    """Not for the files at the start, or not for a row of 37 pages: nothing ends by a signal, and it goes on where there is room."""
    settings = small.settings(tmp_path / "run", "checkpoint.every=1")
    with small_disk(tmp_path / "temporary", pages) as temporary:
        ended = run_ranks(tmp_path / "meet", 2, train_with_temporary_folder, settings, str(temporary))
        assert not list(temporary.iterdir())
    assert 2 in [rank.status for rank in ended] and {rank.status for rank in ended} <= {2}
    said = [line for rank in ended for line in rank.stderr.splitlines() if line.startswith("error:")]
    assert any(f"({NO_ROOM}); set TMPDIR to a folder with more room" in line for line in said), said
    assert pages == 2 or any(line.startswith(f"error: cannot keep the state of clients in {temporary}") for line in said)
    assert not any("Traceback" in rank.stderr for rank in ended)
    assert not manifest.rounds(tmp_path / "run" / "checkpoints")
    values_of(run_ranks(tmp_path / "again", 2, train_with_temporary_folder, [*settings, "resume=auto"], str(tmp_path)))


def test_no_temporary_folder_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [])
    with pytest.raises(RankFailure, match=r"^no folder for temporary files can be written \(.+\); set TMPDIR"):
        train.main(small.settings(tmp_path / "run", "federation.host_gb=0"))


# What is made of a run


@pytest.mark.parametrize(
    "write",
    [
        lambda run, place: export.main([str(run), "--client", "0", "--out", str(place / "out")]),
        lambda run, place: report.main([str(run), "--html", str(place / "out")]),
        lambda run, place: report.main([str(run), "--no-html", "--markdown", str(place / "out")]),
    ],
    ids=["export", "page", "markdown"],
)
def test_an_earlier_file_stays(straight: Path, disk: Path, write: Callable[[Path, Path], None]) -> None:
    (disk / "out").write_text("what was there before")
    fill(disk)
    with pytest.raises(UserError, match=f"cannot write {disk}/out: {NO_ROOM}"):
        write(straight, disk)
    assert (disk / "out").read_text() == "what was there before"
    assert sorted(path.name for path in disk.iterdir()) == ["filler", "out"]


def train_into(meeting: list[str], settings: list[str], log: str) -> None:
    os.dup2(os.open(log, os.O_WRONLY), 1)
    train.main([*meeting, *settings])


def test_a_log_on_a_full_disk(tmp_path: Path) -> None:
    """Standard output, as batch systems write it to a file."""
    (ended,) = run_ranks(tmp_path / "meet", 1, train_into, small.settings(tmp_path / "run"), "/dev/full")
    assert ended.status == 2, ended.stderr
    assert ended.stderr == f"error: cannot write the standard output: {NO_ROOM}; make room there\n"
