"""Metrics rows and summaries: what is written is read back, what version 0.1.0 wrote too, what a later one wrote is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import pfedmma
from pfedmma.compare import table
from pfedmma.compare.done import Done
from pfedmma.compare.grid import Plan
from pfedmma.config import schema
from pfedmma.records.folder import RunFolder
from pfedmma.records.rows import FORMAT, Accuracy, RoundRow, RunSummary
from pfedmma.report import main as report
from pfedmma.system.errors import UserError
from pfedmma.system.fields import Fields
from tests.support import small
from tests.support.reported import Page, accuracy, diagnosed, member, met, round_, summary, write_run

OLD = Path(__file__).parent / "written_by_0_1_0"
DOMAINS = {"domains": {"photo": 80.0, "sketch": None}, "domain_average": 80.0}


def read_row(values: Any) -> RoundRow:
    return RoundRow.from_fields(Fields(values, "row"))


def read_summary(values: Any) -> RunSummary:
    return RunSummary.from_fields(Fields(values, "summary"))


# What is written is read back, key by key.


@pytest.mark.parametrize("evaluated", [None, accuracy(70.0), accuracy(70.0, novel=None) | DOMAINS | diagnosed(0.5, None)])
def test_a_row_is_read_back(evaluated: dict[str, Any] | None) -> None:
    row = read_row(round_(3, 4, evaluated))
    assert (row.round, row.clients, row.samples, row.comm.uplink_bytes) == (3, (0, 1, 2, 3), 48, 4 * 12_672)
    assert json.dumps(row.to_json()) == json.dumps(round_(3, 4, evaluated))
    assert read_row(json.loads(json.dumps(row.to_json()))) == row


def test_accuracies_of_clients_are_read_back() -> None:
    each = {"clients": [0, 3], "local": [50.0, None], "base": [40.5, 30.0]}
    row = read_row(round_(3, 4, accuracy(70.0)) | {"per_client": each})
    assert row.per_client is not None and row.per_client.columns["local"] == (50.0, None)
    assert json.dumps(row.to_json()) == json.dumps(round_(3, 4, accuracy(70.0)) | {"per_client": each})
    assert read_row(row.to_json()) == row and row.tested_on("val").per_client is None


@pytest.mark.parametrize(
    ("each", "says"),
    [
        ({"clients": [0, 1], "local": [50.0]}, "row: per_client: local must hold 2 numbers, one of each of its clients, not 1"),
        ({"clients": [0], "local": ["x"]}, "row: per_client: local must be a list of numbers or nulls"),
        ({"local": [50.0]}, "row: per_client has no 'clients'"),
        ([1, 2], "row: per_client must be an object, not a list"),
    ],
)
def test_accuracies_of_clients_of_another_kind_are_refused(each: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_row(round_(3, 4, accuracy(70.0)) | {"per_client": each})


def test_diagnostics_stand_beside_accuracies() -> None:
    found = read_row(round_(3, 4, accuracy(70.0) | diagnosed(0.5, None))).accuracy
    assert found is not None and (found.diagnostic("alignment_margin"), found.diagnostic("shared_cka")) == (0.5, None)
    plain = read_row(round_(3, 4, accuracy(70.0))).accuracy
    assert plain is not None and plain.diagnostic("ece") is None and "diagnostics" not in plain.to_json()
    with pytest.raises(UserError, match="row: accuracy: diagnostics has no 'modality_gap'"):
        read_row(round_(3, 4, accuracy(70.0) | {"diagnostics": {"alignment_margin": 0.5}}))


def test_a_summary_is_read_back() -> None:
    made = summary(accuracy=accuracy(80.0) | DOMAINS)
    made["per_client"][1] |= {"domain": "photo", "unseen": 30.0, "zero_shot": None}
    read = read_summary(made | {"format": FORMAT, "version": pfedmma.__version__})
    assert list(read.to_json()) == [*made, "format", "version"]
    assert read.to_json() == made | {"format": FORMAT, "version": pfedmma.__version__}
    assert read_summary(read.to_json()) == read


def test_new_clients_are_read_back_and_absent_where_there_are_none() -> None:
    made = summary() | {"format": FORMAT, "version": pfedmma.__version__, "new_clients": met((1, 3))}
    read = read_summary(json.loads(json.dumps(made)))
    assert read.new_clients is not None and read.new_clients.ids == (1, 3) and read.new_clients.rows[3].accuracy.score("local") == 60.0
    assert read.new_clients.bytes == {"new_clients": {"uplink_bytes": 0, "downlink_bytes": 2 * 12_672}}
    assert json.dumps(read.to_json()) == json.dumps(made) and read_summary(read.to_json()) == read
    del made["new_clients"]["rows"][0]["per_client"]
    assert read_summary(made).new_clients.rows[0].per_client == ()
    assert read_summary(summary()).new_clients is None and "new_clients" not in read_summary(summary()).to_json()
    made["new_clients"]["rows"][1]["epochs"] = "five"
    with pytest.raises(UserError, match=r"summary: new_clients: rows\[1\]: epochs must be a whole number, not a text"):
        read_summary(made)


def test_a_selected_round_is_read_back() -> None:
    """And rows with the accuracies that selected it; neither key is there where nothing is selected."""
    chosen = {"round": 2, "by": "best_val", "score": "hm", "split": "val", "value": 61.5}
    made = summary() | {"selected": chosen, "format": FORMAT, "version": pfedmma.__version__}
    read = read_summary(made)
    assert read.to_json() == made and list(read.to_json()) == list(made) and read_summary(read.to_json()) == read
    assert str(read.selected) == "round 2, which has the best HM on the val split, 61.50 % (evaluation.select=best_val)"
    assert "selected" not in read_summary(summary()).to_json()
    line = round_(2, 4, accuracy(70.0)) | {"validation": accuracy(60.0)}
    assert read_row(line).to_json() == line and "validation" not in read_row(round_(2, 4, accuracy(70.0))).to_json()
    with pytest.raises(UserError, match="summary: selected: score must be one of hm, local"):
        read_summary(made | {"selected": chosen | {"score": "base"}})


def test_lost_uploads_and_simulated_seconds_are_read_back() -> None:
    """And neither stands in a file where they are not simulated."""
    line = round_(2, 4, None) | {"loss": None, "lost": {"failed": [0, 3], "late": [2]}, "simulated_seconds": 2.5}
    line["comm"]["wasted_bytes"] = 3 * 12_672
    row = read_row(line)
    assert row.lost is not None and row.lost.count == 3 and row.lost.numbers == {"failed": 2, "late": 1}
    assert (row.loss, row.simulated_seconds, row.comm.wasted_bytes) == (None, 2.5, 38_016)
    assert json.dumps(row.to_json()) == json.dumps(line) and read_row(row.to_json()) == row
    made = summary() | {"format": FORMAT, "version": pfedmma.__version__, "lost": {"failed": 2, "late": 1}, "simulated_seconds": 7.5}
    made["comm"]["wasted_bytes"] = 38_016
    read = read_summary(json.loads(json.dumps(made)))
    assert (read.lost, read.simulated_seconds, read.comm.wasted_bytes) == ({"failed": 2, "late": 1}, 7.5, 38_016)
    assert json.dumps(read.to_json()) == json.dumps(made) and read_summary(read.to_json()) == read
    for plain in (read_row(round_(2, 4, None)).to_json(), read_summary(summary()).to_json()):
        assert not {"lost", "simulated_seconds"} & plain.keys() and "wasted_bytes" not in plain["comm"]
    for wrong, says in (
        ({"failed": [0]}, "row: lost has no 'late'"),
        ({"failed": [0.5], "late": []}, "row: lost: failed must be a list of"),
    ):
        with pytest.raises(UserError, match=says):
            read_row(line | {"lost": wrong})


def test_the_average_of_domains_follows_the_domains() -> None:
    read = Accuracy.from_fields(Fields(accuracy(70.0) | {"domain_average": 80.0, "domains": {"photo": 80.0}}, "accuracy"))
    assert list(read.to_json())[-2:] == ["domains", "domain_average"] and read.score("domain_average") == 80.0
    assert read.score("no such score") is None


def test_a_client_gains_what_it_has_over_zero_shot() -> None:
    gains, loses = read_summary(summary(per_client=[member(0, 60.0, 72.5), member(1, 60.0, 40.0)])).per_client
    assert (gains.gain("local"), loses.gain("local"), gains.gain("unseen")) == (12.5, -20.0, None)
    (unknown,) = read_summary(summary(per_client=[member(0, None, 72.5)])).per_client
    assert unknown.gain("local") is None


def test_parts_of_a_round_that_are_not_recorded_took_no_time() -> None:
    row = read_row(round_(1, 2, None) | {"seconds": {"train": 0.5, "wait": None, "exchange": 0.25}})
    assert row.spent("train", "wait", "exchange", "input") == 0.75


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"round": "one"}, "row: round must be a whole number, not a text"),
        ({"clients": [0, 1.5]}, "row: clients must be a list of whole numbers"),
        ({"comm": {}}, "row: comm has no 'shared_parameters'"),
        ({"accuracy": 50.0}, "row: accuracy must be an object, not the number 50.0"),
        ({"seconds": None}, "row: seconds must be an object, not null"),
    ],
)
def test_a_row_of_another_kind_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_row(round_(1, 2, None) | change)


# Files.


def test_a_folder_reads_what_it_wrote(tmp_path: Path) -> None:
    rows, whole = [read_row(round_(n, 4, accuracy(70.0))) for n in (1, 2, 3)], read_summary(summary())
    folder = RunFolder(tmp_path / "run")
    folder.create("seed: 0\n")
    for row in rows:
        folder.append_metrics(row)
    folder.write_summary(dataclasses.replace(whole, format=FORMAT, version=pfedmma.__version__))
    assert folder.read_metrics() == rows
    assert small.summary(folder.path) == summary() | {"format": FORMAT, "version": pfedmma.__version__}
    assert folder.read_summary().per_client == whole.per_client


def test_a_resumed_run_keeps_rows_as_they_were_written(tmp_path: Path) -> None:
    folder = RunFolder(write_run(tmp_path / "run", rounds=[round_(n, 4, None) | {"more": n} for n in (1, 2, 3)]))
    folder.keep_rounds(2)
    assert small.metrics(folder.path) == [round_(n, 4, None) | {"more": n} for n in (1, 2)] and not folder.summary.exists()


# Other versions.


@pytest.mark.parametrize("name", ["adapters", "pool"])
def test_what_0_1_0_wrote_is_read_whole(name: str) -> None:
    folder = RunFolder(OLD / name)
    written, read = small.summary(folder.path), folder.read_summary()
    assert (read.format, read.version) == (0, "")
    assert json.dumps(read.to_json()) == json.dumps(written | {"split": "test", "format": 0, "version": ""})
    assert [json.dumps(row.to_json()) for row in folder.read_metrics()] == [
        json.dumps(row | {"split": None}) for row in small.metrics(folder.path)
    ]


def test_the_report_reads_what_0_1_0_wrote(tmp_path: Path) -> None:
    report([str(OLD / "adapters"), str(OLD / "pool"), "--html", str(tmp_path / "page.html")])
    page = Page.from_file(tmp_path / "page.html")
    adapters, pool = small.summary(OLD / "adapters"), small.summary(OLD / "pool")  # nothing was evaluated in the second
    assert f"{adapters['accuracy']['hm']:.2f}" in page.text
    assert all(f"{found['bytes_per_client_round']:,} B" in page.text for found in (adapters, pool))


def test_a_comparison_reads_what_0_1_0_wrote() -> None:
    runs = []
    for name in ("adapters", "pool"):
        folder = RunFolder(OLD / name)
        plan = Plan(small.summary(folder.path)["method"], "shapes", schema.resolve({"seed": 0, "run_dir": str(folder.path)}))
        runs.append(Done(plan, folder.read_summary(), folder.read_metrics()))
    first, second = table.rows(runs)
    assert first.mean["local"] == small.summary(OLD / "adapters")["accuracy"]["local"] and second.mean["local"] is None
    for run, row in zip(runs, (first, second), strict=True):
        assert (row.up, row.down) == (run.summary.bytes_per_client_round, run.summary.bytes_down_per_client_round)
        assert row.seconds is not None and row.seconds < 1.0


def test_a_later_format_is_refused_with_the_version_that_wrote_it(tmp_path: Path) -> None:
    folder = RunFolder(write_run(tmp_path / "run", summary() | {"format": FORMAT + 1, "version": "9.8.7", "per_client": "elsewhere"}))
    with pytest.raises(UserError, match=rf"summary\.json is of format {FORMAT + 1}, written by pfedmma 9\.8\.7; .* formats up to {FORMAT}"):
        folder.read_summary()
    folder.metrics.write_text('{"round": 1}\n'.replace("}", f', "format": {FORMAT + 1}, "version": "9.8.7"}}'))
    for read in (folder.read_metrics, lambda: folder.keep_rounds(1)):
        with pytest.raises(UserError, match=rf"metrics\.jsonl: round 1 is of format {FORMAT + 1}, written by pfedmma 9\.8\.7; "):
            read()
    assert folder.metrics.read_text().startswith('{"round": 1, "format"')
    with pytest.raises(UserError, match="written by a later pfedmma"):
        read_summary(summary() | {"format": FORMAT + 1})
