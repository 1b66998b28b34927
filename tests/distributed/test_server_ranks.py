"""Runs with another server than FedAvg's: 1 = 2 ranks, and what a resumed run needs of it is there."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from pfedmma.server import accountant
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import small
from tests.support.ranks import run_ranks, train, values_of

PRIVATE = ["privacy.clip=0.5", "privacy.noise_multiplier=0.3"]
SERVERS = {
    "median": ["server.robust=median", "server.rule=adam"],
    "noise": PRIVATE,
    "noise of clients": [*PRIVATE, "privacy.noise=clients", "server.rule=yogi"],
    "secure": [*PRIVATE, "privacy.secure_sum=true"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Each on 1 and on 2 ranks, and from 1 rank to 2 after round 2."""
    folder = tmp_path_factory.mktemp("servers")
    for server, more in SERVERS.items():
        for name, parts in {"1": [(1, 4)], "1-then-2": [(1, 2), (2, 4)]}.items():
            for size, rounds in parts:
                run = [*more, "checkpoint.every=2", "resume=auto", f"federation.rounds={rounds}"]
                meet = folder / f"meet-{server}-{name}-{rounds}"
                values_of(run_ranks(meet, size, train, small.settings(folder / server / name, *run)))
    return {(server, name): folder / server / name for server in SERVERS for name in ("1", "1-then-2")}


@pytest.mark.parametrize("server", SERVERS)
def test_the_same_run(runs: dict[tuple[str, str], Path], server: str) -> None:
    alone, together = small.metrics(runs[server, "1"]), small.metrics(runs[server, "1-then-2"])
    assert [row["clients"] for row in together] == [row["clients"] for row in alone]
    assert [row["loss"] for row in together] == pytest.approx([row["loss"] for row in alone], rel=1e-5)
    assert [row["shared_norm"] for row in together] == pytest.approx([row["shared_norm"] for row in alone], rel=1e-6)
    assert [row.get("privacy") for row in together] == [row.get("privacy") for row in alone]
    small.assert_same_tensors(runs[server, "1-then-2"], runs[server, "1"])


def test_each_server_makes_another_run(runs: dict[tuple[str, str], Path]) -> None:
    ends = [small.final_tensors(runs[server, "1"])["server.shared"] for server in SERVERS if server != "secure"]
    assert not any(torch.allclose(one, other, atol=1e-6) for i, one in enumerate(ends) for other in ends[:i])


def test_masks_change_nothing(runs: dict[tuple[str, str], Path]) -> None:
    """Up to the grid of whole numbers."""
    masked, plain = (small.final_tensors(runs[server, "1"])["server.shared"] for server in ("secure", "noise"))
    torch.testing.assert_close(masked, plain, rtol=1e-4, atol=1e-5)


def test_rows_say_what_has_been_told(runs: dict[tuple[str, str], Path]) -> None:
    """Three of seven take part in a round, drawn together, so that no chance of being left out is counted."""
    rows = small.metrics(runs["noise", "1"])
    assert [row["privacy"]["epsilon_outsider"] for row in rows] == pytest.approx([accountant.epsilon(0.3, r, 1e-5) for r in (1, 2, 3, 4)])
    taken = [max(sum(client in row["clients"] for row in rows[:r]) for client in range(7)) for r in (1, 2, 3, 4)]
    assert [row["privacy"]["epsilon_known_cohorts"] for row in rows] == pytest.approx([accountant.epsilon(0.3, r, 1e-5) for r in taken])
    assert all(row["privacy"]["epsilon_server"] is None for row in rows)  # it adds the noise itself
    assert small.summary(runs["noise", "1"])["privacy"] == rows[-1]["privacy"]
    clients = small.metrics(runs["noise of clients", "1"])[-1]["privacy"]
    assert clients["epsilon_server"] > clients["epsilon_known_cohorts"]
    assert not any("privacy" in row for row in small.metrics(runs["median", "1"]))


def test_the_norm_of_what_clients_receive_is_in_each_row(runs: dict[tuple[str, str], Path]) -> None:
    shared = small.final_tensors(runs["median", "1"])["server.shared"]
    assert small.metrics(runs["median", "1"])[-1]["shared_norm"] == pytest.approx(float(shared.norm()), rel=1e-6)


def epsilon_run(folder: Path, *more: str) -> None:
    main(small.settings(folder, "privacy.clip=0.5", "privacy.epsilon=50", "checkpoint.every=1", "resume=auto", *more))


def test_noise_is_made_for_so_many_rounds(tmp_path: Path) -> None:
    """After the last of them epsilon is what was asked for, and no round more is made."""
    epsilon_run(tmp_path)
    last = small.metrics(tmp_path)[-1]["privacy"]
    assert last["epsilon_outsider"] == pytest.approx(50.0, rel=1e-6) and math.isfinite(last["noise_multiplier"])
    with pytest.raises(
        UserError, match=r"^federation\.rounds: the noise of .* was made for privacy\.epsilon over another number of rounds"
    ):
        epsilon_run(tmp_path, "federation.rounds=3")
    assert len(small.metrics(tmp_path)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method.name=pfedmoap"], r"^privacy\.clip: this method's server keeps"),
        (["distributed.wire=bf16"], r"^distributed\.wire: rounding to bf16"),
        (["server.robust=norm_clip"], r"^server\.robust: how far one client moves norm_clip"),
        (["federation.first_round=all"], r"^federation\.first_round: epsilon holds for rounds that are sampled alike"),
        (["privacy.key_file=nowhere"], r"^privacy\.key_file: cannot read"),
    ],
)
def test_refused_before_anything_is_written(tmp_path: Path, settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(small.settings(tmp_path / "run", *PRIVATE, *settings))
    assert not (tmp_path / "run").exists()


def test_a_method_that_sends_nothing_tells_nothing(tmp_path: Path) -> None:
    """So that it can stand in a comparison with the same settings."""
    main(small.settings(tmp_path, *PRIVATE, "method.name=local"))
    assert not any("privacy" in row or "shared_norm" in row for row in small.metrics(tmp_path))


def test_bytes_for_keys_are_a_model_of_their_own(runs: dict[tuple[str, str], Path]) -> None:
    """Three participants: 3 x (2 x 3 x 32 + (5 x 3 - 4) x 32) bytes a round, in no other number."""
    rows, each = small.metrics(runs["secure", "1"]), 3 * (6 + 11) * 32
    assert [row["comm"]["key_exchange_bytes_modelled"] for row in rows] == [each] * 4
    assert small.summary(runs["secure", "1"])["comm"]["key_exchange_bytes_modelled"] == 4 * each
    plain = small.metrics(runs["noise", "1"])
    assert [row["comm"]["uplink_bytes"] for row in rows] == [row["comm"]["uplink_bytes"] for row in plain]
    assert not any("key_exchange_bytes_modelled" in row["comm"] for row in plain)


POISSON = [*PRIVATE, "federation.sampling=poisson", "federation.participation=0.2", "federation.rounds=4"]


@pytest.fixture(scope="module")
def poisson(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on one rank in which each client is drawn apart; of the second, a third of the uploads is lost."""
    folder = tmp_path_factory.mktemp("poisson")
    for name, more in {"all": [], "some": ["federation.dropout=0.4", "privacy.secure_sum=true"]}.items():
        main(small.settings(folder / name, *POISSON, *more))
    return {name: folder / name for name in ("all", "some")}


def test_a_chance_of_being_left_out_counts(poisson: dict[str, Path]) -> None:
    """To an outsider, not to who knows the cohorts; what drops out is divided by as many as were expected, 1.4."""
    pytest.importorskip("dp_accounting")
    for folder in poisson.values():
        rows = small.metrics(folder)
        told = [row["privacy"]["epsilon_outsider"] for row in rows]
        assert told == pytest.approx([accountant.epsilon(0.3, r, 1e-5, 0.2) for r in (1, 2, 3, 4)])
        assert told[-1] < accountant.epsilon(0.3, 4, 1e-5)
        most = max(sum(client in row["clients"] for row in rows) for client in range(7))
        assert rows[-1]["privacy"]["epsilon_known_cohorts"] == pytest.approx(accountant.epsilon(0.3, most, 1e-5))


def test_noise_of_clients_that_may_be_lost_is_refused(tmp_path: Path) -> None:
    for lost in ("federation.dropout=0.5", "federation.deadline=3", "federation.over_selection=1.5"):
        with pytest.raises(UserError, match=r"^privacy\.noise: the noise of clients whose upload is lost would be missing"):
            main(small.settings(tmp_path / "run", *PRIVATE, "privacy.noise=clients", lost))
    assert not (tmp_path / "run").exists()
