"""Settings: defaults < file < command line, checked by name, type and range."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from pfedmma.config import schema
from pfedmma.config.schema import Config, dump, load
from pfedmma.system.errors import UserError
from pfedmma.system.options import flatten


def value(setting: str) -> Any:
    """What "section.key=text" on the command line is read as."""
    return flatten(load(None, [setting]))[setting.partition("=")[0]]


def from_file(folder: Path, text: str, *overrides: str) -> Config:
    file = folder / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    return load(file, overrides)


# Precedence.


def test_the_defaults_are_the_paper_s() -> None:
    flat = flatten(load())
    paper = {
        "data.clients": 10,
        "data.shots": 16,
        "data.protocol": "base_to_novel",
        "method.name": "pfedmma",
        "method.dim": 32,
        "method.scale": 0.001,
        "method.activation": "relu",
        "federation.rounds": 50,
        "federation.local_epochs": 2,
        "federation.participation": 1.0,
        "federation.batch_size": 32,
        "optimizer.name": "sgd",
        "optimizer.lr": 1e-3,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 5e-4,
        "optimizer.state": "reset",
    }
    assert {name: flat[name] for name in paper} == paper


def test_every_fixed_key_of_the_contract_exists() -> None:
    fixed = """seed run_dir backbone.name backbone.pretrained backbone.precision data.name data.root data.protocol data.clients data.shots
        data.beta method.name method.dim method.scale federation.rounds federation.local_epochs federation.participation
        federation.batch_size optimizer.lr evaluation.every checkpoint.every resume"""
    assert set(fixed.split()) <= set(flatten(Config()))


def test_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    text = "seed: 1\nfederation:\n  rounds: 20\n  batch_size: 16\n"
    result = from_file(tmp_path, text, "federation.rounds=30", "data.clients=4")
    assert result.federation.rounds == 30  # command line over file
    assert result.federation.batch_size == 16  # file over default
    assert result.federation.local_epochs == 2  # default
    assert (result.seed, result.data.clients) == (1, 4)


def test_the_last_of_two_settings_counts() -> None:
    assert load(None, ["seed=1", "seed=2"]).seed == 2


def test_run_dir_follows_from_what_runs_unless_it_is_given() -> None:
    assert load(None, ["seed=3", "method.name=local"]).run_dir == "runs/shapes-local-seed3"
    assert load(None, ["run_dir=here"]).run_dir == "here"


def test_a_section_may_be_empty_and_a_file_too(tmp_path: Path) -> None:
    assert from_file(tmp_path, "federation:\n") == load()
    assert from_file(tmp_path, "") == load()
    assert from_file(tmp_path, "# nothing but a comment\n") == load()


# Unknown names.


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [
        ("federation.round=3", "federation.rounds"),
        ("federaton.rounds=3", "federation.rounds"),
        ("rounds=3", "federation.rounds"),
        ("lr=0.1", "optimizer.lr"),
        ("optimizer.learning_rate=0.1", "optimizer."),
        ("batch_size=8", "federation.batch_size"),
        ("sed=1", "seed"),
        ("Seed=1", "seed"),
        ("backbone.precison=bf16", "backbone.precision"),
    ],
)
def test_an_unknown_key_names_the_nearest(setting: str, nearest: str) -> None:
    with pytest.raises(UserError) as error:
        load(None, [setting])
    message = str(error.value)
    assert setting.partition("=")[0] in message
    assert nearest in message.replace(setting.partition("=")[0], "", 1)


def test_an_unknown_key_without_a_near_one_names_the_sections() -> None:
    with pytest.raises(UserError, match=r"unknown setting 'zzzzzz'.*federation.*optimizer"):
        load(None, ["zzzzzz=1"])


def test_an_unknown_key_in_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"federation\.round'.*federation\.rounds"):
        from_file(tmp_path, "federation:\n  round: 3\n")
    with pytest.raises(UserError, match=r"optimiser\.lr.*optimizer\.lr"):
        from_file(tmp_path, "optimiser:\n  lr: 0.1\n")
    with pytest.raises(UserError, match="unknown setting '7'"):
        from_file(tmp_path, "7: 3\n")


@pytest.mark.parametrize("setting", ["federation", "--rounds", "federation.rounds:3", "", " "])
def test_a_setting_without_equals_says_how_to_write_one(setting: str) -> None:
    with pytest.raises(UserError, match="key=value, for example"):
        load(None, [setting])


@pytest.mark.parametrize("setting", ["=3", "federation.=3", ".rounds=3", "federation..rounds=3"])
def test_a_setting_without_a_name_is_unknown(setting: str) -> None:
    with pytest.raises(UserError, match="unknown setting"):
        load(None, [setting])


# Types and ranges.


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("federation.rounds=ten", "a whole number"),
        ("federation.rounds=1.5", "a whole number"),
        ("federation.rounds=10.0", "a whole number"),
        ("federation.rounds=true", "a whole number"),
        ("federation.rounds=", "a whole number"),
        ("federation.rounds=[1, 2]", "a whole number"),
        ("federation.rounds=[1", "a whole number"),
        ("seed=none", "a whole number"),
        ("optimizer.lr=fast", "a number"),
        ("optimizer.lr=true", "a number"),
        ("optimizer.lr={a: 1}", "a number"),
        ("method.rescale=1", "true or false"),
        ("method.rescale='true'", "true or false"),
        ("method.rescale=", "true or false"),
    ],
)
def test_a_value_of_the_wrong_type_says_what_is_expected(setting: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        load(None, [setting])
    assert str(error.value).startswith(f"{setting.partition('=')[0]}: ")
    assert f"{expected} is expected" in str(error.value)


@pytest.mark.parametrize("text", ["name: [a, b]", "name: {a: 1}", "name: !!bool 'yes'"])
def test_text_is_not_a_list_a_mapping_or_a_truth_value(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"data\.name: text is expected"):
        from_file(tmp_path, f"data:\n  {text}\n")


@pytest.mark.parametrize(
    "setting",
    [
        "federation.rounds=0",
        "federation.local_epochs=0",
        "federation.batch_size=-1",
        "federation.clients_per_pass=0",
        "federation.graphs=on",
        "backbone.compile=true",
        "federation.stems_gb=-1",
        "federation.stems_gb=nan",
        "federation.stems_gb=much",
        "federation.participation=0",
        "federation.participation=1.01",
        "federation.participation=-0.5",
        "federation.participation=.nan",
        "data.clients=0",
        "data.shots=-1",
        "data.beta=0",
        "method.dim=0",
        "method.scale=-1",
        "method.scale=.inf",
        "optimizer.lr=-0.1",
        "optimizer.lr=.nan",
        "optimizer.lr=inf",
        "optimizer.momentum=-1",
        "optimizer.eps=0",
        "evaluation.every=-1",
        "evaluation.batch_size=0",
        "checkpoint.every=-1",
        "checkpoint.keep=0",
        "distributed.timeout=0",
        "backbone.precision=fp8",
        "data.name=mnist",
        "data.protocol=random",
        "data.augment=all",
        "method.name=fedprox2",
        "method.activation=tanh",
        "optimizer.name=lion",
        "optimizer.state=keep",
        "evaluation.split=train",
        "distributed.backend=mpi",
        "distributed.device=tpu",
        "distributed.wire=int8",
    ],
)
def test_a_value_out_of_range_is_refused_by_name(setting: str) -> None:
    with pytest.raises(UserError) as error:
        load(None, [setting])
    message = str(error.value)
    assert message.startswith(f"{setting.partition('=')[0]}: ")
    assert any(word in message for word in ("must be", "choose one of"))


@pytest.mark.parametrize(
    "setting",
    [
        "federation.participation=1",
        "federation.participation=0.001",
        "data.shots=0",
        "evaluation.every=0",
        "checkpoint.every=0",
        "optimizer.lr=0",
        "method.scale=0",
        "seed=-5",
    ],
)
def test_values_at_the_edge_of_the_range_are_taken(setting: str) -> None:
    assert value(setting) == pytest.approx(float(setting.partition("=")[2]))


# What YAML makes of text.


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("optimizer.lr=1e-3", 1e-3),  # YAML 1.1 reads it as text: it asks for a dot
        ("optimizer.lr=1.e-3", 1e-3),
        ("optimizer.lr=1E-3", 1e-3),
        ("optimizer.lr='1e-3'", 1e-3),
        ("optimizer.lr=.5", 0.5),
        ("optimizer.lr=1", 1.0),
        ("optimizer.lr= 0.5 ", 0.5),
        ("method.rescale=False", False),
        ("method.rescale=no", False),
        ("method.rescale=on", True),
        ("data.root=~/x", "~/x"),  # not null, and not a folder in the text's place
        ("data.root=~", "~"),
        ("data.root=", ""),
        ("data.root=null", "null"),
        ("data.root=/data/a=b", "/data/a=b"),
        ("data.root=/data/a: b #c", "/data/a: b #c"),
        ("data.root=123", "123"),
        ("data.root=007", "007"),
        ("data.root=[x", "[x"),
        ("backbone.pretrained=none", "none"),
        ("backbone.pretrained=None", "None"),
        ("run_dir='quoted'", "'quoted'"),  # the shell has taken its quotes already; these are part of the name
        ("run_dir=true", "true"),
    ],
)
def test_values_on_the_command_line(setting: str, expected: Any) -> None:
    result = value(setting)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("optimizer: {lr: 1e-3}", "optimizer.lr", 1e-3),
        ("optimizer: {lr: 1}", "optimizer.lr", 1.0),
        ("optimizer: {lr: '0.5'}", "optimizer.lr", 0.5),
        ("backbone: {pretrained: none}", "backbone.pretrained", "none"),
        ("backbone: {pretrained: 'none'}", "backbone.pretrained", "none"),
        ("data: {root: ~/x}", "data.root", "~/x"),
        ("data: {root: ~}", "data.root", ""),
        ("data: {root: 'a # b'}", "data.root", "a # b"),
        ("run_dir: 2024", "run_dir", "2024"),
        ("run_dir: '007'", "run_dir", "007"),
        ("method: {rescale: off}", "method.rescale", False),
        ("seed: 0x10", "seed", 16),
    ],
)
def test_values_in_a_file(tmp_path: Path, text: str, name: str, expected: Any) -> None:
    result = flatten(from_file(tmp_path, text))[name]
    assert result == expected
    assert type(result) is type(expected)


# Sections.


@pytest.mark.parametrize("setting", ["federation=3", "federation=", "federation=none", "optimizer=sgd"])
def test_a_section_given_as_a_value_names_one_of_its_keys(setting: str) -> None:
    name = setting.partition("=")[0]
    with pytest.raises(UserError, match=rf"'{name}' is a section; set one of its keys, for example {name}\."):
        load(None, [setting])


def test_a_section_given_as_a_value_in_a_file(tmp_path: Path) -> None:
    for text in ("federation: 3\n", "federation: [1, 2]\n", "federation: sgd\n"):
        with pytest.raises(UserError, match="'federation' is a section"):
            from_file(tmp_path, text)


def test_a_section_of_the_file_keeps_its_other_keys(tmp_path: Path) -> None:
    result = from_file(tmp_path, "optimizer:\n  name: adam\n  lr: 0.1\n", "optimizer.lr=0.2")
    assert (result.optimizer.name, result.optimizer.lr) == ("adam", 0.2)


# Files that are no settings.


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"- a\n- b\n", "not a list"),
        (b"just text\n", "not one value"),
        (b"a: [1, 2\n", "not valid YAML"),
        (b"\tseed: 1\n", "not valid YAML"),
        (b"seed: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        (b"\xff\xfe\x00seed", "cannot read"),
    ],
)
def test_a_file_that_is_no_settings_file(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        load(file)
    assert str(file) in str(error.value)


def test_a_file_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the config file .*absent\.yaml: No such file"):
        load(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match=r"cannot read the config file .*: Is a directory"):
        load(tmp_path)


# The resolved configuration.


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["optimizer.lr=1e-12", "optimizer.eps=1e-300", "data.beta=123456789.125"],
        ["run_dir=true", "data.root=~", "backbone.pretrained=none"],
        ["run_dir=007", "data.root=1e5", "backbone.pretrained=null"],
        ["run_dir=a: b # c", "data.root='x'", 'data.root="y"'],
        ["run_dir=-", "data.root= leading and trailing "],
        ["run_dir=ä/漢字 😀", "data.root=tab\tline\nend"],
        ["run_dir=r", "resume=auto", "method.rescale=false", "seed=-1"],
    ],
)
def test_dump_and_load(tmp_path: Path, settings: list[str]) -> None:
    resolved = load(None, settings)
    assert from_file(tmp_path, dump(resolved)) == resolved


def test_dump_is_plain_yaml_with_every_key() -> None:
    resolved = load()
    tree = yaml.safe_load(dump(resolved))
    assert sorted(dotted(tree)) == sorted(flatten(resolved))


def dotted(tree: dict, prefix: str = "") -> list[str]:
    """The names of all leaves."""
    names = []
    for name, item in tree.items():
        names += dotted(item, f"{prefix}{name}.") if isinstance(item, dict) else [f"{prefix}{name}"]
    return names


def test_a_config_does_not_change_after_it_is_checked() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        schema.load().seed = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        schema.load().federation.rounds = 0  # type: ignore[misc]
