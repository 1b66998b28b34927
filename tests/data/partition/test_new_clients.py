"""Which clients are new: a share drawn by the seed, under every protocol; and what they hold is what they would hold anyway."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pfedmma import describe
from pfedmma.config import schema as configuration
from pfedmma.data.loading import divide, open_source
from pfedmma.data.partition.federated import FederatedData
from pfedmma.data.partition.protocols import PROTOCOLS
from pfedmma.data.sources.base import Source, Split
from pfedmma.engine import participation
from pfedmma.engine.federation import FederationConfig
from pfedmma.system.errors import UserError

BASE = ["data.clients=10", "data.shots=4"]


def imitation() -> Source:
    """24 classes in 6 superclasses and 3 domains, 8 images of a class and domain in each split, which nobody looks at."""

    def no_pixels(index: int) -> torch.Tensor:
        raise AssertionError("a partition looks at labels, never at pixels")

    labels, domains = torch.arange(24).repeat(8 * 3), torch.arange(3).repeat_interleave(24 * 8)
    splits = {name: Split(labels, no_pixels, domains) for name in ("train", "test")}
    return Source("imitation", tuple(f"c{i}" for i in range(24)), splits, domains=("a", "b", "c"), coarse=tuple(i // 4 for i in range(24)))


def divided(*settings: str, source: Source | None = None) -> FederatedData:
    config = configuration.load(None, [*BASE, *settings])
    return divide(source or open_source(config.data, config.seed, 32), config.data, config.seed, "test")


def new(federated: FederatedData) -> list[int]:
    return [client.id for client in federated.clients if client.new]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_share_is_new_and_nothing_else_differs(protocol: str) -> None:
    more = [f"data.protocol={protocol}", "data.clients=12"]
    plain, some = divided(*more, source=imitation()), divided(*more, "data.new_clients=0.25", source=imitation())
    assert new(plain) == [] and len(new(some)) == 3
    for one, other in zip(plain.clients, some.clients, strict=True):
        assert torch.equal(one.train, other.train) and torch.equal(one.test, other.test) and one.classes == other.classes


def test_the_seed_draws_them() -> None:
    first = new(divided("data.new_clients=0.3"))
    assert first == new(divided("data.new_clients=0.3", "data.shots=2"))
    assert any(new(divided("data.new_clients=0.3", f"seed={seed}")) != first for seed in (1, 2, 3))
    assert set(first) < set(new(divided("data.new_clients=0.5")))


def test_with_a_partition_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "partition.json"
    describe.main([*BASE, "data.new_clients=0.2", "--out", str(file)])
    shown = capsys.readouterr().out
    for share, count in (("0.2", 2), ("0.4", 4)):
        found = new(divided(f"data.partition_file={file}", f"data.new_clients={share}"))
        assert found == new(divided(f"data.new_clients={share}")) and len(found) == count
    assert all((f" {i} (new) " in shown) == (i in new(divided("data.new_clients=0.2"))) for i in range(10))


@pytest.mark.parametrize(
    ("share", "clients", "says"),
    [
        ("1", "10", r"data\.new_clients: must be at least 0 and less than 1, not 1"),
        ("-0.1", "10", r"data\.new_clients: must be at least 0 and less than 1, not -0\.1"),
        ("0.04", "10", r"data\.new_clients: 0\.04 of 10 clients leaves no new client; at least one of either kind is needed"),
        ("0.96", "10", r"data\.new_clients: 0\.96 of 10 clients leaves no client to train; at least one of either kind is needed"),
        ("0.2", "1", r"data\.new_clients: 0\.2 of 1 clients leaves no new client"),
    ],
)
def test_both_kinds_are_needed(share: str, clients: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        configuration.load(None, [f"data.new_clients={share}", f"data.clients={clients}"])


def test_participation_is_of_the_others() -> None:
    others = [0, 2, 3, 5, 6, 8, 9]
    cohorts = [participation.sample(others, FederationConfig(participation=0.4), seed=0, round_=round_) for round_ in range(1, 30)]
    assert all(len(cohort) == 3 and cohort == sorted(cohort) and set(cohort) <= set(others) for cohort in cohorts)
    assert {i for cohort in cohorts for i in cohort} == set(others)
    few = [participation.sample(others, FederationConfig(participation=share), seed=0, round_=1) for share in (0.01, 1 / 7)]
    assert few[0] == few[1]
    assert [others[i] for i in participation.sample(range(7), FederationConfig(participation=0.4), seed=0, round_=5)] == cohorts[4]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("epochs=[]", r"evaluation\.new_clients_epochs: must be a list of one value or more, each of them once, not \[\]"),
        ("epochs=[1, 5, 1]", r"each of them once, not \[1, 5, 1\]"),
        ("epochs=[-1]", r"evaluation\.new_clients_epochs: must be at least 0, not -1"),
        ("epochs=some", r"evaluation\.new_clients_epochs: a whole number is expected, not 'some'"),
        ("shared=[]", r"evaluation\.new_clients_shared: must be a list of one value or more"),
        ("shared=melted", r"evaluation\.new_clients_shared: 'melted' is not known; choose one of frozen, free"),
        ("start=warm", r"evaluation\.new_clients_start: 'warm' is not known; choose one of seed, mean"),
    ],
)
def test_what_they_are_tested_after_is_checked(setting: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        configuration.load(None, [f"evaluation.new_clients_{setting}"])


@pytest.mark.parametrize(("written", "read"), [("[0, 2, 7]", (0, 2, 7)), ("0,2,7", (0, 2, 7)), ("3", (3,)), ("[20, 1]", (20, 1))])
def test_a_list_of_whole_numbers(written: str, read: tuple[int, ...]) -> None:
    assert configuration.load(None, [f"evaluation.new_clients_epochs={written}"]).evaluation.new_clients_epochs == read
