"""The only module that touches torch.distributed.

`open_world` is called once, in ``main``; it gives a `World` of one rank or many with the same face. Every collective of a run
is a `World.sum`, and each is entered in the `Ledger` with its purpose.
"""

from __future__ import annotations

import datetime
import os
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from pfedmma import checks
from pfedmma.errors import UserError
from pfedmma.ledger import Ledger

WIRE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LOCAL = (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))


@dataclass(frozen=True)
class DistributedConfig:
    """How ranks meet. ``backend``: ``auto`` (NCCL on GPUs, gloo on CPUs), ``nccl`` or ``gloo`` (several ranks may then share a GPU).

    ``device``: ``auto``, ``cpu`` or ``cuda``. ``wire``: the dtype in which exchanged tensors travel. ``timeout``: seconds a collective
    may wait. ``init_method``: ``env://``, or ``file:///path`` of a file that all ranks see, for launchers that open no port.
    """

    backend: str = "auto"
    device: str = "auto"
    wire: str = "fp32"
    timeout: float = 600.0
    init_method: str = "env://"

    def __post_init__(self) -> None:
        checks.one_of("backend", self.backend, ("auto", "nccl", "gloo"))
        checks.one_of("device", self.device, ("auto", "cpu", "cuda"))
        checks.one_of("wire", self.wire, WIRE_DTYPES)
        checks.positive("timeout", self.timeout)


class World:
    """One rank's view of all ranks. A world of one does no communication; its ledger counts what it would hand over."""

    def __init__(self, rank: int, size: int, device: torch.device, backend: str = "gloo") -> None:
        self.rank, self.size, self.device, self.backend = rank, size, device, backend
        # Which of the ranks on this machine, and how many they are.
        self.local_rank, self.local_size = (int(os.environ.get(n, d)) if size > 1 else int(d) for n, d in _LOCAL)
        self.ledger = Ledger(size)

    def hosts(self, client: int) -> bool:
        """Whether a client lives on this rank: clients are dealt out in turn."""
        return client % self.size == self.rank

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, flat: Tensor, purpose: str) -> Tensor:
        """Sum of ``flat`` [n] over all ranks, on the device where it came from. Every rank must enter.

        Raises:
            UserError: another rank is gone or did not come within ``distributed.timeout``.
        """
        start = time.perf_counter()
        total = flat
        if self.size > 1:
            # NCCL reduces on the GPU; gloo takes host memory.
            carrier = flat.to(self.device if self.backend == "nccl" else "cpu", copy=True)
            try:
                dist.all_reduce(carrier)
            except RuntimeError as error:
                raise UserError(
                    f"rank {self.rank} lost the other ranks while it waited for '{purpose}' ({str(error).splitlines()[0][:200]}); "
                    f"see their output, and go on with resume=auto"
                ) from error
            if self.backend == "nccl":
                torch.cuda.synchronize(self.device)
            total = carrier.to(flat.device)
        self.ledger.enter(purpose, flat.numel() * flat.element_size(), time.perf_counter() - start)
        return total

    def wait(self, purpose: str) -> None:
        """Return when every rank has come here."""
        self.sum(torch.zeros(1), purpose)

    def close(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
            PartialState._reset_state()


def open_world(config: DistributedConfig) -> World:
    """Join the ranks that the launcher started; without a launcher, a world of one.

    Accelerate's ``PartialState`` reads the environment of ``torchrun``, ``accelerate launch``, SLURM and MPI.

    Raises:
        UserError: a GPU or backend that this machine does not have.
    """
    gpu = config.device != "cpu" and torch.cuda.is_available()
    if config.device == "cuda" and not gpu:
        raise UserError("distributed.device: 'cuda' is asked for, but torch sees no GPU here; use 'auto' or 'cpu'")
    if config.backend == "nccl" and not gpu:
        raise UserError("distributed.backend: 'nccl' needs a GPU for each rank; use 'auto' or 'gloo'")
    backend = config.backend if config.backend != "auto" else "nccl" if gpu else "gloo"
    options: dict[str, object] = {}
    if "LOCAL_RANK" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        timeout = datetime.timedelta(seconds=config.timeout)
        options = {"backend": backend, "timeout": timeout, "init_method": config.init_method}
        if config.init_method != "env://" and gpu:
            options |= {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    if gpu:
        _claim_gpu(backend)
    try:
        state = PartialState(cpu=not gpu, **options)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"distributed: the ranks could not meet within {config.timeout:g} s ({str(error).splitlines()[0][:200]}); "
            f"check that all ranks were started, and distributed.init_method"
        ) from error
    if state.device.type == "cuda":
        torch.cuda.set_device(state.device)
    return World(state.process_index, state.num_processes, state.device, backend)


def _claim_gpu(backend: str) -> None:
    """Give this rank its GPU; under gloo, ranks may outnumber GPUs and share them."""
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if backend == "gloo":
        os.environ["ACCELERATE_TORCH_DEVICE"] = f"cuda:{local % gpus}"
    elif local >= gpus:
        raise UserError(
            f"distributed.backend: NCCL needs a GPU for each rank and this machine has {gpus}; "
            f"start fewer ranks, or set distributed.backend=gloo to share GPUs"
        )
