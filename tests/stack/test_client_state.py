"""The state of clients between their rounds does not depend on where it rests: by itself, in whole runs, and their checkpoints."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from torch import Tensor

from pfedmma import rng
from pfedmma.comm.world import World
from pfedmma.engine.cohort import Members
from pfedmma.records.checkpoint import manifest as checkpoint_manifest
from pfedmma.records.checkpoint import read
from pfedmma.records.checkpoint import write as checkpoint_write
from pfedmma.records.checkpoint.manifest import Progress
from pfedmma.run.resume import fill
from pfedmma.server.rules import SHARED
from pfedmma.server.server import Server
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.layout import Layout
from pfedmma.stack.offload import Budget, RowFile
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.stack.start import Start
from pfedmma.train import main
from tests.support import small
from tests.support.stacks import gathered, serve

CPU = torch.device("cpu")
LAYOUT = Layout({"own": (2, 2), "sent": (2, 3)}, {"sent": "mean"})
SENT, OWN = 6, 4  # numbers; the exchanged ones come first
INITIAL = torch.arange(SENT + OWN) / 8 - 1
SGD, ADAM = (OptimizerConfig(name=name, state="persist") for name in ("sgd", "adam"))
# Bytes of host memory: none, two rows of private state, and more than enough.
HOSTS = {"disk": 0.0, "some": 2 * 4 * OWN, "memory": 1e6}


def new_states(host: float, optimizer: OptimizerConfig | None = None) -> ClientStates:
    return ClientStates(LAYOUT, Start(INITIAL), optimizer or OptimizerConfig(), CPU, Budget(host=host))


def stack_of(ids: list[int], time: int) -> Tensor:
    """[C, P], numbers that no other client and no other time has."""
    return torch.stack([torch.randn(SENT + OWN, generator=rng.generator(time, "stack", client)) for client in ids])


def wanted(shared: Tensor, own: dict[int, Tensor], ids: list[int]) -> Tensor:
    return torch.stack([torch.cat([shared, own.get(client, INITIAL[SENT:])]) for client in ids]) if ids else INITIAL.expand(0, -1)


# By itself -------------------------------------------------------------------------------------------------------------------------------

GROUPS = st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True)


@trials(max_examples=100, deadline=None)
@given(st.sampled_from(list(HOSTS.values())), st.lists(st.tuples(GROUPS, GROUPS, GROUPS), min_size=1, max_size=6))
def test_what_is_gathered_is_what_was_scattered(host: float, steps: list[tuple[list[int], list[int], list[int]]]) -> None:
    """With the state of the next clients fetched ahead while others are kept; sometimes other clients come than were expected."""
    states, own = new_states(host), dict[int, Tensor]()
    for time, (first, expected, then) in enumerate(steps):
        shared = torch.full((SENT,), float(time))
        assert torch.equal(states.gather(first, shared), wanted(shared, own, first))
        stack = states.gather_to_train(first, shared)
        assert torch.equal(stack, wanted(shared, own, first))
        expected = [client for client in expected if client not in first]
        states.prefetch(expected)
        stack.copy_(stack_of(first, time))
        states.scatter(first, stack)
        own |= dict(zip(first, stack[:, SENT:].clone(), strict=True))
        stack.zero_()
        for ids in (expected, then, first) if time % 2 else (then, expected):
            assert torch.equal(states.gather(ids, shared), wanted(shared, own, ids))
    assert states.own.keys() == own.keys()
    assert {client: states.has_own(client) for client in range(6)} == {client: client in own for client in range(6)}


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS.keys())
def test_clients_that_never_trained_have_the_initial_state_and_take_no_room(host: float) -> None:
    states = new_states(host)
    states.prefetch([4, 1])
    assert torch.equal(states.gather([4, 1], INITIAL[:SENT]), INITIAL.expand(2, -1))
    states.gather([0], INITIAL[:SENT])[:] = 7.0  # a copy
    assert torch.equal(states.gather([4], torch.ones(SENT))[0], torch.cat([torch.ones(SENT), INITIAL[SENT:]]))
    assert states.gather([], INITIAL[:SENT]).shape == (0, SENT + OWN)
    assert sum(states.own.bytes_by_place().values()) == 0 and not states.has_own(4)


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    """Which thread read the rows of which clients, of this test's states: a thread of an earlier test may be late."""
    calls: list[tuple[str, list[int]]] = []
    own: list[ClientStates] = []
    create, collect = ClientStates.__init__, ClientStates._private_rows

    def created(states: ClientStates, *args: Any, **options: Any) -> None:
        create(states, *args, **options)
        own.append(states)

    def counted(states: ClientStates, ids: list[int]) -> list[Tensor]:
        if any(states is each for each in own):
            calls.append((threading.current_thread().name.split("_")[0], list(ids)))
        return collect(states, ids)

    monkeypatch.setattr(ClientStates, "__init__", created)
    monkeypatch.setattr(ClientStates, "_private_rows", counted)
    return calls


def test_rows_on_disk_are_read_once_and_ahead(collected: list[tuple[str, list[int]]]) -> None:
    states, shared = new_states(0.0), torch.zeros(SENT)
    states.scatter([0, 1, 2], stack_of([0, 1, 2], 0))
    states.prefetch([2, 0])
    assert torch.equal(states.gather([2, 0], shared)[:, SENT:], stack_of([2, 0], 0)[:, SENT:])
    assert collected == [("pfedmma-state", [2, 0])]
    # In another order, or of other clients, it is of no use, and does not come up again.
    states.prefetch([1])
    assert torch.equal(states.gather([2, 1], shared)[:, SENT:], stack_of([2, 1], 0)[:, SENT:])
    states.gather([1], shared)
    assert [ids for thread, ids in collected if thread == "MainThread"] == [[2, 1], [1]]


def test_nothing_is_read_ahead_that_is_at_hand(collected: list[tuple[str, list[int]]]) -> None:
    states = new_states(1e6)
    states.scatter([0, 1], stack_of([0, 1], 0))
    for ids in ([0, 1], [], [0, 9]):  # client 9 has no state
        states.prefetch(ids)
    beyond = new_states(0.0)
    beyond.scatter([0], stack_of([0], 0))
    beyond.prefetch([8, 9])
    assert not collected


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS.keys())
def test_optimizer_states_come_back(host: float, optimizer: OptimizerConfig) -> None:
    """Through the rows, and through the named tensors that a checkpoint holds; zeros where there is none."""
    states, other = new_states(host, optimizer), new_states(host, optimizer)
    state = states.gather_optimizer([3, 0, 5])
    assert state.keys() == ({"momentum", "step"} if optimizer.name == "sgd" else {"mean", "square", "step"})
    assert all(not tensor.any() for tensor in state.values())
    for number, tensor in enumerate(state.values()):
        tensor.copy_(torch.randn(tensor.shape, generator=rng.generator(number, "optimizer")))
    states.scatter_optimizer([3, 0, 5], state)
    before = {name: tensor.clone() for name, tensor in state.items()}
    for tensor in state.values():
        tensor.fill_(9.0)  # what is kept is a copy
    for client in (3, 0, 5):
        kept = states.optimizer_state(client)
        assert {"private": OWN} | {f"optimizer.{name}": len(tensor) for name, tensor in kept.items()} == states.widths()
        with pytest.raises(KeyError):
            other.keep_optimizer_state(client, dict(list(kept.items())[1:]))
        other.keep_optimizer_state(client, dict(reversed(kept.items())))  # whatever the order in which they were read
    for one in (states, other):
        got = one.gather_optimizer([5, 9, 3])
        for name, tensor in before.items():
            assert torch.equal(got[name], torch.stack([tensor[2], torch.zeros_like(tensor[0]), tensor[0]])), name
    assert states.optimizer_state(9) == {}


def test_without_persist_there_is_no_optimizer_state() -> None:
    states = new_states(1e6)
    states.scatter([0], stack_of([0], 0))
    assert len(states.optimizer_rows) == 0 and states.optimizer_state(0) == {}
    assert states.widths() == {"private": OWN}
    assert all(not tensor.any() for tensor in states.gather_optimizer([0]).values())


def test_private_and_optimizer_state_share_one_budget() -> None:
    """Adam keeps two numbers for each of the 10 parameters, and one count, beside the 4 private ones."""
    states = new_states(25 * 4 * 100, ADAM)
    for client in range(200):
        states.scatter([client], torch.ones(1, SENT + OWN))
        states.scatter_optimizer([client], states.gather_optimizer([client]))
    assert states.own.bytes_by_place() == {"cpu": 100 * 4 * OWN, "disk": 100 * 4 * OWN}
    assert states.optimizer_rows.bytes_by_place() == {"cpu": 100 * 4 * 21, "disk": 100 * 4 * 21}


# Whole runs ------------------------------------------------------------------------------------------------------------------------------

# 5 of 7 clients take part, so that two at a time are three passes, the last of one client; all hold an optimizer state, too.
MORE = ["federation.participation=0.7", "optimizer.state=persist", "checkpoint.every=2", "checkpoint.keep=9", "evaluation.every=2"]
TWO, DISK = "federation.clients_per_pass=2", "federation.host_gb=0"


@pytest.fixture(autouse=True, scope="module")
def few_images() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        small.few_images(patch)
        yield


def run(folder: Path, *more: str, rounds: int = 4) -> Path:
    main(small.settings(folder, *MORE, f"federation.rounds={rounds}", *more))
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clients at a time, their state in memory."""
    return run(tmp_path_factory.mktemp("straight") / "run", TWO)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with all state on disk, which is seen to be there."""
    written = []
    write = RowFile.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowFile, "write", lambda file, client, row: (written.append(client), write(file, client, row))[1])
        folder = run(tmp_path_factory.mktemp("disk") / "run", TWO, DISK)
    assert sorted(written) == sorted(2 * [client for row in small.metrics(folder) for client in row["clients"]])
    return folder


def assert_equal_runs(folder: Path, other: Path) -> None:
    """To the last bit."""
    assert small.timeless(small.metrics(folder)) == small.timeless(small.metrics(other))
    got, wanted = small.final_tensors(folder), small.final_tensors(other)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert small.summary(folder)["per_client"] == small.summary(other)["per_client"]


def test_a_run_on_disk_is_the_run_in_memory(straight: Path, on_disk: Path) -> None:
    assert_equal_runs(on_disk, straight)


def test_a_run_on_disk_is_the_run_with_defaults(on_disk: Path, tmp_path: Path) -> None:
    """All clients in one pass there, so that sums may be rounded otherwise."""
    default = run(tmp_path / "run")
    small.assert_same_tensors(on_disk, default)
    rows, others = small.metrics(on_disk), small.metrics(default)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in others], rel=1e-5)
    assert [row["clients"] for row in rows] == [row["clients"] for row in others]
    assert [row["accuracy"] for row in rows] == [row["accuracy"] for row in others]
    trained = {client for row in rows for client in row["clients"]}
    assert len(trained) > 5  # some came back, and some came first in a later round


@pytest.mark.parametrize("then", [DISK, "federation.host_gb=1"], ids=["disk", "memory"])
def test_a_run_on_disk_resumes(straight: Path, on_disk: Path, tmp_path: Path, then: str) -> None:
    """Also in memory: where state rests makes no other run."""
    folder = Path(shutil.copytree(on_disk, tmp_path / "run"))
    shutil.rmtree(checkpoint_manifest.folder_of(folder / "checkpoints", 4))
    run(folder, TWO, then, "resume=auto")
    assert checkpoint_manifest.rounds(folder / "checkpoints") == [4, 2]
    assert_equal_runs(folder, straight)


# Shards ----------------------------------------------------------------------------------------------------------------------------------


def client_shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("clients-*"))


@pytest.mark.parametrize("size", [1e-9, 4e5], ids=["one client each", "two clients each"])
def test_a_checkpoint_in_several_shards(straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Written, read, and resumed from as the one in one."""
    monkeypatch.setattr(checkpoint_write, "SHARD_BYTES", size)
    folder = run(tmp_path / "run", TWO, DISK, rounds=2)
    shards = client_shards(checkpoint_manifest.folder_of(folder / "checkpoints", 2))
    clients = {client for row in small.metrics(folder) for client in row["clients"]}
    assert len(shards) == len(clients) + 1 if size < 1 else 1 < len(shards) <= len(clients)
    run(folder, TWO, DISK, "resume=auto")
    assert_equal_runs(folder, straight)


class OneOfTwo(World):
    """One of two ranks that are threads of this process."""

    meeting = threading.Barrier(2, timeout=600)  # seconds

    def wait(self, purpose: str) -> None:
        self.meeting.wait()


def new_members(host: float) -> Members:
    return Members(new_states(host, ADAM), Server(LAYOUT, {SHARED: INITIAL[:SENT]}, World(0, 1, CPU)))


def trained(members: Members, ids: list[int]) -> None:
    """Let the clients ``ids`` have tensors and an optimizer state of their own, and the server move."""
    serve(members, torch.full((SENT,), 5.0))
    members.states.scatter(ids, stack_of(ids, 1))
    state = members.states.gather_optimizer(ids)
    for name, tensor in state.items():
        tensor.copy_(torch.stack([torch.randn(tensor.shape[1], generator=rng.generator(client, name)) for client in ids]))
    members.states.scatter_optimizer(ids, state)


def save(root: Path, parts: list[Members]) -> None:
    """The checkpoint of round 3 by as many ranks as there are ``parts``."""
    worlds = [World(0, 1, CPU)] if len(parts) == 1 else [OneOfTwo(rank, 2, CPU) for rank in range(2)]
    said = {"config": {"data.clients": 7}, "ledger": worlds[0].ledger.state(), "template": "{}", "reads": 0, "answers": "server"}
    progress = Progress(**dict.fromkeys(field.name for field in dataclasses.fields(Progress)) | said)
    snapshots = [checkpoint_write.Snapshot(3, members.states, members.server.state_dict(), progress) for members in parts]
    work = [
        threading.Thread(target=checkpoint_write.save_checkpoint, args=(root, snapshot, world, 1))
        for snapshot, world in zip(snapshots, worlds, strict=True)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()


@pytest.mark.parametrize("size", [1.0, 1e9], ids=["several", "one"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_shards_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, size: float) -> None:
    """By any number of ranks, each of which takes its own clients."""
    monkeypatch.setattr(checkpoint_write, "SHARD_BYTES", size)
    whole, parts = new_members(1e6), [new_members(0.0) for _ in range(ranks)]
    trained(whole, list(range(7)))
    for rank, members in enumerate(parts):
        trained(members, list(range(rank, 7, ranks)))
    save(tmp_path, parts)

    folder = checkpoint_manifest.folder_of(tmp_path, 3)
    manifest = checkpoint_manifest.read_manifest(folder)
    checkpoint_manifest.verify(folder, manifest.shards.items())
    assert len(client_shards(folder)) == (ranks if size > 1 else 7 + ranks)
    assert {*client_shards(folder), "server.safetensors"} == set(manifest.shards)
    names = [(row.client, row.kind) for row in read.read_rows(tmp_path, manifest, range(7))]
    assert len(names) == len(set(names)) == 2 + 7 * 4  # each is written once
    for readers in (1, 2, 3):
        for reader in range(readers):
            own = list(range(reader, 7, readers))
            members = new_members(0.0)
            fill(members, tmp_path, manifest, own)
            assert sorted(members.states.own) == sorted(members.states.optimizer_rows) == own
            assert torch.equal(gathered(members, own), gathered(whole, own))
            assert torch.equal(members.server.shared, whole.server.shared)
            for name, tensor in whole.states.gather_optimizer(own).items():
                assert torch.equal(members.states.gather_optimizer(own)[name], tensor), name
