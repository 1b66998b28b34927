"""Partition files: what is written is read back, and nothing else is."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfedmma.data.loading import DataConfig, divide
from pfedmma.data.partition import partition_file
from pfedmma.data.partition.federated import EvaluationSet, FederatedData
from pfedmma.data.sources.base import Source, Split
from pfedmma.system.errors import UserError

CLASSES = tuple(f"c{i}" for i in range(6))
DOMAINS = ("photo", "sketch", "paint")
CONFIGS = {
    "base_to_novel": DataConfig(clients=3, shots=2),
    "base_to_novel_dirichlet": DataConfig(protocol="base_to_novel_dirichlet", clients=3, shots=0),
    "iid": DataConfig(protocol="iid", clients=4, shots=0),
    "dirichlet": DataConfig(protocol="dirichlet", clients=4, shots=3, held_out_domain="photo"),
    "domains": DataConfig(protocol="domains", clients=4, shots=0, held_out_domain="sketch"),
    "all domains": DataConfig(protocol="domains", clients=3, shots=2),
}


def no_pixels(index: int) -> torch.Tensor:
    raise AssertionError("a partition looks at labels, never at pixels")


def source(**changes: Any) -> Source:
    splits = {
        name: Split(torch.arange(6).repeat(3 * n), no_pixels, torch.arange(3).repeat_interleave(6).repeat(n))
        for name, n in (("train", 4), ("val", 1), ("test", 2))
    }
    return dataclasses.replace(Source("toy", CLASSES, splits, domains=DOMAINS), **changes)


def written(folder: Path, protocol: str = "domains", of: Source | None = None) -> Path:
    toy = of or source()
    partition_file.write(folder / "partition.json", divide(toy, CONFIGS[protocol], seed=0, test_split="test"), toy)
    return folder / "partition.json"


def content(protocol: str) -> dict[str, Any]:
    """What is written for a protocol, as JSON gives it back."""
    toy = source()
    kept: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partition_file, "write_atomically", lambda path, text: kept.append(text))
        partition_file.write(Path("unused"), divide(toy, CONFIGS[protocol], seed=0, test_split="test"), toy)
    return json.loads(kept[0])


def refusal(path: Path, of: Source | None = None) -> str:
    """What the user is told; one line that begins with the setting and names the file."""
    with pytest.raises(UserError) as error:
        partition_file.read(path, of or source())
    message = str(error.value)
    assert "\n" not in message and message.startswith("data.partition_file: ") and str(path) in message
    return message


def refusal_of(folder: Path, tree: Any) -> str:
    (folder / "edited.json").write_text(json.dumps(tree))
    return refusal(folder / "edited.json")


def assert_same_set(one: EvaluationSet | None, other: EvaluationSet | None) -> None:
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert (one.split, one.classes) == (other.split, other.classes)
        assert torch.equal(one.indices, other.indices) and torch.equal(one.labels, other.labels)


def assert_same(one: FederatedData, other: FederatedData) -> None:
    assert one.template == other.template and len(one.clients) == len(other.clients)
    for mine, theirs in zip(one.clients, other.clients, strict=True):
        assert (mine.id, mine.classes, mine.domain) == (theirs.id, theirs.classes, theirs.domain)
        for name in ("train", "labels", "test"):
            ours, others = getattr(mine, name), getattr(theirs, name)
            assert ours.dtype == others.dtype and torch.equal(ours, others)
    for name in ("base", "novel", "unseen"):
        assert_same_set(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("test_split", ["test", "val"])
@pytest.mark.parametrize("protocol", CONFIGS)
def test_what_is_written_is_read_back(tmp_path: Path, protocol: str, test_split: str):
    toy = source()
    federation = divide(toy, CONFIGS[protocol], seed=0, test_split=test_split)
    partition_file.write(tmp_path / "p.json", federation, toy)
    assert_same(federation, partition_file.read(tmp_path / "p.json", toy))


def test_a_client_without_test_images_is_read_back(tmp_path: Path):
    toy = source()
    federation = divide(toy, CONFIGS["iid"], seed=0, test_split="test")
    first = dataclasses.replace(federation.clients[0], test=torch.empty(0, dtype=torch.long))
    federation = dataclasses.replace(federation, clients=(first, *federation.clients[1:]))
    partition_file.write(tmp_path / "p.json", federation, toy)
    assert_same(federation, partition_file.read(tmp_path / "p.json", toy))


@pytest.mark.parametrize("protocol", ["iid", "base_to_novel"])
def test_two_labels_of_one_name_stay_two_classes(tmp_path: Path, protocol: str):
    # ImageNet's usual names call two labels "missile" and two "sunglasses".
    toy = source(class_names=("c0", "c1", "c0", "c3", "c4", "c4"))
    federation = divide(toy, CONFIGS[protocol], seed=0, test_split="test")
    partition_file.write(tmp_path / "p.json", federation, toy)
    assert_same(federation, partition_file.read(tmp_path / "p.json", toy))


def test_the_template_is_that_of_the_run(tmp_path: Path):
    # A partition says who holds what; prompts are the run's own choice.
    path = written(tmp_path)
    assert partition_file.read(path, source(template="a {} on a table.")).template == "a {} on a table."


def test_a_run_takes_it_in_place_of_a_protocol(tmp_path: Path):
    config = DataConfig(clients=4, partition_file=str(written(tmp_path)))
    assert_same(divide(source(), config, seed=5, test_split="test"), divide(source(), CONFIGS["domains"], seed=0, test_split="test"))


def test_another_number_of_clients_says_which_to_set(tmp_path: Path):
    path = written(tmp_path)
    with pytest.raises(UserError) as error:
        divide(source(), DataConfig(clients=10, partition_file=str(path)), seed=0, test_split="test")
    assert str(error.value) == f"data.clients: {path} has 4 clients, not 10; set data.clients=4"


def test_partitions_of_other_data_are_refused(tmp_path: Path):
    path = written(tmp_path)
    toy = source()
    more = toy.splits | {"test": Split(torch.arange(6).repeat(7), no_pixels, torch.zeros(42, dtype=torch.long))}
    for changes, what in (
        ({"name": "other"}, "data"),
        ({"class_names": CLASSES[::-1]}, "classes"),
        ({"class_names": (*CLASSES[:5], "c9")}, "classes"),
        ({"splits": more}, "images"),
        ({"splits": {name: split for name, split in toy.splits.items() if name != "val"}}, "images"),
    ):
        assert f"is of other data: its '{what}' are not those of" in refusal(path, source(**changes))


def test_files_that_cannot_be_read(tmp_path: Path):
    assert "cannot read" in refusal(tmp_path / "absent.json")
    assert "cannot read" in refusal(tmp_path)  # a folder
    for number, raw in enumerate((b"", b"{", b"\xff\xfe\x00", b"[" * 100_000)):
        path = tmp_path / f"{number}.json"
        path.write_bytes(raw)
        assert "cannot read" in refusal(path)


@pytest.mark.parametrize("tree", [[], 3, None, "partition", {}, {"format": "pfedmma-partition/0"}, {"format": ["pfedmma-partition/1"]}])
def test_json_that_is_no_partition(tmp_path: Path, tree: Any):
    assert refusal_of(tmp_path, tree).endswith("is no partition file (pfedmma-partition/1); python -m pfedmma.describe writes one")


def test_an_image_given_twice(tmp_path: Path):
    tree = content("domains")
    tree["clients"][1]["train"].append(tree["clients"][0]["train"][0])
    assert refusal_of(tmp_path, tree).endswith("a training image is given to two clients")
    for key in ("train", "test"):
        tree = content("domains")
        tree["clients"][1][key].append(tree["clients"][1][key][0])
        assert refusal_of(tmp_path, tree).endswith("a list gives a position twice")


@pytest.mark.parametrize("value", [-1, 72, 2**62, 1.0, True, "1", None, [0]])
def test_positions_that_are_none(tmp_path: Path, value: Any):
    tree = content("iid")
    tree["clients"][2]["train"][0] = value
    assert refusal_of(tmp_path, tree).endswith("positions must be a list of whole numbers from 0 to 71")
    tree = content("iid")
    tree["clients"][2]["test"][0] = 36 if value == 72 else value  # within the 36 images of the base set
    assert refusal_of(tmp_path, tree).endswith("positions must be a list of whole numbers from 0 to 35")


def test_clients_that_are_none(tmp_path: Path):
    tree = content("iid")
    tree["clients"][3]["train"] = []
    assert "client 3 has no training image" in refusal_of(tmp_path, tree)
    tree = content("iid")
    tree["clients"][0]["id"] = 4
    assert "clients must be numbered 0 .. 3 in order, found id 4 at position 0" in refusal_of(tmp_path, tree)
    tree = content("iid")
    tree["clients"] = []
    assert "there is no client" in refusal_of(tmp_path, tree)
    tree = content("domains")
    tree["clients"][1]["domain"] = "photos"
    assert "client 1 is of domain 'photos', which toy has not" in refusal_of(tmp_path, tree)


def test_an_image_of_a_novel_class_at_a_client(tmp_path: Path):
    tree = content("base_to_novel")
    tree["clients"][0]["train"].append(5)  # position 5 is of class c5
    assert "client 0 has no training image, or one that is of no base class" in refusal_of(tmp_path, tree)


def test_sets_that_are_none(tmp_path: Path):
    for edit, told in (
        ({"labels": [0, 1, 2]}, "the set 'base' is empty, or holds an image of none of its classes"),
        ({"labels": [0, 1, 2, 3, 4, 4]}, "a list gives a position twice"),
        ({"labels": [0, 1, 2, 3, 4, 6]}, "positions must be a list of whole numbers from 0 to 5"),
        ({"indices": []}, "the set 'base' is empty"),
        ({"split": "train"}, "the set 'base' is of training images"),
        ({"split": "dev"}, "toy has no 'dev' split; it has train, val, test"),
    ):
        tree = content("iid")
        tree["sets"]["base"] |= edit
        assert told in refusal_of(tmp_path, tree)


@pytest.mark.parametrize("key", ["sets", "clients"])
def test_a_part_that_is_missing_is_named(tmp_path: Path, key: str):
    tree = content("iid")
    del tree[key]
    assert refusal_of(tmp_path, tree).endswith(f"lacks '{key}'")
    tree = content("iid")
    del tree["sets"]["base"]
    assert refusal_of(tmp_path, tree).endswith("lacks 'base'")


@pytest.mark.parametrize("key", ["sets", "clients"])
@pytest.mark.parametrize("value", [None, 3, "text", [1], ["text"], [None], [[]], {"base": 3}, {"base": None}, {"base": []}])
def test_parts_of_another_type(tmp_path: Path, key: str, value: Any):
    refusal_of(tmp_path, content("iid") | {key: value})


TREES = {name: content(name) for name in ("base_to_novel", "domains")}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 100) | st.floats() | st.text(max_size=4) | st.sampled_from([*CLASSES, *DOMAINS, "test"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "split", "base", "train"]), inner, max_size=3),
    max_leaves=5,
)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in the tree but the outermost value; of long lists the first few."""
    pairs = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree[:6])) if isinstance(tree, list) else []
    return [(tree, key) for key, _ in pairs] + [place for _, value in pairs for place in places(value)]


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(TREES)), st.data())
def test_a_changed_file_is_a_federation_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, protocol: str, data: st.DataObject):
    toy = source()
    tree = copy.deepcopy(TREES[protocol])
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        where = places(tree)
        if not where:
            break
        container, key = data.draw(st.sampled_from(range(len(where))).map(where.__getitem__), "place")
        action = data.draw(st.sampled_from(["replace", "remove", "double"]), "action")
        if action == "replace":
            container[key] = data.draw(ANYTHING, "value")
        elif action == "remove":
            del container[key]
        elif isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_text(json.dumps(tree))
    try:
        federation = partition_file.read(path, toy)
    except UserError as error:
        assert str(error).startswith("data.partition_file: ")
        return
    # Whatever is accepted can be run: labels are right, positions lie within their sets, nothing is held twice.
    train = toy.splits["train"].labels
    for client in federation.clients:
        assert [federation.base.classes[label] for label in client.labels.tolist()] == [CLASSES[label] for label in train[client.train]]
        assert client.domain in (None, *DOMAINS) and len(client.train) > 0
        assert (client.test < len(federation.base.indices)).all()
    held = torch.cat([client.train for client in federation.clients])
    assert len(held) == len(held.unique())
    for images in federation.sets().values():
        labels = toy.splits[images.split].labels[images.indices]
        assert [images.classes[label] for label in images.labels.tolist()] == [CLASSES[label] for label in labels.tolist()]


def test_novel_classes_that_are_base_classes_are_refused(tmp_path: Path):
    tree = content("base_to_novel")
    tree["sets"]["novel"] = tree["sets"]["base"]
    assert refusal_of(tmp_path, tree).endswith("the class 'c0' is in the set 'novel' and in 'base'; clients train on it")
    tree = content("base_to_novel")
    base, novel = tree["sets"]["base"], tree["sets"]["novel"]
    novel["labels"].append(base["labels"][0])
    novel["indices"].append(base["indices"][0])
    assert "is in the set 'novel' and in 'base'" in refusal_of(tmp_path, tree)


def test_unseen_images_that_are_in_the_base_set_are_refused(tmp_path: Path):
    tree = content("domains")
    tree["sets"]["unseen"]["indices"][0] = tree["sets"]["base"]["indices"][0]
    assert refusal_of(tmp_path, tree).endswith("an image is in the set 'unseen' and in 'base'")


def test_a_partition_with_a_byte_order_mark(tmp_path: Path):
    path = written(tmp_path)
    plain = partition_file.read(path, source())
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert_same(partition_file.read(path, source()), plain)


def test_the_path_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HERE", str(tmp_path))
    toy = source()
    plain = partition_file.read(written(tmp_path), toy)
    for name in ("~/partition.json", "$HERE/partition.json", "${HERE}/partition.json"):
        assert_same(divide(toy, dataclasses.replace(CONFIGS["domains"], partition_file=name), seed=0, test_split="test"), plain)
