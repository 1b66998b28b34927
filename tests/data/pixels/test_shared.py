"""The ranks of a node keep the test images once: who shares is found out, and nobody else can read, take or guess the file."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfedmma.clip.preprocess import Preprocess
from pfedmma.comm.node import Nodes
from pfedmma.comm.world import DistributedConfig, open_world
from pfedmma.config import schema
from pfedmma.data.partition.federated import Client, EvaluationSet, FederatedData
from pfedmma.data.pixels import shared
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import Source, Split
from tests.support.ranks import run_ranks

LABELS = torch.arange(12) % 2


def federation() -> FederatedData:
    client = Client(0, (0, 1), torch.arange(12), LABELS, torch.arange(12))
    return FederatedData((client,), EvaluationSet("test", ("a", "b"), torch.arange(12), LABELS), None, "{}")


def share(meeting: list[str], temporary: str, hosts: list[str], away: bool = False) -> dict[str, Any]:
    """Share test images in a folder; what this rank made, what it sees, and what lay in the folder meanwhile."""
    tempfile.tempdir = temporary
    world = open_world(schema.load(None, meeting).distributed if meeting else DistributedConfig())
    socket.gethostname = lambda: hosts[world.rank]
    made: list[int] = []

    def read(index: int) -> Tensor:
        made.append(index)
        return torch.full((3, 8, 8), index + 100 * (world.rank if away else 0), dtype=torch.uint8)

    pixels = Pixels(
        Source("toy", ("a", "b"), dict.fromkeys(("train", "test"), Split(LABELS, read))),
        Preprocess(8, (0.5,) * 3, (0.5,) * 3),
        "none",
        world.device,
    )
    seen: list[tuple[str, int]] = []
    real = pixels.images_of

    def images_of(split: str, share: Path | None = None) -> Any:
        if share is not None:
            seen.extend((str(path.relative_to(temporary)), path.stat().st_mode & 0o777) for path in (share.parent, share))
        return real(split, share)

    pixels.images_of = images_of  # type: ignore[method-assign]
    shared.share_test_images(federation(), pixels, Nodes.from_world(world))
    shared.make_test_images(federation(), pixels, world)  # waits for all
    left = os.listdir(temporary)
    values = pixels.fitted("test", torch.arange(12))[:, 0, 0, 0].tolist()
    world.wait("input")
    world.close()
    return {"made": sorted(made), "values": values, "seen": seen, "left": left}


def test_ranks_of_a_node_share_a_private_folder_of_a_random_name(tmp_path: Path):
    (tmp_path / "temporary").mkdir()
    names = []
    for attempt in ("1", "2"):
        ended = run_ranks(tmp_path / f"meet{attempt}", 2, share, str(tmp_path / "temporary"), ["one"] * 2)
        assert [rank.status for rank in ended] == [0, 0], ended[0].stderr + ended[1].stderr
        assert [rank.value["made"] for rank in ended] == [list(range(0, 12, 2)), list(range(1, 12, 2))]
        for rank in ended:
            assert rank.value["values"] == list(range(12)) and rank.value["left"] == []
            (folder, mode), (file, file_mode) = rank.value["seen"]
            assert (mode, file_mode) == (0o700, 0o600) and Path(file).parent == Path(folder)
        assert ended[0].value["seen"] == ended[1].value["seen"]
        names.append(folder)
    assert names[0] != names[1]


def test_nodes_with_one_temporary_folder_stay_apart(tmp_path: Path):
    (tmp_path / "temporary").mkdir()
    ended = run_ranks(tmp_path / "meet", 4, share, str(tmp_path / "temporary"), ["one", "two", "one", "two"])
    assert [rank.status for rank in ended] == [0] * 4, [rank.stderr for rank in ended]
    folders = [rank.value["seen"][0][0] for rank in ended]
    assert folders[0] == folders[2] != folders[1] == folders[3]
    assert all(rank.value["values"] == list(range(12)) and rank.value["left"] == [] for rank in ended)


def test_ranks_that_see_no_other_share_nothing(tmp_path: Path):
    (tmp_path / "temporary").mkdir()
    ended = run_ranks(tmp_path / "meet", 2, share, str(tmp_path / "temporary"), ["one", "two"], True)
    assert [rank.status for rank in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    for number, rank in enumerate(ended):
        assert rank.value["seen"] == [] and rank.value["values"] == [i + 100 * number for i in range(12)]
