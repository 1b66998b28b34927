"""Files that are not as training writes them: one sentence, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfedmma.report import main
from pfedmma.report.as_html import render
from pfedmma.report.command import compose
from pfedmma.report.runs import read_all
from pfedmma.report.wire import Wire
from pfedmma.system.errors import UserError
from tests.support.programs import python
from tests.support.reported import summary, write_run

REQUIRED = ("method", "dataset", "protocol", "backbone", "seed", "world_size", "accuracy", "zero_shot", "per_client", "comm", "throughput")


@pytest.mark.parametrize("key", [*REQUIRED, "versions", "bytes_per_client_round"])
def test_a_missing_key_is_named(tmp_path: Path, key: str):
    run = write_run(tmp_path / "run")
    (run / "summary.json").write_text(json.dumps({k: v for k, v in summary().items() if k != key}))
    with pytest.raises(UserError, match=rf"summary\.json has no '{key}'"):
        main([str(run)])
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": 3}, "method must be a text, not the number 3"),
        ({"seed": "zero"}, "seed must be a whole number, not a text"),
        ({"world_size": True}, "world_size must be a whole number, not true or false"),
        ({"accuracy": [1.0]}, "accuracy must be an object, not a list"),
        ({"per_client": {}}, "per_client must be a list, not an object"),
        ({"per_client": [{"id": 0}]}, r"per_client\[0\] has no 'domain'"),
        ({"per_client": [7]}, r"per_client\[0\] must be an object, not the number 7"),
        ({"comm": None}, "comm must be an object, not null"),
        ({"comm": summary()["comm"] | {"bookkeeping": {"metrics": 5}}}, "bookkeeping: metrics must be an object"),
        ({"versions": {"torch": 2}}, "versions: torch must be a text"),
        ({"bytes_per_client_round": None}, "bytes_per_client_round must be a whole number, not null"),
        ({"throughput": "fast"}, "throughput must be an object, not a text"),
        ({"config": [1]}, "config must be an object, not a list"),
        ({"alternatives": 3}, "alternatives must be an object"),
    ],
)
def test_a_wrong_type_is_named_and_where_it_is(tmp_path: Path, change: dict[str, Any], said: str):
    run = write_run(tmp_path / "run")
    (run / "summary.json").write_text(json.dumps(summary() | change))
    with pytest.raises(UserError, match=rf"summary\.json.*{said}"):
        main([str(run)])


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "\x00", '{"method": "x"}', "[" * 100_000])
def test_what_is_no_summary(tmp_path: Path, text: str):
    run = write_run(tmp_path / "run")
    (run / "summary.json").write_text(text)
    with pytest.raises(UserError, match=r"summary\.json"):
        main([str(run)])


def test_bytes_that_are_no_text(tmp_path: Path):
    run = write_run(tmp_path / "run")
    (run / "summary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"summary\.json is not valid JSON"):
        main([str(run)])


@pytest.mark.parametrize(
    ("line", "said"),
    [("3", "line 1 is not of a round"), ('{"round": 1}', "round 1 has no 'clients'"), ('{"round": "a"}', "line 1 is not of a round")],
)
def test_a_wrong_line_of_metrics_is_named(tmp_path: Path, line: str, said: str):
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=rf"metrics\.jsonl: {said}"):
        main([str(run)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "not valid JSON"),
        ("[]", "must be an object, not a list"),
        ("{}", "has no 'runs'"),
        ('{"runs": 3}', "runs must be a list"),
        ('{"runs": [{"name": "a"}]}', r"runs\[0\] has no"),
        ('{"runs": [{"name": "a", "phases": {}, "world_size": "two"}]}', "world_size must be a whole number"),
    ],
)
def test_a_wrong_wire_file(tmp_path: Path, text: str, said: str):
    (tmp_path / "wire.json").write_text(text)
    with pytest.raises(UserError, match=rf"wire\.json.*{said}"):
        Wire.from_file(tmp_path / "wire.json")
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        main([str(write_run(tmp_path / "run")), "--wire", str(tmp_path / "none.json")])


def test_the_program_ends_with_one_line_and_status_2(tmp_path: Path):
    run = write_run(tmp_path / "run", summary(method=None))
    done = python(["-m", "pfedmma.report", str(run)])
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "method must be a text" in done.stderr


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PATHS = [(key,) for key in summary()] + [
    ("per_client", 0),
    ("per_client", 1, "zero_shot"),
    ("comm", "bookkeeping"),
    ("accuracy", "domains"),
]


@settings(max_examples=150, deadline=None)
@given(path=st.sampled_from(PATHS), value=ANYTHING)
def test_anything_anywhere_is_a_page_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, path: tuple[str | int, ...], value: Any):
    made: Any = summary()
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    run = write_run(tmp_path_factory.getbasetemp() / "anything")
    (run / "summary.json").write_text(json.dumps(made))
    try:
        runs = read_all([str(run)])
    except UserError as error:
        assert "summary.json" in str(error)
        return
    render(compose(runs, None)).encode()


def test_a_folder_without_runs_is_named(tmp_path: Path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(UserError, match=r"holds no run, nor does a folder in it; give the run_dir of a run, or a folder of runs"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match=r"absent holds no run \(no config\.yaml\)"):
        main([str(tmp_path / "absent")])
