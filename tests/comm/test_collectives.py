"""What travels: every collective of a run, byte by byte. Nothing private can reach one."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

import pfedmma
from pfedmma.comm import node, world
from pfedmma.config import schema
from pfedmma.engine.local import LocalTraining
from pfedmma.records.rows import RoundRow
from pfedmma.run.assembly import assemble
from tests.support import small
from tests.support.ranks import run_ranks, train, values_of

# Everything else in torch.distributed that moves data between ranks. dir() finds what later versions add under the known stems.
STEMS = ("all_gather", "all_to_all", "all_reduce_", "barrier", "monitored_barrier", "broadcast", "gather", "reduce", "scatter")
OTHERS = {name for name in dir(dist) if name.startswith(STEMS)}
OTHERS |= {"send", "recv", "isend", "irecv", "batch_isend_irecv", "send_object_list", "recv_object_list"}

# The tiny CLIP carries adapters in 3 blocks; with dim 8 their shared parts are 3 linears of 8 x 8 + 8 numbers, and one client's
# adapters have, for each block, 128 x 8 + 8 and 8 x 128 + 128 (visual), 64 x 8 + 8 and 8 x 64 + 64 (text), 8 x 8 + 8 (shared).
SHARED = 3 * 72
ALL = 3 * ((1032 + 1152) + (520 + 576) + 72)


class Collective(NamedTuple):
    purpose: str
    dtype: torch.dtype
    content: bytes


def record() -> list[Collective]:
    """From now on, list every all-reduce of this process with what it was handed; every other collective raises."""
    seen: list[Collective] = []
    purpose = ""
    real_sum, real_all_reduce = world.World.sum, dist.all_reduce

    def world_sum(self: world.World, flat: torch.Tensor, why: str) -> torch.Tensor:
        nonlocal purpose
        purpose = why
        total = real_sum(self, flat, why)
        purpose = "outside of World.sum"
        return total

    def all_reduce(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        seen.append(Collective(purpose, tensor.dtype, tensor.contiguous().view(torch.uint8).numpy().tobytes()))
        return real_all_reduce(tensor, *args, **options)

    def forbidden(name: str) -> Callable[..., None]:
        def collective(*args: Any, **options: Any) -> None:
            raise AssertionError(f"torch.distributed.{name} is called")

        return collective

    world.World.sum = world_sum
    for module in (dist, dist.distributed_c10d):
        module.all_reduce = all_reduce
        for name in OTHERS:
            if hasattr(module, name):
                setattr(module, name, forbidden(name))
    return seen


def recorded_run(meeting: list[str], settings: list[str]) -> list[Collective]:
    seen = record()
    train(meeting, settings)
    return seen


@pytest.mark.parametrize(
    ("method", "wire", "parameters", "dtype", "bytes_a_number"),
    [
        ("pfedmma", "fp32", SHARED, torch.float32, 4),
        ("pfedmma", "bf16", SHARED, torch.bfloat16, 2),
        ("pfedmma", "fp16", SHARED, torch.float16, 2),
        ("fedavg_mma", "fp32", ALL, torch.float32, 4),
        ("local", "fp32", 0, None, 4),
    ],
)
def test_only_the_exchanged_tensors_travel_once_a_round(
    tmp_path: Path, method: str, wire: str, parameters: int, dtype: torch.dtype | None, bytes_a_number: int
) -> None:
    run_dir = tmp_path / "run"
    more = [f"method.name={method}", "method.dim=8", f"distributed.wire={wire}", "federation.rounds=3", "checkpoint.every=2"]
    ranks = values_of(run_ranks(tmp_path / "meet", 2, recorded_run, small.settings(run_dir, *more)))

    payload = parameters * bytes_a_number
    for seen in ranks:
        exchanges = [one for one in seen if one.purpose == "exchange"]
        assert [(one.dtype, len(one.content)) for one in exchanges] == [(dtype, payload)] * (3 if parameters else 0)
        # Everything else is bookkeeping: waits, sums of a loss and of who was asked to end; far smaller than any tensor of a client.
        # Only at the start, before anything is trained, the ranks tell each other who shares a temporary folder.
        large = [number for number, one in enumerate(seen) if one.purpose != "exchange" and len(one.content) > 16]
        assert [seen[number].purpose for number in large] == ["input"] and large[0] < 5
        assert "outside of World.sum" not in {one.purpose for one in seen}
    assert [(one.purpose, len(one.content)) for one in ranks[0]] == [(one.purpose, len(one.content)) for one in ranks[1]]

    for row in small.metrics(run_dir):  # and the ledger says the same
        assert row["comm"]["shared_parameters"] == parameters
        assert row["comm"]["payload_bytes"] == payload
        assert row["comm"]["uplink_bytes"] == row["comm"]["downlink_bytes"] == 3 * payload  # 3 of 7 clients take part
        assert row["comm"]["collectives"] == (1 if parameters else 0)
    totals = small.summary(run_dir)["comm"]
    assert (totals["payload_bytes"], totals["uplink_bytes"]) == (3 * payload, 3 * 3 * payload)


def made_up_rounds(meeting: list[str], settings: list[str], variant: str) -> dict[str, Any]:
    """Rounds 1 and 2 with a local "training" that writes known numbers: 1000 + id into what is private, id into what is shared.

    ``variant`` doubles the "private" or the "shared" numbers. Returns every collective, by round who was trained here and what private
    numbers they came with, the private numbers of all clients that this rank can read, and the shared tensors after each round.
    """
    resolved = schema.load(None, [*meeting, *settings])
    node.secrets = SimpleNamespace(token_bytes=lambda count: os.getppid().to_bytes(count, "big"))  # the same folder's name in every run
    seen = record()
    run = assemble(resolved, world.open_world(resolved.distributed))
    exchanged = run.engine.training.layout.exchanged_size

    trained: dict[int, dict[int, float]] = {1: {}, 2: {}}

    def train_stack(self: LocalTraining, clients: Any, params: torch.Tensor, state: Any, round_: int, *args: Any) -> torch.Tensor:
        for row, client in enumerate(clients):
            trained[round_][client.id] = params[row, -1].item()
            params[row, exchanged:] = (1000.0 + client.id) * (2 if variant == "private" else 1)
            params[row, :exchanged] = client.id * (2 if variant == "shared" else 1)
        return torch.ones(len(clients))

    class Listener:
        rounds: list[Any]

        def __init__(self) -> None:
            self.rounds = []

        def round_done(self, row: RoundRow) -> None:
            self.rounds.append((list(row.clients), run.engine.server.shared.tolist()))

        def checkpoint_due(self, round_: int) -> bool:
            return False

    LocalTraining.train = train_stack
    listener = Listener()
    run.engine.run(1, listener)
    return {
        "rounds": listener.rounds,
        "seen": seen,
        "trained": trained,
        "private": {client: tensor[0].item() for client, tensor in run.engine.states.own.items()},
    }


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """variant -> what each of 4 ranks returns."""
    folder = tmp_path_factory.mktemp("made-up")
    settings = small.settings(folder / "unused", "method.dim=8", "federation.rounds=2")
    return {
        variant: values_of(run_ranks(folder / variant, 4, made_up_rounds, settings, variant)) for variant in ("plain", "private", "shared")
    }


def test_private_values_change_no_byte_of_any_collective(made_up: dict[str, list[dict[str, Any]]]) -> None:
    for plain, changed in zip(made_up["plain"], made_up["private"], strict=True):
        assert changed["private"] == {client: 2 * value for client, value in plain["private"].items()}  # they did change
        assert changed["seen"] == plain["seen"]


def test_shared_values_change_the_exchange_and_nothing_else(made_up: dict[str, list[dict[str, Any]]]) -> None:
    for plain, changed in zip(made_up["plain"], made_up["shared"], strict=True):
        different = {one.purpose for one, other in zip(plain["seen"], changed["seen"], strict=True) if one != other}
        assert different == ({"exchange"} if any(plain["trained"].values()) else set())


def test_the_server_mean_is_weighted_by_images(made_up: dict[str, list[dict[str, Any]]]) -> None:
    # Round 2 draws clients 4, 5 and 6 with 18, 18 and 12 images; each "trained" its own id.
    for rank in made_up["plain"]:
        (first, _), (second, mean) = rank["rounds"]
        assert (first, second) == ([1, 2, 5], [4, 5, 6])
        assert mean == pytest.approx([(18 * 4 + 18 * 5 + 12 * 6) / 48] * SHARED, rel=1e-6)


def test_private_values_move_within_a_node_and_reach_no_collective(made_up: dict[str, list[dict[str, Any]]]) -> None:
    """A client may train on another rank of its node than before, and begins there with what it had."""
    for rank in made_up["plain"]:
        assert rank["private"] == {i: 1000.0 + i for i in (1, 2, 4, 5, 6)}, "every rank of the node reads them"
    first, second = ({i: rank for rank, one in enumerate(made_up["plain"]) for i in one["trained"][round_]} for round_ in (1, 2))
    assert sorted(first) == [1, 2, 5] and sorted(second) == [4, 5, 6]
    assert len(set(first.values())) == len(set(second.values())) == 3, "three participants on four ranks train side by side"
    assert (first[5], second[5]) == (0, 1)
    assert made_up["plain"][1]["trained"][2][5] == 1005.0
    content = b"".join(one.content for rank in made_up["plain"] for one in rank["seen"])
    assert not any(torch.tensor(1000.0 + i).numpy().tobytes() in content for i in range(7))


def test_a_rank_without_participants_enters_with_zeros(made_up: dict[str, list[dict[str, Any]]]) -> None:
    (idle,) = [rank for rank in made_up["plain"] if not rank["trained"][2]]
    *_, exchange = (one for one in idle["seen"] if one.purpose == "exchange")
    assert exchange.content == bytes(4 * SHARED)


def test_only_one_module_imports_torch_distributed() -> None:
    root = Path(pfedmma.__file__).parent
    users = set()
    for path in root.rglob("*.py"):
        for part in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in part.names] if isinstance(part, ast.Import) else []
            if isinstance(part, ast.ImportFrom):
                names = [f"{part.module}.{alias.name}" for alias in part.names]
            if isinstance(part, ast.Attribute):
                names = [ast.unparse(part)]
            if any(name.startswith("torch.distributed") for name in names):
                users.add(path.relative_to(root).as_posix())
    assert users == {"comm/world.py"}
