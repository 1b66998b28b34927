"""The only module that touches torch.distributed.

`open_world` is called once, in ``main``; it gives a `World` of one rank or many with the same face. Every collective of a run
is a `World.sum`, and each is entered in the `Ledger` with its purpose.
"""

from __future__ import annotations

import datetime
import os
import time
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from pfedmma.comm.ledger import Ledger
from pfedmma.comm.missing_ranks import RollCall
from pfedmma.comm.rendezvous import fresh_name
from pfedmma.system import checks
from pfedmma.system.errors import RankFailure, UserError
from pfedmma.system.options import GOES_ON, SAME_RESULT, setting

WIRE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LOCAL = (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
LONGEST_TIMEOUT = 1e6  # seconds, more than a week
SAY_SO_AFTER = 1.0  # seconds of waiting, and again after each as many, a rank says for the others that it is here


@dataclass(frozen=True)
class DistributedConfig:
    """How ranks meet and what they send."""

    backend: str = setting("auto", "auto (NCCL on GPUs, gloo on CPUs), nccl, or gloo (several ranks may then share a GPU)", SAME_RESULT)
    device: str = setting("auto", "auto (a GPU where there is one), cpu or cuda", SAME_RESULT)
    wire: str = setting("fp32", "dtype in which exchanged tensors travel: fp32, bf16 or fp16", GOES_ON)
    timeout: float = setting(600.0, "seconds after which a rank that waits for another one ends and names it", SAME_RESULT)
    init_method: str = setting(
        "env://",
        "env://, or file:///path of a file that all ranks see, for launchers that open no port",
        SAME_RESULT,
    )

    def __post_init__(self) -> None:
        checks.one_of("backend", self.backend, ("auto", "nccl", "gloo"))
        checks.one_of("device", self.device, ("auto", "cpu", "cuda"))
        checks.one_of("wire", self.wire, WIRE_DTYPES)
        checks.positive("timeout", self.timeout)
        checks.between("timeout", self.timeout, 0, LONGEST_TIMEOUT)


class World:
    """One rank's view of all ranks. A world of one does no communication; its ledger counts what it would hand over."""

    def __init__(self, rank: int, size: int, device: torch.device, backend: str = "gloo", timeout: float = 600.0) -> None:
        self.rank, self.size, self.device, self.backend, self.timeout = rank, size, device, backend, timeout
        # Which of the ranks on this machine, and how many they are.
        self.local_rank, self.local_size = (int(os.environ.get(n, d)) if size > 1 else int(d) for n, d in _LOCAL)
        self.ledger = Ledger(size)
        self._come_to = 0  # collectives

    def hosts(self, client: int) -> bool:
        """Whether a client lives on this rank: clients are dealt out in turn."""
        return client % self.size == self.rank

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, flat: Tensor, purpose: str) -> Tensor:
        """Sum of ``flat`` [n] over all ranks, on the device where it came from. Every rank must enter.

        Raises:
            RankFailure: another rank is gone or did not come within ``distributed.timeout``; says which.
        """
        start = time.perf_counter()
        total = flat
        if self.size > 1:
            # NCCL reduces on the GPU; gloo takes host memory.
            carrier = flat.to(self.device if self.backend == "nccl" else "cpu", copy=True)
            try:
                self._all_reduce(carrier)
            except RuntimeError as error:
                raise RankFailure(self._who_is_missing(purpose, error)) from error
            if self.backend == "nccl":
                torch.cuda.synchronize(self.device)
            total = carrier.to(flat.device)
        self.ledger.enter(purpose, flat.numel() * flat.element_size(), time.perf_counter() - start)
        return total

    def _all_reduce(self, carrier: Tensor) -> None:
        """Sum in place. A rank that waits long says so to the others from time to time."""
        self._come_to += 1
        begin = said = time.monotonic()
        work = dist.all_reduce(carrier, async_op=True)
        while not _finished(work, self.backend):
            now = time.monotonic()
            if now - begin > waiting_time(self.timeout):  # gloo raises by itself, NCCL would end the process without a word
                raise RuntimeError(f"nothing within {now - begin:.0f} s")
            if now - said >= SAY_SO_AFTER:
                self._roll.here(self._come_to)
                said = now

    def _who_is_missing(self, purpose: str, error: RuntimeError) -> str:
        """One sentence about a collective that failed."""
        reason = str(error).splitlines()[0][:200]
        try:
            missing = self._roll.missing(self._come_to, 0.8 * (self.timeout - waiting_time(self.timeout)))
            who = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}" if missing else "a connection that broke"
        except RuntimeError:  # without a launcher's store, rank 0 keeps the one there is
            who = "rank 0, which is gone"
        return (
            f"rank {self.rank} waited in '{purpose}' for {who} ({reason}); "
            f"see what was said there, raise distributed.timeout if it was only slow, and go on with resume=auto"
        )

    @cached_property
    def _roll(self) -> RollCall:
        return RollCall(dist.distributed_c10d._get_default_store(), self.rank, self.size)

    def wait(self, purpose: str) -> None:
        """Return when every rank has come here."""
        self.sum(torch.zeros(1), purpose)

    def close(self) -> None:
        if self.size > 1 and dist.is_initialized():
            # In torch 2.6 gloo's thread may still wait for Python's lock, to let go of the last tensor, and the teardown
            # would wait for that thread with the lock in its hand.
            time.sleep(0.1)
            dist.destroy_process_group()
            PartialState._reset_state()


def waiting_time(timeout: float) -> float:
    """How long a collective may wait of the ``timeout`` seconds, so that time is left to find out who is missing."""
    return timeout - min(5.0, 0.2 * timeout)


def _finished(work: dist.Work, backend: str) -> bool:
    """Wait a while for a collective. Raises a RuntimeError if it failed."""
    if backend == "nccl":  # its own wait would give the communicator up; asking costs microseconds
        return bool(work.is_completed())
    try:
        work.wait(datetime.timedelta(seconds=SAY_SO_AFTER))
    except RuntimeError:
        if work.is_completed():  # it has failed, rather than this wait has come to its end
            raise
    return bool(work.is_completed())


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
        # NCCL's own watchdog, which ends the process, comes after this module has spoken.
        timeout = datetime.timedelta(seconds=config.timeout if backend == "nccl" else waiting_time(config.timeout))
        options = {"backend": backend, "timeout": timeout, "init_method": config.init_method}
        if config.init_method != "env://" and gpu:
            options |= {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    if gpu:
        _claim_gpu(backend)
    try:
        if options and config.init_method == "env://" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            del options["init_method"]
            options |= _fresh_store(waiting_time(config.timeout))
        state = PartialState(cpu=not gpu, **options)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"distributed: the ranks could not meet within {config.timeout:g} s ({str(error).splitlines()[0][:200]}); "
            f"check that all ranks were started, and distributed.init_method"
        ) from error
    if state.device.type == "cuda":
        torch.cuda.set_device(state.device)
    return World(state.process_index, state.num_processes, state.device, backend, config.timeout)


def _fresh_store(timeout: float) -> dict[str, object]:
    """Where the ranks meet in the launcher's store: not where those met that it started before them. All ranks enter.

    Raises:
        RuntimeError: a rank did not come within ``timeout`` seconds; says which.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    patience = datetime.timedelta(seconds=timeout)
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=patience)
    return {"store": dist.PrefixStore(fresh_name(store, rank, size, timeout), store), "rank": rank, "world_size": size}


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
