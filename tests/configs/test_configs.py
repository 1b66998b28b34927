"""The files in ``configs/``: each can start once ``data.root`` is set, and says only what differs from the defaults."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pfedmma.clip.backbone import Backbone
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.compare import grid, published
from pfedmma.compare.grid import Plan
from pfedmma.config import schema as configuration
from pfedmma.data.loading import NAMES, divide
from pfedmma.data.partition.base_to_novel import split_classes
from pfedmma.data.sources import lists
from pfedmma.data.sources.base import Source, Split
from pfedmma.data.sources.cifar import SUPERCLASSES, superclasses
from pfedmma.engine import participation
from pfedmma.methods import registry
from pfedmma.run.local import refuse_local
from pfedmma.system import options

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
PAPER = CONFIGS / "paper.yaml"
# The data sets with a file for the paper's setting, and what but their name differs from `PAPER`. EuroSAT has five base classes.
OF_THE_PAPER: dict[str, dict[str, Any]] = {
    "caltech101": {}, "oxford_pets": {}, "oxford_flowers": {}, "food101": {}, "dtd": {}, "sun397": {}, "ucf101": {}, "stanford_cars": {},
    "fgvc_aircraft": {}, "imagenet": {}, "eurosat": {"clients": 5},
}  # fmt: skip
CLASSES = {
    "caltech101": 100, "oxford_pets": 37, "oxford_flowers": 102, "food101": 101, "dtd": 47, "sun397": 397, "ucf101": 101, "eurosat": 10,
    "fgvc_aircraft": 100, "stanford_cars": 196, "imagenet": 1000, "cifar10": 10, "cifar100": 100, "domainnet": 10, "office_caltech10": 10,
    "shapes": 120, "imagefolder": 5, "domainfolder": 7,
}  # fmt: skip
DOMAINS = {"domainnet": lists.DOMAINNET, "office_caltech10": ("amazon", "caltech", "dslr", "webcam"), "domainfolder": ("a", "c", "p", "s")}


def no_pixels(index: int) -> torch.Tensor:
    raise AssertionError("a partition looks at labels, never at pixels")


def imitation(name: str) -> Source:
    """A source with the classes and domains of the real one, and a few images of each."""
    count, domains = CLASSES[name], DOMAINS.get(name, ())
    groups = max(1, len(domains))
    splits = {}
    for part, each in (("train", 50), ("test", 4)):
        labels = torch.arange(count).repeat(each * groups)
        splits[part] = Split(labels, no_pixels, torch.arange(groups).repeat_interleave(count * each) if domains else None)
    names = tuple(sorted(fine for members in SUPERCLASSES.values() for fine in members.split()))
    coarse = superclasses(names) if name == "cifar100" else None
    return Source(name, tuple(f"c{i}" for i in range(count)), splits, domains=domains, coarse=coarse)


def test_every_data_set_has_a_config():
    assert {configuration.load(file).data.name for file in FILES} == set(NAMES)


def read(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_the_file_of_a_data_set_is_the_papers_setting(name: str):
    own = {"name": name, **OF_THE_PAPER[name]}
    assert read(CONFIGS / f"{name}.yaml") == {"data": own, **read(PAPER)}
    as_settings = [f"data.{key}={value}" for key, value in own.items()]
    assert configuration.load(CONFIGS / f"{name}.yaml") == configuration.load(PAPER, as_settings)


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("data.name", "dtd"), ... of nested values."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def repeated(tree: dict[str, Any], below: configuration.Config) -> list[str]:
    """The settings of ``tree`` that say what ``below`` says already."""
    known = dict(flat(dataclasses.asdict(below)))
    return [name for name, value in flat(tree) if known[name] == value]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_says_only_what_differs_from_the_defaults(file: Path):
    assert repeated(read(file), configuration.Config()) == []


@pytest.mark.parametrize("file", sorted((CONFIGS / "compare").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_compare_file_says_only_what_differs_from_its_config(file: Path):
    tree = read(file)
    start = file.parent / tree["config"] if "config" in tree else None
    assert repeated(tree.get("settings", {}), configuration.load(start)) == []


def test_the_switches_of_the_released_code_one_at_a_time_and_together():
    """The same run but for one switch each; a switch that changed no step, no cohort and no evaluation would say nothing."""
    runs = grid.read(CONFIGS / "compare" / "attribution.yaml")
    assert len(runs) == 7 * 5 and {plan.config.seed for plan in runs} == {0, 1, 2, 3, 4}
    own = {plan.method: comparable_settings(plan) for plan in runs if plan.config.seed == 0}
    plain = own.pop("as it is")
    switches = {
        "text features of the first client": {"evaluation.text_features": "first"},
        "no last batch": {"federation.drop_last": True},
        "all in round 1": {"federation.first_round": "all"},
        "best on validation": {"evaluation.select": "best_val"},
        "best on test": {"evaluation.select": "best_test"},
    }
    together = {name: value for switch in switches.values() for name, value in switch.items()}  # best_test stands last
    assert own == {label: plain | switch for label, switch in (switches | {"all as released": together}).items()}
    start = runs[0].config
    assert start.evaluation.every == 4 and start.federation.participation < 1
    images = start.data.shots * 60 // start.data.clients  # of a client of the drawn world, which has 60 base classes
    assert images > start.federation.batch_size and images % start.federation.batch_size


def comparable_settings(plan: Plan) -> dict[str, Any]:
    return {name: value for name, value in flat(dataclasses.asdict(plan.config)) if name != "run_dir"}


@pytest.mark.parametrize("file", sorted((CONFIGS / "methods").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_file_of_a_method_names_it_and_its_optimizer(file: Path):
    """tests/methods/ compares the optimizer with the built-in one; here, nothing remains of what a file before this one set."""
    tree = read(file)
    assert tree.pop("method") == {"name": file.stem} and tree.keys() <= {"optimizer"}
    if tree:
        assert configuration.load([CONFIGS / "demo.yaml", file]).optimizer == configuration.load(file).optimizer


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_loads_and_says_what_it_is(file: Path):
    loaded = configuration.load(file)
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# ") and max(map(len, text.splitlines())) <= 140
    assert loaded.data.root == loaded.data.partition_file == loaded.resume == ""  # nothing of the machine it was written on
    if loaded.data.name != "shapes":
        assert "data.root" in text and file.stem.startswith(loaded.data.name)
    assert configuration.load(file, ["data.clients=2", "federation.rounds=1"]).data.clients == 2


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_clients_can_be_served(file: Path):
    # EuroSAT has 5 base classes: not every data set goes with every number of clients.
    data = configuration.load(file).data
    federation = divide(imitation(data.name), data, seed=0, test_split="test")
    assert len(federation.clients) == data.clients
    if data.protocol == "domains":
        domains = DOMAINS[data.name]
        assert [client.domain for client in federation.clients] == [name for name in domains for _ in range(data.clients // len(domains))]


def test_the_file_of_dropouts_is_about_what_it_says():
    """Clients of 48 images take 2 x 2 steps, and the deadline is 1.5 times their 4; 7 are drawn for 5."""
    config = configuration.load(CONFIGS / "dropouts.yaml")
    federation = config.federation
    images = config.data.shots * 60 // config.data.clients  # of a client of the drawn world, which has 60 base classes
    steps = federation.local_epochs * -(-images // federation.batch_size)
    assert (images, steps, federation.deadline) == (48, 4, 1.5 * steps)
    drawn = participation.training(config.data.clients, federation), participation.wanted(config.data.clients, federation, 1)
    assert drawn == (7, 5) and federation.loses_uploads and federation.simulates_time


# Clients, beta, participation and local epochs: as in the released scripts, where there is one.
WITH_ALL_IMAGES = {
    "cifar10_dirichlet": (100, 0.5, 0.1, 1),
    "cifar100_dirichlet": (100, 0.5, 0.1, 1),
    "cifar100_pachinko": (100, 0.3, 0.1, 1),
    "domainnet": (30, 0.3, 0.25, 1),
    "office_caltech10": (12, 0.3, 1.0, 1),
}


@pytest.mark.parametrize("name", WITH_ALL_IMAGES)
def test_settings_with_all_images(name: str):
    config = configuration.load(CONFIGS / f"{name}.yaml")
    data, federation = config.data, config.federation
    assert (data.clients, data.beta, federation.participation, federation.local_epochs) == WITH_ALL_IMAGES[name]
    assert (data.shots, federation.rounds) == (0, 50) and data.protocol == (name.partition("_")[2] if "cifar" in name else "domains")


def test_settings_of_the_paper():
    for name, config in {file.stem: configuration.load(file) for file in FILES}.items():
        if config.data.protocol == "base_to_novel" and name not in ("demo", "dropouts"):
            assert (config.data.shots, config.data.clients) == (16, 5 if name == "eurosat" else 10)
            assert (config.federation.rounds, config.federation.local_epochs, config.federation.batch_size) == (50, 2, 32)
            assert (config.method.dim, config.method.scale, config.optimizer.lr) == (32, 0.001, 0.001)


# Compare files of the paper's tables and figures.


@functools.cache
def planned(name: str) -> list[dict[str, Any]]:
    """The settings of each run of a compare file."""
    return [options.flatten(plan.config) for plan in grid.read(CONFIGS / "compare" / f"{name}.yaml", ["data.root=DATA"])]


def varied(name: str, setting: str) -> list[Any]:
    """The values of a setting among the runs of a compare file, in order."""
    return list(dict.fromkeys(values[setting] for values in planned(name)))


@pytest.mark.parametrize(
    ("name", "setting", "values"),
    [
        ("shots", "data.shots", [1, 2, 4, 8, 16]),
        ("vit_b32", "backbone.name", ["ViT-B-32"]),
        ("domains", "data.protocol", ["domains"]),
        ("cifar_beta", "data.beta", [0.1, 0.3, 0.5, 1.0]),
        ("dim", "method.dim", [8, 16, 32, 64, 128]),
        ("scale", "method.scale", [0.0001, 0.001, 0.01, 0.1]),
        ("blocks", "method.blocks", [12, 8, 4, 1]),  # the first adapted one of 12 is 1, 5, 9, 12
        ("clients", "data.clients", [5, 10, 25, 50]),
        ("local_epochs", "federation.local_epochs", [1, 2, 5, 10]),
        ("optimizer", "optimizer.name", ["sgd", "adam"]),
    ],
)
def test_what_a_compare_file_varies(name: str, setting: str, values: list[Any]):
    assert varied(name, setting) == values


def test_their_data_sets_are_the_papers():
    for name in ("paper", "shots", "vit_b32", "exchange", "dim", "scale", "blocks", "local_epochs", "optimizer"):
        assert set(varied(name, "data.name")) == published.DATA_SETS, name


def test_every_number_of_clients_can_be_served():
    for name, clients in itertools.product(varied("clients", "data.name"), varied("clients", "data.clients")):
        assert len(split_classes(-(-CLASSES[name] // 2), clients)) == clients


def test_data_sets_of_a_compare_file_are_those_of_their_own_files():
    for name in ("domainnet", "office_caltech10"):
        (plan, *_) = [p for p in grid.read(CONFIGS / "compare" / "domains.yaml") if (p.dataset, p.method) == (name, "pfedmma")]
        own = configuration.load(CONFIGS / f"{name}.yaml")
        assert (plan.config.data, plan.config.federation, plan.config.backbone) == (own.data, own.federation, own.backbone)


@pytest.mark.parametrize("file", sorted((CONFIGS / "server").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_server_file_goes_after_any_other_and_names_what_it_is(file: Path) -> None:
    """Nothing that it sets is what would be there without it, but published constants that it names for the reader."""
    config = configuration.load([CONFIGS / "paper.yaml", file], ["data.name=dtd"])
    assert (config.server, config.privacy) != (configuration.Config().server, configuration.Config().privacy)
    assert config.method == configuration.load(CONFIGS / "paper.yaml", ["data.name=dtd"]).method
    assert file.stem in (config.server.rule, config.server.robust) or config.privacy.clip


@pytest.mark.parametrize("file", sorted((CONFIGS / "local").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_local_file_goes_after_any_other_and_can_start(file: Path) -> None:
    """It changes how clients train, and nothing that a file before it says."""
    before = configuration.load(CONFIGS / "paper.yaml", ["data.name=dtd"])
    config = configuration.load([CONFIGS / "paper.yaml", file], ["data.name=dtd"])
    assert (config.local, config.method) != (before.local, before.method)
    assert (config.federation, config.data, config.server) == (before.federation, before.data, before.server)
    refuse_local(registry.build(config.method, Backbone.freeze(create_model(BackboneConfig("tiny", "none"), 0), "tiny")), config)


@pytest.mark.parametrize("rule", ["momentum", "adagrad", "adam", "yogi"])
def test_a_server_rules_file_has_its_own_defaults(rule: str) -> None:
    """So that the numbers in it may be read as what the rule does without them."""
    written = configuration.load(CONFIGS / "server" / f"{rule}.yaml").server.optimizer()
    assert written == configuration.load(None, [f"server.rule={rule}"]).server.optimizer()
