"""How many clients share a pass is given, or found where memory runs out; what they end with does not depend on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pfedmma.config import schema
from pfedmma.engine.batches import by_steps
from pfedmma.engine.cohort import MOST_IN_A_PASS, PassWidth, train_cohort
from pfedmma.engine.local import Trainer
from pfedmma.stack.client_state import ClientStore
from pfedmma.stack.optim import OptimizerConfig, OptimizerState
from pfedmma.system.errors import UserError
from tests.support.stacks import BATCH, SGD, SIZES, new_clients, new_store, new_trainer

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PERSIST = OptimizerConfig(lr=0.01, state="persist")


def test_auto_is_ten_on_a_cpu_and_a_guess_on_a_gpu() -> None:
    cpu, gpu = PassWidth.of("auto", CPU), PassWidth.of("auto", GPU)
    assert (cpu.now, cpu.fits) == (10, False)
    assert (gpu.now, gpu.fits) == (MOST_IN_A_PASS, True)


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_a_number_is_a_number(device: torch.device) -> None:
    width = PassWidth.of("3", device)
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
    width = PassWidth.of("4", GPU)
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


def content(store: ClientStore) -> dict[str, Tensor]:
    """Everything that the store keeps."""
    rows = {"private": store.private, "optimizer": store.optimizer_rows}
    kept = {f"{client}.{kind}": row.clone() for kind, bank in rows.items() for client, row in bank.items()}
    return kept | {"shared": store.shared.clone()}


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


class SmallMemory:
    """Training that runs out of memory with more than ``room`` clients, after it has changed what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: ClientStore, room: int) -> None:
        self.room, self.store = room, store
        self.tried: list[int] = []
        self.after_failure: list[dict[str, Tensor]] = []
        self.train = Trainer.train
        monkeypatch.setattr(Trainer, "train", lambda trainer, *args: self(trainer, *args))

    def __call__(self, trainer: Trainer, clients, params: Tensor, state: OptimizerState | None, round_: int, others=None) -> Tensor:
        self.tried.append(len(clients))
        if len(clients) > self.room:
            for tensor in (params, *(state or {}).values()):
                tensor.add_(1.0)
            self.after_failure.append(content(self.store))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.train(trainer, clients, params, state, round_, others)


@pytest.mark.parametrize("optimizer", [SGD, PERSIST], ids=["reset", "persist"])
def test_a_pass_too_wide_is_tried_again_in_parts(tiny_clip, monkeypatch: pytest.MonkeyPatch, optimizer: OptimizerConfig) -> None:
    """Two rounds end as with two clients a pass from the start; the second begins with what the first found."""
    trainer = new_trainer(tiny_clip, optimizer)
    narrow, store = new_store(trainer), new_store(trainer)
    expected = [train_cohort(trainer, new_clients(), narrow, round_, PassWidth(2)) for round_ in (1, 2)]

    before = content(store)
    memory, width = SmallMemory(monkeypatch, store, room=2), PassWidth(256, fits=True)
    found = [train_cohort(trainer, new_clients(), store, round_, width) for round_ in (1, 2)]
    assert memory.tried == [5, 3, 2, 2, 1, 2, 2, 1]
    assert width.now == 2
    for kept in memory.after_failure:
        assert_equal(kept, before)
    for got, wanted in zip(found, expected, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
    assert_equal(content(store), content(narrow))
    assert len(content(store)) == 1 + len(SIZES) * (2 if optimizer is PERSIST else 1)


def test_what_was_kept_of_earlier_passes_stays(tiny_clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that shrinks in the middle of a round: the clients that are done are not trained again."""
    trainer, clients = new_trainer(tiny_clip, PERSIST), new_clients()
    narrow, store = new_store(trainer), new_store(trainer)
    order = by_steps(clients, BATCH)
    train_cohort(trainer, order[:2], narrow, 1, PassWidth(2))
    first = content(narrow)
    train_cohort(trainer, order[2:], narrow, 1, PassWidth(1))

    memory = SmallMemory(monkeypatch, store, room=2)
    train = memory.train

    def shrinking(*args) -> Tensor:
        memory.room = 1  # from the second pass on
        return train(*args)

    memory.train = shrinking
    train_cohort(trainer, clients, store, 1, width := PassWidth(2, fits=True))
    assert memory.tried == [2, 2, 1, 1, 1]
    assert width.now == 1
    assert_equal(memory.after_failure[0], first)
    assert_equal(content(store), content(narrow))


@pytest.mark.parametrize(("width", "tries"), [(PassWidth(5, fits=True), [5, 3, 2, 1]), (PassWidth(5), [5])], ids=["auto", "5"])
def test_when_even_one_is_too_many(tiny_clip, monkeypatch: pytest.MonkeyPatch, width: PassWidth, tries: list[int]) -> None:
    trainer = new_trainer(tiny_clip, PERSIST)
    store = new_store(trainer)
    before = content(store)
    memory = SmallMemory(monkeypatch, store, room=0)
    with pytest.raises(UserError) as error:
        train_cohort(trainer, new_clients(), store, 1, width)
    message = str(error.value)
    assert "federation.batch_size" in message and "federation.stems_gb" in message and "\n" not in message
    assert ("federation.clients_per_pass=auto" in message) == (len(tries) == 1)
    assert memory.tried == tries
    assert_equal(content(store), before)


@pytest.mark.parametrize("where", ["scatter", "scatter_optimizer"])
def test_no_client_is_trained_twice_where_keeping_fails(tiny_clip, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Some clients of the pass are kept by then, so that another try would begin from their trained state."""
    trainer = new_trainer(tiny_clip, PERSIST)
    store = new_store(trainer)
    memory = SmallMemory(monkeypatch, store, room=5)
    keep = getattr(ClientStore, where)

    def half(store: ClientStore, ids: list[int], what) -> None:
        keep(store, ids[:2], what[:2] if isinstance(what, Tensor) else {name: tensor[:2] for name, tensor in what.items()})
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ClientStore, where, half)
    with pytest.raises(torch.OutOfMemoryError):
        train_cohort(trainer, new_clients(), store, 1, PassWidth(5, fits=True))
    assert memory.tried == [5]


def test_memory_of_a_pass_too_wide_is_given_back(tiny_clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next try has the memory of its own clients alone, or one client would fail where there is room for it."""
    trainer = new_trainer(tiny_clip, PERSIST)
    store = new_store(trainer)
    sizes = []
    train = Trainer.train

    def watched(trainer: Trainer, clients, params: Tensor, state: OptimizerState, *rest) -> Tensor:
        sizes.append(params.untyped_storage().nbytes() / params[:1].nbytes)
        if len(clients) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return train(trainer, clients, params, state, *rest)

    monkeypatch.setattr(Trainer, "train", watched)
    train_cohort(trainer, new_clients(), store, 1, PassWidth(5, fits=True))
    assert sizes == [5, 3, 2, 2, 2]
