"""How many clients share a pass is given, or found where memory runs out; what they end with does not depend on it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pfedmma.config import schema
from pfedmma.data.partition.federated import Client
from pfedmma.engine.batches import LocalWork, by_steps
from pfedmma.engine.cohort import IMAGES_IN_A_PASS, Members, PassWidth, largest_step, train_cohort
from pfedmma.engine.local import LocalTraining
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.optim import OptimizerConfig, OptimizerState
from pfedmma.system.errors import UserError
from tests.support.stacks import SGD, SIZES, new_clients, new_members, new_training, strong_adapters

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PERSIST = OptimizerConfig(lr=0.01, state="persist")


@pytest.mark.parametrize(("images", "clients"), [(32, 10), (12, 26), (320, 1), (1000, 1), (1, IMAGES_IN_A_PASS)])
def test_auto_is_ten_on_a_cpu_and_so_many_images_on_a_gpu(images: int, clients: int) -> None:
    cpu, gpu = PassWidth.from_setting("auto", CPU, images), PassWidth.from_setting("auto", GPU, images)
    assert (cpu.now, cpu.fits) == (10, False)
    assert (gpu.now, gpu.fits) == (clients, True)


def test_a_method_with_several_passes_of_an_image_takes_fewer_clients() -> None:
    """Groups of prompts go through the towers one by one: what a pass keeps for its gradients grows with them."""
    assert PassWidth.from_setting("auto", CPU, 32, passes=5).now == 2
    assert PassWidth.from_setting("auto", CPU, 32, passes=11).now == 1
    assert PassWidth.from_setting("auto", GPU, 32, passes=5).now == 2
    assert PassWidth.from_setting("4", CPU, 32, passes=5).now == 4


def test_the_largest_step_is_a_batch_or_all_that_a_client_has() -> None:
    clients = new_clients()
    most = max(len(client.train) for client in clients)
    assert largest_step(clients, LocalWork(1, 10**6, SGD, seed=0)) == most
    assert largest_step(clients, LocalWork(2, most - 1, SGD, seed=0)) == most - 1


@pytest.mark.parametrize(
    ("width", "clients", "passes"), [(10, 11, [6, 5]), (10, 10, [10]), (10, 3, [3]), (4, 9, [3, 3, 3]), (1, 2, [1, 1])]
)
def test_passes_are_few_and_alike(width: int, clients: int, passes: list[int]) -> None:
    """A pass of one client takes a GPU nearly as long as one of five."""
    one, found, auto = new_clients()[0], [], PassWidth(width)
    left: Sequence[Client] = [one] * clients
    while left:
        group, left = auto.next_of(left)
        found.append(len(group))
    assert found == passes and auto.next_of(()) == ((), ())


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_a_number_is_a_number(device: torch.device) -> None:
    width = PassWidth.from_setting("3", device, 32)
    assert (width.now, width.fits) == (3, False)


def test_shrinking_halves_what_was_tried() -> None:
    """Which may be fewer than were allowed, where no more clients are left."""
    width = PassWidth(256, fits=True)
    found = []
    for tried in (11, 6, 3, 2):
        width.shrink(tried)
        found.append(width.now)
    assert found == [6, 3, 2, 1]
    with pytest.raises(UserError, match=r"^out of memory with 1 clients? in a pass; lower federation\.batch_size or federation\.stems_gb$"):
        width.shrink(1)


def test_a_number_that_was_given_is_not_shrunk() -> None:
    width = PassWidth.from_setting("4", GPU, 32)
    with pytest.raises(UserError, match=r"^out of memory with 4 clients in a pass; lower .*federation\.clients_per_pass=auto$"):
        width.shrink(4)
    assert width.now == 4


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "", "²", "AUTO"])
def test_other_numbers_are_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"^federation\.clients_per_pass: must be a whole number from 1 on, or auto, not '"):
        schema.load(None, [f"federation.clients_per_pass={value}"])


@pytest.mark.parametrize("value", ["auto", "1", "3", "300"])
def test_numbers_and_auto_are_taken(value: str) -> None:
    assert schema.load(None, [f"federation.clients_per_pass={value}"]).federation.clients_per_pass == value


def test_a_number_in_a_file_is_taken(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text("federation: {clients_per_pass: 3}\n")
    assert schema.load(tmp_path / "a.yaml").federation.clients_per_pass == "3"


# Where memory runs out -------------------------------------------------------------------------------------------------------------------


def content(members: Members) -> dict[str, Tensor]:
    """Everything that is kept of clients and server."""
    rows = {"own": members.states.own, "optimizer": members.states.optimizer_rows}
    kept = {f"{client}.{kind}": row.clone() for kind, offloaded in rows.items() for client, row in offloaded.items()}
    return kept | {"shared": members.server.shared.clone()}


def begin(clip, optimizer: OptimizerConfig = PERSIST) -> tuple[LocalTraining, Members]:
    """Training with crops, and what the clients begin with."""
    method = strong_adapters(clip)
    return new_training(method, optimizer, "crop"), new_members(method, optimizer)


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


class SmallMemory:
    """Training that runs out of memory with more than ``room`` clients, after it has changed what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, members: Members, room: int) -> None:
        self.room, self.members = room, members
        self.tried: list[int] = []
        self.after_failure: list[dict[str, Tensor]] = []
        self.train = LocalTraining.train
        monkeypatch.setattr(LocalTraining, "train", lambda training, *args: self(training, *args))

    def __call__(self, training: LocalTraining, clients, params: Tensor, state: OptimizerState | None, *more) -> Tensor:
        self.tried.append(len(clients))
        if len(clients) > self.room:
            for tensor in (params, *(state or {}).values()):
                tensor.add_(1.0)
            self.after_failure.append(content(self.members))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.train(training, clients, params, state, *more)


@pytest.mark.parametrize("optimizer", [SGD, PERSIST], ids=["reset", "persist"])
def test_a_pass_too_wide_is_tried_again_in_parts(tiny_clip, monkeypatch: pytest.MonkeyPatch, optimizer: OptimizerConfig) -> None:
    """Two rounds end as with two clients a pass from the start; the second begins with what the first found."""
    (training, narrow), (_, members) = (begin(tiny_clip, optimizer) for _ in range(2))
    expected = [train_cohort(training, new_clients(), narrow, round_, PassWidth(2)) for round_ in (1, 2)]

    before = content(members)
    memory, width = SmallMemory(monkeypatch, members, room=2), PassWidth(256, fits=True)
    found = [train_cohort(training, new_clients(), members, round_, width) for round_ in (1, 2)]
    assert memory.tried == [5, 3, 2, 2, 1, 2, 2, 1]
    assert width.now == 2
    for kept in memory.after_failure:
        assert_equal(kept, before)
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got.uploads, wanted.uploads) and torch.equal(got.losses, wanted.losses)
    assert_equal(content(members), content(narrow))
    assert len(content(members)) == 1 + len(SIZES) * (2 if optimizer is PERSIST else 1)


def test_what_was_kept_of_earlier_passes_stays(tiny_clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that shrinks in the middle of a round: the clients that are done are not trained again."""
    (training, narrow), (_, members) = (begin(tiny_clip) for _ in range(2))
    clients = new_clients()
    order = by_steps(clients, training.batches.work)
    train_cohort(training, order[:2], narrow, 1, PassWidth(2))
    first = content(narrow)
    train_cohort(training, order[2:], narrow, 1, PassWidth(1))

    memory = SmallMemory(monkeypatch, members, room=2)
    train = memory.train

    def shrinking(*args) -> Tensor:
        memory.room = 1  # from the second pass on
        return train(*args)

    memory.train = shrinking
    train_cohort(training, clients, members, 1, width := PassWidth(2, fits=True))
    assert memory.tried == [2, 2, 1, 1, 1]
    assert width.now == 1
    assert_equal(memory.after_failure[0], first)
    assert_equal(content(members), content(narrow))


@pytest.mark.parametrize(("width", "tries"), [(PassWidth(5, fits=True), [5, 3, 2, 1]), (PassWidth(5), [5])], ids=["auto", "5"])
def test_when_even_one_is_too_many(tiny_clip, monkeypatch: pytest.MonkeyPatch, width: PassWidth, tries: list[int]) -> None:
    training, members = begin(tiny_clip)
    before = content(members)
    memory = SmallMemory(monkeypatch, members, room=0)
    with pytest.raises(UserError) as error:
        train_cohort(training, new_clients(), members, 1, width)
    message = str(error.value)
    assert "federation.batch_size" in message and "federation.stems_gb" in message and "\n" not in message
    assert ("federation.clients_per_pass=auto" in message) == (len(tries) == 1)
    assert memory.tried == tries
    assert_equal(content(members), before)


@pytest.mark.parametrize("where", ["scatter", "scatter_optimizer"])
def test_no_client_is_trained_twice_where_keeping_fails(tiny_clip, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Some clients of the pass are kept by then, so that another try would begin from their trained state."""
    training, members = begin(tiny_clip)
    memory = SmallMemory(monkeypatch, members, room=5)
    keep = getattr(ClientStates, where)

    def half(states: ClientStates, ids: list[int], what) -> None:
        keep(states, ids[:2], what[:2] if isinstance(what, Tensor) else {name: tensor[:2] for name, tensor in what.items()})
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ClientStates, where, half)
    with pytest.raises(torch.OutOfMemoryError):
        train_cohort(training, new_clients(), members, 1, PassWidth(5, fits=True))
    assert memory.tried == [5]


def test_memory_of_a_pass_too_wide_is_given_back(tiny_clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next try has the memory of its own clients alone, or one client would fail where there is room for it."""
    training, members = begin(tiny_clip)
    sizes = []
    train = LocalTraining.train

    def watched(training: LocalTraining, clients, params: Tensor, state: OptimizerState, *rest) -> Tensor:
        sizes.append(params.untyped_storage().nbytes() / params[:1].nbytes)
        if len(clients) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return train(training, clients, params, state, *rest)

    monkeypatch.setattr(LocalTraining, "train", watched)
    train_cohort(training, new_clients(), members, 1, PassWidth(5, fits=True))
    assert sizes == [5, 3, 2, 2, 2]
