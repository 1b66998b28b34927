"""Rows that are picked after training: what is sent, how it is averaged, and who gets it back; bytes of whole runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.engine.cohort import Members
from pfedmma.engine.picked import PickedRows
from pfedmma.methods.base import Method
from pfedmma.records.checkpoint import manifest, read
from pfedmma.server.rules import Uploads
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import UNIFORM
from pfedmma.train import main
from tests.support import small, stacks

CLIENTS = (2, 5)


@dataclass(frozen=True)
class Rows(Method):
    """Four rows of two numbers, of which client 2 sends the last and the first, client 5 the first and the second."""

    shapes: ClassVar = {"rows": (4, 2), "sent": (2, 2)}
    exchange: ClassVar = {"sent": UNIFORM}
    picked: ClassVar = {"sent": "rows"}

    def pick(self, state: Mapping[str, Tensor], keys: Sequence[int]) -> dict[str, Tensor]:
        known = {rng.key(0, "rows", 3, client): rows for client, rows in zip(CLIENTS, ([3, 0], [0, 1]), strict=True)}
        return {"sent": torch.tensor([known[key] for key in keys])}


def rows_of(members: Members, client: int) -> list[list[float]]:
    return members.states.layout.views(members.states.gather([client], members.server.shared))["rows"][0].tolist()


@pytest.fixture
def members(tiny_clip: nn.Module) -> Members:
    """Client 2 has rows 20 to 23, client 5 rows 50 to 53."""
    method = Rows(Backbone.freeze(tiny_clip, "tiny"))
    members = stacks.new_members(method, trained=())
    own = [[10.0 * client + row for row in range(4) for _ in range(2)] for client in CLIENTS]
    members.states.scatter(CLIENTS, torch.tensor([[0.0] * 4 + each for each in own]))
    return members


def picked(members: Members, tiny_clip: nn.Module, ids: Sequence[int]) -> PickedRows:
    return PickedRows.after_training(Rows(Backbone.freeze(tiny_clip, "tiny")), members, ids, 3, 0)


def test_the_mean_is_by_the_order_of_the_draw_and_goes_back_to_the_rows_that_were_sent(tiny_clip: nn.Module, members: Members) -> None:
    rows = picked(members, tiny_clip, CLIENTS)
    sent = rows.sent(members)
    assert sent.tolist() == [[23, 23, 20, 20], [50, 50, 51, 51]]
    members.server.round(Uploads(3, CLIENTS, [1, 9], CLIENTS, sent))  # images make no difference
    assert members.server.shared.tolist() == [36.5, 36.5, 35.5, 35.5]
    rows.write_back(members, CLIENTS)
    assert rows_of(members, 2) == [[35.5] * 2, [21.0] * 2, [22.0] * 2, [36.5] * 2]
    assert rows_of(members, 5) == [[36.5] * 2, [35.5] * 2, [52.0] * 2, [53.0] * 2]
    assert rows_of(members, 1) == [[0.0] * 2] * 4 and 1 not in members.states.own  # nobody else gets anything


def test_of_one_participant_aggregation_changes_nothing(tiny_clip: nn.Module, members: Members) -> None:
    before = rows_of(members, 2)
    rows = picked(members, tiny_clip, [2])
    members.server.round(Uploads(3, [2], [7], [2], rows.sent(members)))
    rows.write_back(members, [2])
    assert rows_of(members, 2) == before and members.server.shared.tolist() == [23, 23, 20, 20]


def test_whose_upload_is_lost_keeps_its_rows(tiny_clip: nn.Module, members: Members) -> None:
    before = rows_of(members, 5)
    rows = picked(members, tiny_clip, CLIENTS)
    members.server.round(Uploads(3, [2], [7], [2], rows.sent(members)[:1], lost=[5]))
    rows.write_back(members, [2])
    assert rows_of(members, 5) == before


def test_a_rank_without_participants_has_nothing_to_send(tiny_clip: nn.Module, members: Members) -> None:
    rows = picked(members, tiny_clip, [])
    assert rows.sent(members).shape == (0, 4)
    rows.write_back(members, CLIENTS)


def test_all_that_is_exchanged_is_picked_or_nothing() -> None:
    shapes = {"rows": (4, 2), "sent": (2, 2), "mean": (3,)}
    layout = Layout({"rows": (4, 2), "sent": (2, 2)}, {"sent": UNIFORM}, picked={"sent": "rows"})
    assert (layout.trained, layout.trained_count, layout.private) == (slice(4, 12), 8, slice(4, 12))
    assert Layout(shapes, {"mean": UNIFORM}).trained_count == 15
    with pytest.raises(AssertionError, match="rows are picked for all that is exchanged"):
        Layout(shapes, {"sent": UNIFORM, "mean": UNIFORM}, picked={"sent": "rows"})


# Whole runs of FedMGP --------------------------------------------------------------------------------------------------------------------

ROUNDS, GROUPS = 3, 3
WIDTHS = (64, 128)  # of the tiny CLIP's towers
NUMBERS = 2 * 2 * sum(WIDTHS)  # that a client sends


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some are absent, some uploads are lost."""
    folder = tmp_path_factory.mktemp("fedmgp")
    with pytest.MonkeyPatch.context() as patch:
        small.few_images(patch)
        more = ["federation.participation=0.6", "federation.dropout=0.4", "checkpoint.every=1", "checkpoint.keep=9", "evaluation.every=0"]
        main(
            small.settings(
                folder,
                "method.name=fedmgp",
                f"method.fedmgp.groups={GROUPS}",
                f"federation.rounds={ROUNDS}",
                "federation.batch_size=18",
                *more,
            )
        )
    return folder


def own_rows(run: Path, round_: int) -> dict[int, Tensor]:
    found = manifest.read_manifest(manifest.folder_of(run / "checkpoints", round_))
    return {row.client: row.tensor for row in read.read_rows(run / "checkpoints", found, range(7)) if row.kind == "private"}


def test_bytes_of_who_was_there_and_who_was_not(run: Path) -> None:
    """A participant is sent the last mean if its upload was not in there, and the next one if its upload is."""
    last: set[int] = set()
    differing = set()
    for row in small.metrics(run):
        cohort, lost = set(row["clients"]), {*row["lost"]["failed"], *row["lost"]["late"]}
        behind = len(cohort - last) if last else 0
        assert row["comm"]["uplink_bytes"] == 4 * NUMBERS * len(cohort)
        assert row["comm"]["downlink_bytes"] == 4 * NUMBERS * (len(cohort - lost) + behind)
        assert row["comm"]["wasted_bytes"] == 4 * NUMBERS * len(lost)
        last = cohort - lost or last
        differing.add(behind - len(lost))
    assert len(differing) > 1


def test_only_counted_participants_hold_the_servers_rows(run: Path) -> None:
    for row in small.metrics(run):
        found = manifest.read_manifest(manifest.folder_of(run / "checkpoints", row["round"]))
        named = {item.kind: item.tensor for item in read.read_rows(run / "checkpoints", found, ()) if item.client is None}
        shared = named["server.shared"].split([2 * 2 * width for width in WIDTHS])
        lost = {*row["lost"]["failed"], *row["lost"]["late"]}
        for client, own in own_rows(run, row["round"]).items():
            for prompts, server in zip(own.split([GROUPS * 2 * width for width in WIDTHS]), shared, strict=True):
                slots = {tuple(slot.tolist()) for slot in prompts.view(GROUPS, -1)}
                inside = [tuple(mean.tolist()) in slots for mean in server.view(2, -1)]
                assert all(inside) if client in set(row["clients"]) - lost else not any(inside)
