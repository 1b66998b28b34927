"""Which GPU a rank gets, without a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState

from pfedmma.comm import devices, environment, world
from pfedmma.comm.world import DistributedConfig, open_world
from pfedmma.system.errors import UserError


class Machine:
    """GPUs that are not there: what is set as the device, and what the ranks are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.chosen: list[torch.device] = []
        self.groups: list[dict[str, Any]] = []
        for name in (*environment.NAMES, *sum(environment.OF_MPI.values(), ()), "ACCELERATE_TORCH_DEVICE", "TORCHELASTIC_USE_AGENT_STORE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "set_device", self.set_device)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"GPU-{device.index}"))
        monkeypatch.setattr(world.accelerate, "PartialState", self.state)

    def state(self, **options: Any) -> SimpleNamespace:
        """As accelerate's without a launcher: a device without an index."""
        return SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cuda"))

    def set_device(self, device: torch.device) -> None:
        assert device.index is not None, "torch.cuda.set_device wants an index"
        self.chosen.append(device)

    def shows(self, gpus: int) -> None:
        self.monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    def launches(self, local_rank: int, size: int) -> None:
        """A rank of ``size``, the last to come."""
        for name, value in {"RANK": local_rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}.items():
            self.monkeypatch.setenv(name, str(value))
        self.lets_meet()

    def lets_meet(self) -> None:
        store = dist.HashStore()
        self.monkeypatch.setattr(world, "_base_store", lambda *_: store)
        self.monkeypatch.setattr(world, "fresh_name", lambda *_: "name")
        self.monkeypatch.setattr(world, "refuse_shared", lambda *_: None)
        self.monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: self.groups.append({"backend": backend, **options}))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize("gpus", [1, 8])
def test_one_process_takes_the_first_gpu_by_its_index(machine: Machine, gpus: int) -> None:
    machine.shows(gpus)
    assert open_world(DistributedConfig()).device == torch.device("cuda", 0)
    assert machine.chosen == [torch.device("cuda", 0)]
    assert not machine.groups


@pytest.mark.parametrize(
    ("backend", "gpus", "local_rank", "size", "index"),
    [
        ("nccl", 8, 5, 8, 5),
        ("nccl", 1, 3, 4, 0),  # srun --gpus-per-task=1: each rank sees its own
        ("nccl", 2, 3, 4, 1),
        ("gloo", 2, 5, 8, 1),  # ranks share GPUs
        ("gloo", 1, 3, 4, 0),
    ],
)
def test_a_rank_takes_a_gpu_that_it_sees(machine: Machine, backend: str, gpus: int, local_rank: int, size: int, index: int) -> None:
    machine.shows(gpus)
    machine.launches(local_rank, size)
    opened = open_world(DistributedConfig(backend=backend))
    assert (opened.device, opened.rank, opened.size) == (torch.device("cuda", index), local_rank, size)
    assert {device.index for device in machine.chosen} == {index}
    assert [(group["backend"], group["rank"], group["world_size"]) for group in machine.groups] == [(backend, local_rank, size)]


@pytest.mark.parametrize(
    "said",
    [
        {"OMPI_COMM_WORLD_RANK": 5, "OMPI_COMM_WORLD_SIZE": 8, "OMPI_COMM_WORLD_LOCAL_RANK": 1, "OMPI_COMM_WORLD_LOCAL_SIZE": 4},
        {"PMI_RANK": 5, "PMI_SIZE": 8, "MPI_LOCALRANKID": 1, "MPI_LOCALNRANKS": 4},
        {"PMI_RANK": 5, "PMI_SIZE": 8, "SLURM_LOCALID": 1},
    ],
)
def test_a_rank_that_mpi_has_started_takes_its_gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch, said: dict[str, int]) -> None:
    for name in environment.NAMES:  # what is set is taken back
        monkeypatch.setenv(name, "")
    for name, value in said.items():
        monkeypatch.setenv(name, str(value))
    machine.shows(4)
    machine.lets_meet()
    opened = open_world(DistributedConfig())
    assert (opened.device, opened.rank, opened.size) == (torch.device("cuda", 1), 5, 8)
    assert [(group["backend"], group["rank"], group["world_size"]) for group in machine.groups] == [("nccl", 5, 8)]


def test_mpi_with_one_process_is_no_launcher(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "1")
    machine.shows(4)
    assert open_world(DistributedConfig()).size == 1 and not machine.groups


def come(gpus: list[str]) -> list[str]:
    """What each rank, with that GPU, ends with."""
    store = dist.HashStore()

    def rank(number: int) -> str:
        try:
            devices.refuse_shared(store, number, len(gpus), gpus[number], 10.0)
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(gpus)) as threads:
        return list(threads.map(rank, range(len(gpus))))


def test_a_gpu_for_each_rank() -> None:
    assert come(["a", "b", "c"]) == ["", "", ""]


def test_more_ranks_than_gpus_are_refused_alike() -> None:
    (said,) = set(come(["a", "b", "a"]))
    assert "NCCL needs a GPU for each rank" in said and "ranks 0 and 2" in said and "backend=gloo" in said


def test_who_does_not_say_its_gpu() -> None:
    with pytest.raises(RuntimeError, match="rank 1 did not say"):
        devices.refuse_shared(dist.HashStore(), 0, 2, "a", 0.1)


def test_the_word_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for one GPU under two indices, another for another, and it tells nothing of the machine."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="GPU-1234"))
    first = devices.identity(torch.device("cuda", 0))
    assert devices.identity(torch.device("cuda", 1)) == first and "1234" not in first
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="GPU-5678"))
    assert devices.identity(torch.device("cuda", 0)) != first
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    assert devices.identity(torch.device("cuda", 0)) != devices.identity(torch.device("cuda", 1))


def test_accelerate_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own state names the same device."""
    machine.shows(2)
    monkeypatch.setattr(world.accelerate, "PartialState", PartialState)
    monkeypatch.setattr("accelerate.state.check_cuda_p2p_ib_support", lambda: True)
    PartialState._reset_state()
    try:
        open_world(DistributedConfig())
        assert PartialState().device == torch.device("cuda", 0)
    finally:
        PartialState._reset_state()
