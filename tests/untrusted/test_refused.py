"""What a file of someone else may not hold: each case is refused in a sentence that says why, before anything large is made of it."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from pfedmma import train
from pfedmma.config import schema as configuration
from pfedmma.data.loading import PROTOCOLS, DataConfig, divide
from pfedmma.data.sources import lists
from pfedmma.data.sources.names import LONGEST_NAME
from pfedmma.records.checkpoint import manifest as checkpoint_manifest
from pfedmma.records.checkpoint import read
from pfedmma.records.folder import RunFolder
from pfedmma.system import options, untrusted
from pfedmma.system.errors import UserError
from tests.support.reported import round_
from tests.support.specimens import (
    PROGRESS,
    SHAPES,
    SPECIMENS,
    adapter_metadata,
    adapter_spec,
    client_metadata,
    good_manifest,
    packed,
    source,
    tensors_of,
    unpacked,
    write_checkpoint,
)


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """Each of these cases takes milliseconds."""
    start = time.process_time()
    yield
    assert time.process_time() - start < 5.0


def refusal(name: str, folder: Path, content: bytes) -> str:
    outcome = SPECIMENS[name].outcome(folder, content)
    assert outcome.startswith("refused: ") and len(outcome) < 1000, outcome[:1000]
    return outcome


# YAML and JSON.

NINE = [(b, ", ".join([f"*{a}"] * 9)) for a, b in itertools.pairwise("abcdefghi")]  # each is nine times the one before
LAUGHS = "a: &a [x]\n" + "".join(f"{name}: &{name} [{nine}]\n" for name, nine in NINE)
MERGES = "a: &a {x: 1}\n" + "".join(f"{name}: &{name} {{<<: [{nine}]}}\n" for name, nine in NINE)

YAML: dict[str, tuple[str, str]] = {
    "a billion laughs": (LAUGHS, "it holds more than 20000 values"),
    "a billion laughs in place of a value": (f"{LAUGHS}seed: *i\n", "it holds more than 20000 values"),
    "a billion merged keys": (MERGES, "it holds more than 20000 values"),
    "an alias of what it is in": ("seed: &a [*a]", "an alias in it refers to what it is part of"),
    "deep lists": ("seed: " + "[" * 5000, "nested too deeply"),
    "lists deeper than any setting": ("seed: " + "[" * 60 + "]" * 60, "nested too deeply"),
    "deep mappings": ("\n".join(" " * n + "a:" for n in range(400)), "nested too deeply"),
    "a key given twice": ("optimizer: {lr: 1}\nseed: 1\noptimizer: {clip: 1}", "'optimizer' is set in it twice"),
    "more than a file of settings": ("# " + "x" * (1 << 17), "it is longer than 131072 characters"),
    "a number of many digits": (f"seed: {'9' * 5000}", r"the number 9{30} in it is too large"),
    "a number in hexadecimal": (f"seed: 0x{'f' * 5000}", "in it is too large"),
    "a number past int64": ("seed: 9223372036854775808", "the number 9223372036854775808 in it is too large"),
    "hours of seconds of ...": (f"seed: 1{':59' * 5000}", "in it is too large"),
    "no number": ("seed: !!int x", "is not valid YAML"),
    "no number at all": ("seed: !!int ''", "is not valid YAML"),
    "no float": ("optimizer: {lr: !!float x}", "is not valid YAML"),
    "no truth": ("method: {rescale: !!bool x}", "is not valid YAML"),
    "no date": ("seed: 2001-99-99", "seed: cannot read the value '2001-99-99'; a whole number is expected"),
    "no timestamp": ("run_dir: !!timestamp x", "is not valid YAML"),
    "a list as a key": ("? [1]\n: 2", "is not valid YAML"),
    "half a character": ('run_dir: "\\ud800"', r"run_dir: text in UTF-8 is expected, not '\\ud800'"),
    "a zero character": ('run_dir: "a\\0b"', r"run_dir: text without a zero character is expected, not 'a\\x00b'"),
    "a long text": (f"run_dir: {'x' * 5000}", "run_dir: a text of at most 4096 characters is expected, not one of 5000"),
    "a list for a number": (f"seed: [{'1, ' * 5000}]", r"seed: a whole number is expected, not '\[1, 1, 1, 1, 1, 1, \.\.\.\]'"),
    "a long key": (f"{'x' * 1000}: 1", "unknown setting 'xxx"),
}


@pytest.mark.parametrize("case", YAML)
@pytest.mark.parametrize("name", ["config", "comparison"])
def test_yaml(name: str, case: str, tmp_path: Path):
    text, says = YAML[case]
    message = refusal(name, tmp_path, text.encode())
    if name == "config":
        with pytest.raises(AssertionError, match=says):
            raise AssertionError(message)


def test_aliases_that_stay_small_are_taken(tmp_path: Path):
    text = "methods: {a: &a {method.name: local, optimizer: {lr: 0.1}}, b: {<<: *a, method.name: pfedmma}}"
    assert SPECIMENS["comparison"].outcome(tmp_path, text.encode()) == "read"


def test_a_file_without_end():
    with pytest.raises(UserError, match="is longer than 131072 characters"):
        options.read_yaml(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 60 + "]" * 60, "nested too deeply"),
        ('{"a": 1, "a": 2}', "'a' is in it twice"),
        ("[NaN]", "NaN in it is no number"),
        ("[-Infinity]", "-Infinity in it is no number"),
        ("[1e400]", "the number 1e400 in it is too large"),
        ("9" * 5000, "the number 9{30} in it is too large"),
        ("-9223372036854775809", "is too large"),
        (r'["\ud800"]', "holds half a character"),
        (r'{"\udc00": 1}', "holds half a character"),
    ],
)
def test_json(text: str, says: str):
    with pytest.raises(ValueError, match=says):
        untrusted.parse_json(text)


def test_json_that_is_taken():
    value = {"a": [1, -(2**63) + 1, 2**63 - 1, 0.5, None, True, "é\U0001f600\\ud800"], "b": {"a": 1}}
    assert untrusted.parse_json(json.dumps(value)) == value
    assert untrusted.parse_json(json.dumps(value, ensure_ascii=False)) == value


# Adapters and clients.


def adapter(change: Callable[[dict[str, torch.Tensor]], Any] = lambda tensors: None, **metadata: str) -> bytes:
    tensors = tensors_of(adapter_spec().shapes())
    change(tensors)
    return save(tensors, adapter_metadata(**metadata))


def renumbered(**numbers: int) -> dict[str, torch.Tensor]:
    """The adapters of blocks 1 and 2 at other blocks: one=3 puts the first at 3."""
    places = {"1": numbers.get("one", 1), "2": numbers.get("two", 2)}
    tensors = tensors_of(adapter_spec().shapes())
    return {".".join(str(places.get(part, part)) for part in name.split(".")): tensor for name, tensor in tensors.items()}


WHOLE, COMPLEX = ({"shared.1.bias": torch.zeros(4, dtype=dtype)} for dtype in (torch.int32, torch.complex64))
WIDE = "{:>\u0669\u0669\u0669\u0669\u0669\u0669}"  # other digits
ADAPTERS: dict[str, tuple[bytes, str]] = {
    "no dimension": (save(tensors_of(adapter_spec(dim=0).shapes()), adapter_metadata(dim="0")), "they must have a dimension"),
    "blocks with a gap": (save(renumbered(one=0), adapter_metadata()), "sit in blocks in a row that count from 1"),
    "blocks below the first": (save(renumbered(one=-1, two=0), adapter_metadata()), "sit in blocks in a row that count from 1"),
    "another dimension than it says": (adapter(dim="8"), "dim is said to be 8, but the tensors have 4"),
    "neither rescaled nor not": (adapter(rescale="yes"), "rescale must be true or false"),
    "an infinite scale": (adapter(scale="inf"), "scale must be a number from 0 on"),
    "no scale": (adapter(scale="x"), "could not convert"),
    "whole numbers": (adapter(lambda t: t.update(WHOLE)), r"'shared\.1\.bias' is of torch\.int32"),
    "complex numbers": (adapter(lambda t: t.update(COMPLEX)), "is of torch.complex64"),
    "no number": (adapter(lambda t: t["text.2.up.bias"].fill_(math.nan)), r"'text\.2\.up\.bias' holds values that are not finite"),
    "an infinite weight": (adapter(lambda t: t["visual.1.up.weight"][0].fill_(math.inf)), "holds values that are not finite"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters(case: str, tmp_path: Path):
    content, says = ADAPTERS[case]
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(refusal("adapter", tmp_path, content))


def client(tensors: dict[str, torch.Tensor] | None = None, settings: dict[str, Any] | None = None, **metadata: str) -> bytes:
    said = {} if settings is None else {"method": json.dumps(settings)}
    return save(tensors or tensors_of({"prompt": (2, 8)}), client_metadata(**said, **metadata))


CLIENTS: dict[str, tuple[bytes, str]] = {
    "a prompt as wide as the memory": (client(template="{:>999999999}"), "fills the name up to more than 999 characters"),
    "the same in other digits": (client(template=WIDE), "fills the name up to more than 999 characters"),
    "a long prompt": (client(template="x" * 2000 + "{}"), "is longer than 1000 characters"),
    "a prompt that looks inside": (client(template="{0.__class__}"), "has no place for the name"),
    "no numbers": (client({"prompt": torch.full((2, 8), math.nan)}), "'prompt' holds values that are not finite"),
    "whole numbers": (client({"prompt": torch.zeros(2, 8, dtype=torch.int64)}), "is of torch.int64"),
    "iterations without end": (client(settings={"name": "fedotp", "fedotp": {"iterations": 10**12}}), "iterations: must be at most 10000"),
    "a rank that no memory holds": (client(settings={"name": "fedlora", "fedlora": {"rank": 10**12}}), "rank: must be at most 4096"),
    "a number past all": (client(settings={"name": "pfedmma", "scale": 10**400}), "does not say its method's settings"),
    "words without end": (client(settings={"name": "promptfl", "promptfl": {"words": "ab" * 5000}}), "at most 4096 characters"),
    "half a character": (client(method='{"name": "promptfl", "promptfl": {"words": "\\ud800"}}'), "holds half a character"),
}


@pytest.mark.parametrize("case", CLIENTS)
def test_clients(case: str, tmp_path: Path):
    content, says = CLIENTS[case]
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(refusal("client", tmp_path, content))


@pytest.mark.parametrize("name", ["adapter", "client", "weights"])
@pytest.mark.parametrize("shape", [[10**9, 10**9], [2**62, 4], [10**15]])
def test_a_tensor_larger_than_its_file(name: str, shape: list[int], tmp_path: Path):
    header, rest = unpacked(SPECIMENS[name].good())
    first = next(key for key in header if key != "__metadata__")
    header[first] |= {"shape": shape, "data_offsets": [0, 4 * math.prod(shape)]}
    refusal(name, tmp_path, packed(header, rest))


# Checkpoints.


def manifest(**changes: Any) -> bytes:
    return json.dumps(json.loads(good_manifest()) | changes).encode()


SELECTED = {"round": 1, "by": "best_val", "score": "hm", "split": "val", "value": 50.0}


def progress(**changes: Any) -> bytes:
    return manifest(progress=PROGRESS | changes)


LAYOUT = {name: list(shape) for name, shape in SHAPES.items()}
HASHES = json.loads(good_manifest())["shards"]
MANIFESTS: dict[str, tuple[bytes, str]] = {
    "a shard elsewhere": (manifest(shards=HASHES | {"../../secret.safetensors": ""}), "no part of a checkpoint"),
    "a shard by its full name": (manifest(shards=HASHES | {"/etc/passwd": ""}), "no part of a checkpoint"),
    "the folder above": (manifest(shards=HASHES | {"..": ""}), "no part of a checkpoint"),
    "the folder itself": (manifest(shards=HASHES | {"": ""}), "no part of a checkpoint"),
    "a name that cannot be": (manifest(shards=HASHES | {"clients-00000-00000.safetensors\0": ""}), "no part of a checkpoint"),
    "a shard that is not there": (manifest(shards=HASHES | {"clients-00009-00000.safetensors": ""}), "No such file"),
    "a hash that is none": (manifest(shards=dict.fromkeys(HASHES, 7)), "does not have the hash"),
    "another round": (manifest(round=3), "is of round 3"),
    "true for a round": (manifest(round=True), "has no round"),
    "a size below zero": (manifest(layout=LAYOUT | {"own": [-5]}), "no shape of each tensor"),
    "a size that is no number": (manifest(layout=LAYOUT | {"own": ["5"]}), "no shape of each tensor"),
    "no size": (manifest(layout=LAYOUT | {"own": 5}), "no shape of each tensor"),
    "terabytes": (manifest(layout=LAYOUT | {"own": [10**13]}), "larger than server.safetensors"),
    "terabytes of nothing": (manifest(layout=LAYOUT | {"more": [10**13, 0]}), "larger than server.safetensors"),
    "a rule that is none": (manifest(exchange={"own": "median"}), "is no rule"),
    "a rule of another kind": (manifest(exchange={"own": ["mean"]}), "is no rule"),
    "a rule for no tensor": (manifest(exchange={"other": "mean"}), "is no rule"),
    "other tensors": (manifest(layout={"own": [19]}, exchange={}), "does not fit its manifest"),
    "more tensors": (manifest(layout=LAYOUT | {"more": [0]}), "is of other tensors than this run's"),
    "what was private exchanged": (manifest(exchange={"own": "mean"}), "does not begin with what is exchanged"),
    "a frozen tensor that is none": (manifest(frozen=["other"]), "says is frozen is none of its tensors"),
    "a frozen tensor without a name": (manifest(frozen=[["own"]]), "says is frozen is none of its tensors"),
    "frozen and exchanged": (manifest(frozen=["prompt"]), "is exchanged"),
    "frozen by no list": (manifest(frozen={"own": 1}), "has no frozen"),
    "what was private frozen": (manifest(frozen=["own"]), "does not fit its manifest"),
    "another order": (manifest(layout=dict(reversed(LAYOUT.items()))), "does not begin with what is exchanged"),
    "a later format": (
        manifest(format="pfedmma-checkpoint/3", version="9.9"),
        "is written by pfedmma 9.9 in the format 'pfedmma-checkpoint/3'",
    ),
    "a later format of nobody": (manifest(format="pfedmma-checkpoint/3", version={"a": "\x1b[31m" * 99}), "in the format"),
    "no progress": (manifest(progress={}), "has no config"),
    "no ledger": (progress(ledger=[]), "has no ledger"),
    "an empty ledger": (progress(ledger={}), "the ledger, .* in manifest.json are none"),
    "a ledger of words": (progress(ledger=PROGRESS["ledger"] | {"uplink_bytes": "many"}), "has no numbers"),
    "times that are none": (progress(ledger=PROGRESS["ledger"] | {"exchange_us": ["now"]}), "has no numbers"),
    "an entry that is none": (progress(ledger=PROGRESS["ledger"] | {"total": {"x": {"y": 1}}}), "the ledger, .* in manifest.json are none"),
    "no template": (progress(template=7), "has no template"),
    "reads below zero": (progress(reads=-1), "has no numbers"),
    "an accuracy that is none": (progress(zero_shot=7), "has no zero_shot"),
    "an accuracy of words": (progress(zero_shot={"local": 1.0, "domains": "many"}), "accuracies in manifest.json are none"),
    "accuracies of fewer clients": (progress(zero_shot_clients="AAAA"), "accuracies in manifest.json are none"),
    "accuracies in no base64": (progress(zero_shot_clients="*"), "accuracies in manifest.json are none"),
    "accuracies of another kind": (progress(zero_shot_clients=7), "accuracies in manifest.json are none"),
    "no number of clients": (progress(config={"seed": 0}), "does not say how many clients there are"),
    "clients below one": (progress(config={"data.clients": 0}), "does not say how many clients there are"),
    "more clients than there are": (progress(config={"data.clients": 10**18}), "of another number of clients"),
    "an answer that is none": (progress(answers="both"), "what they answer with"),
    "another answer": (progress(answers="own"), "does not fit its manifest"),
    "classes that are none": (progress(classes={}), "the classes or the accuracies in manifest.json are none"),
    "a selected round without accuracies": (progress(selected=SELECTED), "accuracies in manifest.json are none"),
    "accuracies of too few": (progress(selected=SELECTED, selected_clients="AAAAAAAAAAA="), "accuracies in manifest.json are none"),
    "a score that is none": (progress(selected=SELECTED | {"score": "luck"}), "score must be one of hm, local"),
    "a class that is no name": (progress(classes=PROGRESS["classes"] | {"novel": [1]}), "a class in it is no name"),
    "classes held by too many": (progress(classes=PROGRESS["classes"] | {"held": "4AAA"}), "of another number of clients"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content, says = MANIFESTS[case]
    message = refusal("manifest", tmp_path, content)
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(message + capsys.readouterr().err)


SHARDS: dict[str, dict[str, torch.Tensor]] = {
    "another size": {"3.private": torch.zeros(6)},
    "another shape": {"3.private": torch.zeros(5, 1)},
    "whole numbers": {"3.private": torch.zeros(5, dtype=torch.int64)},
    "no client": {"x.pool": torch.zeros(5)},
    "a client in other digits": {"\u0663.pool": torch.zeros(5)},
    "a client below zero": {"-1.pool": torch.zeros(5)},
    "a pool that is none": {"3.pool": torch.zeros(5)},
    "something else": {"3.public": torch.zeros(5)},
    "the server's": {"shared": torch.zeros(5)},
    "the server's, by its name today": {"server.shared": torch.zeros(5)},
}
SERVER: dict[str, torch.Tensor] = {"initial": torch.zeros(19), "server.shared": torch.zeros(14)}
SERVERS: dict[str, dict[str, torch.Tensor]] = {
    "no start": {"server.shared": torch.zeros(14), "server.pool.1": torch.zeros(99)},
    "nothing shared": {"initial": torch.zeros(19)},
    "another size": SERVER | {"server.shared": torch.zeros(15)},
    "another shape": SERVER | {"initial": torch.zeros(19, 1)},
    "whole numbers": SERVER | {"initial": torch.zeros(19, dtype=torch.int64)},
    "text features of two axes": SERVER | {"text.base": torch.zeros(2, 2)},
    "what no client had sent before": SERVER | {"server.before.x": torch.zeros(2)},
    "what a client received of another size": SERVER | {"server.received.1": torch.zeros(3)},
    "no client's prompt": SERVER | {"server.pool.x": torch.zeros(2)},
    "a client in other digits": SERVER | {"server.pool.\u0663": torch.zeros(2)},
    "a client below zero": SERVER | {"server.pool.-1": torch.zeros(2)},
    "a client of many digits": SERVER | {f"server.pool.{'9' * 5000}": torch.zeros(2)},
    "a client of two numbers": SERVER | {"server.pool.1.2": torch.zeros(2)},
    "a prompt of another size": SERVER | {"server.pool.1": torch.zeros(3)},
    "no prompt": SERVER | {"server.pool.1": torch.zeros(0)},
    "a state that this server does not keep": SERVER | {"server.momentum": torch.zeros(14)},
}


@pytest.mark.parametrize("case", SHARDS)
def test_shards(case: str, tmp_path: Path):
    message = refusal("shard", tmp_path, save(SHARDS[case]))
    assert "the checkpoint" in message


@pytest.mark.parametrize("case", SERVERS)
def test_the_server(case: str, tmp_path: Path):
    assert "the checkpoint" in refusal("server", tmp_path, save(SERVERS[case]))


def test_a_whole_server(tmp_path: Path):
    """Or the cases above would show nothing."""
    assert SPECIMENS["server"].outcome(tmp_path, save(SERVER | {"server.pool.1": torch.zeros(2)})) == "read"


def test_a_server_without_its_state(tmp_path: Path):
    folder = write_checkpoint(tmp_path)
    content = save({"initial": torch.zeros(19)})
    (folder / "server.safetensors").write_bytes(content)
    found = checkpoint_manifest.read_manifest(folder)
    with pytest.raises(UserError, match="lacks a part of the state of the server"):
        read.client_answer(tmp_path, found, 3)


def test_folders_that_are_no_rounds(tmp_path: Path):
    for name in ("round-٠٠٠٠٠٣", "round-" + "9" * 100, "round-1", "round-000002"):
        (tmp_path / name).mkdir()
    (tmp_path / "round-000007").touch()
    assert checkpoint_manifest.rounds(tmp_path) == [7, 2]
    assert read.newest_good(tmp_path) is None


# Data.


@pytest.mark.parametrize("found", [True, 0.0, "0", [[]] * 1000])
def test_a_client_whose_number_is_none(found: object, tmp_path: Path):
    tree = json.loads(SPECIMENS["partition"].good())
    tree["clients"][0]["id"] = found
    assert "clients must be numbered" in refusal("partition", tmp_path, json.dumps(tree).encode())


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("clients", [10**6, 10**18])
def test_more_clients_than_images(protocol: str, clients: int):
    with pytest.raises(UserError, match=r"^data\.(clients|protocol)"):
        divide(source(), DataConfig(protocol=protocol, clients=clients, shots=0), 0, "test")


@pytest.mark.parametrize("name", ["x" * (LONGEST_NAME + 1), "a\nb", "a\0b", "\x1b[31m"])
def test_class_names_that_are_none(name: str, tmp_path: Path):
    tree = {part: [["cat/train.jpg", 0, name]] for part in ("train", "val", "test")}
    assert "must hold a list of [path, label, class name]" in refusal("split", tmp_path, json.dumps(tree).encode())


@pytest.mark.parametrize("file", ["a\0b.jpg", "x" * 5000 + ".jpg", "cat/" + "y" * 300])
def test_files_that_cannot_be(file: str, tmp_path: Path):
    tree = {part: [[file, 0, "cat"]] for part in ("train", "val", "test")}
    outcome = SPECIMENS["split"].outcome(tmp_path, json.dumps(tree).encode())
    assert "images that split_zhou_Caltech101.json under 'train' lists are missing" in outcome


def test_as_many_classes_as_images(tmp_path: Path):
    tree = {part: [["cat/train.jpg", n, f"c{n}"] for n in range(20_000)] for part in ("train", "val", "test")}
    tree["train"].append(["cat/train.jpg", 5, "other"])
    assert "gives label 5 two class names" in refusal("split", tmp_path, json.dumps(tree).encode())
    tree["train"][-1] = ["cat/train.jpg", 20_000, "c0"]
    assert "give the class name 'c0' to two classes" in refusal("split", tmp_path, json.dumps(tree).encode())


@pytest.mark.parametrize("line", ["../../secret 707-320", "/etc/passwd 707-320", "sub/1 707-320"])
def test_aircraft_outside_the_image_folder(line: str, tmp_path: Path):
    (tmp_path / "variants.txt").write_text("707-320\n")
    for part in ("train", "val", "test"):
        (tmp_path / f"images_variant_{part}.txt").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"images_variant_train\.txt must name files in images/, not '"):
        lists.aircraft(str(tmp_path))


@pytest.mark.parametrize("wnid", ["..", "../../secret", "/etc", "n01/n02"])
def test_imagenet_outside_the_image_folder(wnid: str, tmp_path: Path):
    (tmp_path / "classnames.txt").write_text(f"{wnid} tench\n")
    with pytest.raises(UserError, match=r"classnames\.txt must name folders in images/train/, not '"):
        lists.imagenet(str(tmp_path))


def test_a_list_in_another_encoding(tmp_path: Path):
    (tmp_path / "variants.txt").write_bytes("Bücker".encode("latin-1"))
    with pytest.raises(UserError, match=r"variants\.txt, which is no text in UTF-8"):
        lists.aircraft(str(tmp_path))


# Settings.

RANGES = [
    *("seed=1" + "0" * 30, "data.clients=-1", "data.clients=1e3", "data.template={} {x}", "data.template={:>9999}{}", "data.template={}{"),
    *("method.dim=0", "method.dim=1000000000", "method.fedlora.rank=1000000000", "method.fedpgp.rank=1000000000"),
    *("method.fedotp.iterations=1000000000", "optimizer.momentum=1", "optimizer.beta1=1", "optimizer.beta2=1.5", "optimizer.beta2=-0.1"),
]
FLOATS = [name for name, value in options.flatten(configuration.Config()).items() if isinstance(value, float)]
COUNTS = [name for name, value in options.flatten(configuration.Config()).items() if type(value) is int and name != "seed"]


@pytest.mark.parametrize("setting", RANGES)
def test_settings_out_of_range(setting: str, tmp_path: Path):
    assert refusal("setting", tmp_path, setting.encode()).startswith(f"refused: {setting.partition('=')[0]}: ")


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e400", "-1e400", "nan", "-2", "1e39"])
@pytest.mark.parametrize("name", FLOATS)
def test_no_number_setting_is_less_than_nothing_or_without_end(name: str, value: str, tmp_path: Path):
    refusal("setting", tmp_path, f"{name}={value}".encode())


@pytest.mark.parametrize("value", ["-1", "1e400", ".inf", "9223372036854775808", "0x" + "f" * 100, "1_0.5"])
@pytest.mark.parametrize("name", COUNTS)
def test_no_count_is_less_than_nothing_or_without_end(name: str, value: str, tmp_path: Path):
    refusal("setting", tmp_path, f"{name}={value}".encode())


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (f"data.root={'x' * 300}", "data.root: there is no folder"),
        ("data.root=~nobody-of-this-name/x", "data.root: there is no folder"),
        (f"data.partition_file={'x' * 300}", "data.partition_file: cannot read"),
        (f"backbone.pretrained={'x' * 300}", "backbone.pretrained: there is no file"),
        (f"resume={'x' * 300}", "holds no run"),
        ("resume=~nobody-of-this-name/x", "holds no run"),
        (f"seed.{'a.' * 20_000}b=1", "seed: a whole number is expected"),
        (f"{'a.' * 20_000}b=1", "unknown setting"),
    ],
)
def test_names_that_cannot_be(setting: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        train.main([setting, *(["data.name=dtd"] if "data.root" in setting else [])])


def test_a_comparison_of_more_runs_than_anyone_does(tmp_path: Path):
    text = f"methods: [local]\nseeds: {list(range(200))}\nshots: {list(range(200))}\n"
    assert "asks for more than 2000 runs" in refusal("comparison", tmp_path, text.encode())


def test_a_run_folder_whose_name_cannot_be():
    folder = RunFolder("x" * 300)
    folder.refuse_overwriting()
    with pytest.raises(UserError, match=r"run_dir: cannot create x{300}: File name too long"):
        folder.create("seed: 0")
    assert RunFolder("~nobody-of-this-name/x").path == Path("~nobody-of-this-name/x")


@pytest.mark.parametrize("line", ["[]", "7", "{}", '{"round": "1"}', '{"round": true}', '{"round": 1.5}'])
def test_lines_of_metrics_that_are_of_no_round(line: str, tmp_path: Path):
    assert "line 2 is not of a round" in refusal("metrics", tmp_path, b'{"round": 1}\n' + line.encode() + b"\n")


def test_a_torn_line_is_left_out_whatever_its_bytes(tmp_path: Path):
    run = RunFolder(tmp_path)
    first, third = (json.dumps(round_(number, 2, None)).encode() for number in (1, 3))
    run.metrics.write_bytes(first + b'\n{"round": 2, "a": "\xff\n' + b"[" * 5000 + b"\n" + third + b'\n{"rou')
    assert [row.round for row in run.read_metrics()] == [1, 3]


@pytest.mark.parametrize("text", ["[]", "7", "", "{", "[" * 5000])
def test_summaries_that_are_none(text: str, tmp_path: Path):
    refusal("summary", tmp_path, text.encode())


def test_a_summary_that_is_a_folder(tmp_path: Path):
    (tmp_path / "config.yaml").touch()
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(UserError, match=r"summary\.json"):
        RunFolder(tmp_path).read_summary()
