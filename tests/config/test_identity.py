"""Which settings make another run: what each says of itself holds when a run is resumed or its result is looked up again."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pfedmma.accuracy.evaluator import EvaluationConfig
from pfedmma.config.identity import change_of, comparable, refuse_other_config, relevant, settings
from pfedmma.config.schema import Config, dump, load, load_run
from pfedmma.system.errors import UserError
from pfedmma.system.options import ANOTHER_RUN, CHANGES, GOES_ON, OUTSIDE, SAME_RESULT, Described, described, flatten

WRITTEN = Path(__file__).resolve().parents[1] / "records" / "written_by_0_1_0"
ALL = described(Config)
each_setting = pytest.mark.parametrize("item", ALL, ids=lambda item: item.name)
# What plugins make of a run follows from their content: see test_plugins.
each_alone = pytest.mark.parametrize("item", [item for item in ALL if not item.name.startswith("plugin")], ids=lambda item: item.name)


def base_of(item: Described) -> list[str]:
    """Settings of a run in which this one counts: of its method, and with a protocol that any setting of the data goes with."""
    method = re.match(r"method\.(\w+)\.", item.name)
    bound = ["privacy.clip=1"] if item.name.startswith("privacy.") and item.name != "privacy.clip" else []
    some = ["federation.participation=0.5"] if item.name == "federation.over_selection" else []
    return ["data.protocol=iid", "run_dir=r", *([f"method.name={method[1]}"] if method else []), *bound, *some]


def values_of(item: Described) -> list[str]:
    """What to try as another value: numbers near the default, or what the meaning names, from which any text may be taken."""
    if item.type in (int, float):
        return [str(item.type(item.default + 1)), str(item.default / 2), "0.5", "1"]
    if item.type is bool:
        return [str(not item.default)]
    return [*re.findall(r"\w+", item.meaning), *re.findall(r"\d+:[\d.:,]+\d", item.meaning), "2"]


def changed(item: Described) -> Config:
    """The base with another value of this setting."""
    old = flatten(load(None, base_of(item)))[item.name]
    for text in values_of(item):
        try:
            config = load(None, [*base_of(item), f"{item.name}={text}"])
        except UserError:
            continue
        if flatten(config)[item.name] != old:
            return config
    raise AssertionError(f"no other value of {item.name} among {values_of(item)}")


def saved(flat: dict[str, Any]) -> dict[str, Any]:
    """As it is read from a checkpoint's manifest or a summary."""
    return json.loads(json.dumps(flat))


@each_setting
def test_every_setting_says_what_it_means_in_a_line(item: Described) -> None:
    assert item.meaning.strip() == item.meaning != ""
    assert "\n" not in item.meaning and len(item.meaning) <= 160


@each_setting
def test_every_setting_says_what_another_value_makes_of_a_run(item: Described) -> None:
    assert item.change in CHANGES
    assert change_of()[item.name] == item.change


@each_alone
def test_resume_accepts_another_value_unless_it_makes_another_run(item: Described) -> None:
    before = saved(comparable(load(None, base_of(item))))
    after = changed(item)
    if item.change != ANOTHER_RUN:
        refuse_other_config(after, before)
        return
    with pytest.raises(UserError, match=rf"resume: .* another configuration: .*{re.escape(item.name)} \(was "):
        refuse_other_config(after, before)


@each_alone
def test_a_result_stands_for_other_settings_only_if_it_does_not_depend_on_them(item: Described) -> None:
    before, after = saved(settings(load(None, base_of(item)))), settings(changed(item))
    assert (relevant(before) == relevant(after)) == (item.change in (SAME_RESULT, OUTSIDE))


def test_what_may_change() -> None:
    names = {change: [name for name, own in change_of().items() if own == change] for change in CHANGES}
    assert names[OUTSIDE] == ["run_dir", "resume", "trackers"]
    evaluation = [f"evaluation.{item.name}" for item in dataclasses.fields(EvaluationConfig)]
    assert names[GOES_ON] == ["backbone.compile", "federation.rounds", *evaluation]
    sections = {name.partition(".")[0] for name in names[SAME_RESULT]}
    assert sections == {"plugins", "backbone", "data", "federation", "checkpoint", "distributed"}


def test_settings_leave_out_where_the_run_lies_and_other_methods() -> None:
    flat = settings(load(None, ["method.name=fedpgp", "run_dir=r", "trackers=tensorboard"]))
    assert {name.split(".")[1] for name in flat if name.count(".") == 2} == {"fedpgp"}
    assert not {"run_dir", "resume", "trackers"} & set(flat)
    assert flat["method.fedpgp.rank"] == 8 and flat["federation.clients_per_pass"] == "auto"


def test_a_saved_setting_that_there_is_no_more_counts() -> None:
    now = settings(load())
    assert relevant({**now, "optimizer.schedule": "cosine"}) != relevant(now)


def test_what_an_earlier_version_had_no_setting_for_was_as_the_default_says() -> None:
    now = settings(load(None, ["run_dir=r"]))
    before = {name: value for name, value in now.items() if name != "optimizer.clip"}
    assert relevant(before) == relevant(now) != relevant({**now, "optimizer.clip": 1.0})
    refuse_other_config(load(None, ["run_dir=r"]), before)
    with pytest.raises(UserError, match=r"optimizer\.clip \(was 0\.0, is 1\.0\)"):
        refuse_other_config(load(None, ["optimizer.clip=1"]), before)


def without_looks(*overrides: str) -> dict[str, Any]:
    """The settings of a run of a version that knew cameras of one kind, and no medium."""
    flat = settings(load(None, ["run_dir=r", *overrides]))
    return {name: value for name, value in flat.items() if name not in ("data.camera_kind", "data.medium")}


def test_pictures_of_earlier_versions_were_others_and_are_not_mixed() -> None:
    with pytest.raises(UserError, match=r"data\.camera_kind \(was hue, is pattern\), data\.medium \(was 0\.0, is -1\.0\)$"):
        refuse_other_config(load(None, ["run_dir=r"]), without_looks())
    same = load(None, ["run_dir=r", "data.camera_kind=hue", "data.medium=0"])
    refuse_other_config(same, without_looks())
    assert relevant(settings(same)) == relevant(without_looks()) != relevant(settings(load(None, ["run_dir=r"])))


@pytest.mark.parametrize("overrides", [["data.name=caltech101"], ["data.camera=0", "data.medium=0"]])
def test_pictures_without_a_camera_are_what_they_were(overrides: list[str]) -> None:
    refuse_other_config(load(None, ["run_dir=r", *overrides]), without_looks(*overrides))
    with pytest.raises(UserError, match=r"camera \(was .*, is 0\.3\)"):
        refuse_other_config(load(None, ["run_dir=r", *overrides, "data.camera=0.3"]), without_looks(*overrides))


def test_settings_that_a_run_has_written_are_read_as_its_version_did(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    here = f"run_dir={tmp_path}"
    file.write_text(dump(load(None, ["run_dir=elsewhere", "data.clients=4"])))
    assert load_run(tmp_path, ["seed=7"]) == load(None, [here, "data.clients=4", "seed=7"])
    tree = yaml.safe_load(file.read_text())
    del tree["data"]["camera_kind"], tree["data"]["medium"]
    file.write_text(yaml.safe_dump(tree))
    assert load_run(tmp_path) == load(None, [here, "data.clients=4", "data.camera_kind=hue", "data.medium=0"])
    assert load_run(tmp_path, ["data.medium=0.5"]).data.medium == 0.5


@pytest.mark.parametrize("run", ["adapters", "pool"])
def test_a_result_of_version_0_1_0_stands(run: str) -> None:
    folder = WRITTEN / run
    config = load_run(folder)
    before = json.loads((folder / "summary.json").read_text())["config"]
    assert relevant(before) == relevant(settings(config))
    refuse_other_config(config, before)
