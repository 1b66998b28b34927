"""The only module that touches torch.distributed.

`open_world` is called once, in ``main``; it gives a `World` of one rank or many with the same face. Every collective of a run
is a `World.sum`, and each is entered in the `Ledger` with its purpose.
"""

from __future__ import annotations

import datetime
import functools
import os
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.torch_version import TorchVersion

from pfedmma.comm.devices import identity, own_gpu, refuse_shared
from pfedmma.comm.environment import Launch, forget_empty, keeps_store, store_address, take_from_mpi, unused_precision, whole_number
from pfedmma.comm.ledger import Ledger
from pfedmma.comm.missing_ranks import RollCall
from pfedmma.comm.patience import Silence, within
from pfedmma.comm.rendezvous import bound_socket, fresh_name
from pfedmma.system import checks
from pfedmma.system.console import warn
from pfedmma.system.errors import RankFailure, UserError
from pfedmma.system.lazy import Library
from pfedmma.system.options import SAME_RESULT, setting

accelerate = Library("accelerate")

WIRE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LIBUV_TAKES_SOCKETS = "2.14"  # torch from which that backend of the store is known to serve at a socket it is given; 2.6 refuses
LONGEST_TIMEOUT = 1e6  # seconds, more than a week
ASK_ON_FOR = 1e-3  # seconds a rank asks NCCL without a pause whether a collective is done; an exchange takes less
SAY_SO_AFTER = 1.0  # seconds of waiting, and again after each as many, a rank says for the others that it is here


@dataclass(frozen=True)
class DistributedConfig:
    """How ranks meet and what they send."""

    backend: str = setting("auto", "auto (NCCL on GPUs, gloo on CPUs), nccl, or gloo (several ranks may then share a GPU)", SAME_RESULT)
    device: str = setting("auto", "auto (a GPU where there is one), cpu or cuda", SAME_RESULT)
    wire: str = setting("fp32", "dtype in which exchanged tensors travel: fp32, bf16 or fp16")
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

    def __init__(
        self, rank: int, size: int, device: torch.device, backend: str = "gloo", timeout: float = 600.0, keeper: str = "rank 0"
    ) -> None:
        self.rank, self.size, self.device, self.backend, self.timeout = rank, size, device, backend, timeout
        self.keeper = keeper  # who keeps the store where the ranks have met
        # Which of the ranks on this machine, and how many they are.
        self.local_rank = whole_number("LOCAL_RANK", 0) if size > 1 else 0
        self.local_size = whole_number("LOCAL_WORLD_SIZE", 1) if size > 1 else 1
        self.ledger = Ledger(size)
        self._come_to = 0  # collectives

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
        patience = waiting_time(self.timeout)
        work = self._begin(carrier, patience)
        while not _finished(work, self.backend):
            now = time.monotonic()
            if now - begin > patience:  # gloo raises by itself, NCCL would end the process without a word
                raise RuntimeError(f"nothing within {now - begin:.0f} s")
            if now - said >= SAY_SO_AFTER:
                self._roll.here(self._come_to, begin + patience - now)
                said = now
            if self.backend == "nccl" and now - begin > ASK_ON_FOR:
                time.sleep(0.1 * ASK_ON_FOR)  # other threads of this process may prepare images meanwhile
        if self.backend == "nccl":
            _raise_if_failed(work, dist.distributed_c10d._get_default_group()._get_backend(self.device))

    def _begin(self, carrier: Tensor, patience: float) -> dist.Work:
        """Start a collective. NCCL's first one looks for the other ranks in the store, and may wait there for ever."""
        if self.backend != "nccl" or self._come_to > 1:
            return dist.all_reduce(carrier, async_op=True)

        def first() -> dist.Work:
            if self.device.type == "cuda":  # each thread has its own
                torch.cuda.set_device(self.device)
            return dist.all_reduce(carrier, async_op=True)

        return within(patience, first)

    def _who_is_missing(self, purpose: str, error: RuntimeError) -> str:
        """One sentence about a collective that failed."""
        reason = str(error).splitlines()[0][:200]
        try:
            missing = self._roll.missing(self._come_to, 0.8 * (self.timeout - waiting_time(self.timeout)))
            who = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}" if missing else "a connection that broke"
        except Silence:
            who = f"{self.keeper}, which keeps the store where the ranks have met and does not answer"
        except RuntimeError:
            who = f"{self.keeper}, which is gone"
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
        if dist.is_initialized():  # a launcher's rank has a group even where it is alone
            # In torch 2.6 gloo's thread may still wait for Python's lock, to let go of the last tensor, and the teardown
            # would wait for that thread with the lock in its hand.
            time.sleep(0.1)
            dist.destroy_process_group()
            accelerate.PartialState._reset_state()


def waiting_time(timeout: float) -> float:
    """How long a collective may wait of the ``timeout`` seconds, so that time is left to find out who is missing."""
    return timeout - min(5.0, 0.2 * timeout)


def _finished(work: dist.Work, backend: str) -> bool:
    """Wait a while for a collective. Raises a RuntimeError if gloo's failed; NCCL calls one that failed completed, too."""
    if backend == "nccl":  # its own wait would give the communicator up; asking costs microseconds
        return bool(work.is_completed())
    try:
        work.wait(datetime.timedelta(seconds=SAY_SO_AFTER))
    except RuntimeError:
        if work.is_completed():  # it has failed, or has ended well just after this wait came to its end: it says which
            work.wait(datetime.timedelta(seconds=SAY_SO_AFTER))
    return bool(work.is_completed())


def _raise_if_failed(work: Any, backend: Any) -> None:
    """Raise a RuntimeError if a collective of NCCL has not ended well. Which of these says so depends on the version of torch."""
    result = work.get_future_result() if hasattr(work, "get_future_result") else None
    if result is None or (result.done() and result.value() != 0):
        found = work.exception() if hasattr(work, "exception") else None  # deprecated, so newer versions are not asked before
        if found is not None or result is not None:
            raise RuntimeError(str(found or "NCCL says that it has failed"))
    work.wait(datetime.timedelta(seconds=SAY_SO_AFTER))  # it is completed, nothing is waited for; raises what was found
    # An error of the communicator is found after a while; what is asked of it from then on is called completed at once.
    state = backend.get_error() if hasattr(backend, "get_error") else None
    if state is not None and state.name != "SUCCESS":
        raise RuntimeError(f"NCCL says {state.name}")


def open_world(config: DistributedConfig) -> World:
    """Join the ranks that the launcher started; without a launcher, a world of one.

    The environment of ``torchrun``, ``accelerate launch``, MPI, or whoever sets RANK, WORLD_SIZE and LOCAL_RANK is read here.

    Raises:
        UserError: a GPU or backend that this machine does not have, or ranks that do not come; says which.
    """
    forget_empty()
    take_from_mpi()
    launch = Launch.from_environment()
    gpu = config.device != "cpu" and torch.cuda.is_available()
    if config.device == "cuda" and not gpu:
        raise UserError("distributed.device: 'cuda' is asked for, but torch sees no GPU here; use 'auto' or 'cpu'")
    if config.backend == "nccl" and not gpu:
        raise UserError("distributed.backend: 'nccl' needs a GPU for each rank; use 'auto' or 'gloo'")
    backend = config.backend if config.backend != "auto" else "nccl" if gpu else "gloo"
    device = own_gpu(launch.local_rank if launch else 0) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)  # accelerate would count for itself
    keeper = _keeper(config.init_method)
    try:
        if launch:
            within(config.timeout, lambda: _meet(config, launch, backend, device))
        state = accelerate.PartialState(cpu=not gpu, **({"backend": backend} if launch else {}))
    except Silence as error:
        raise _nobody_met(config, f"{keeper}, which keeps the store where the ranks meet, does not answer") from error
    except (RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise _nobody_met(config, str(error).splitlines()[0][:200]) from error
    rank, size = (launch.rank, launch.size) if launch else (state.process_index, state.num_processes)
    if rank == 0 and (line := unused_precision()):
        warn(line)
    return World(rank, size, device, backend, config.timeout, keeper)


def _nobody_met(config: DistributedConfig, reason: str) -> UserError:
    return UserError(
        f"distributed: the ranks could not meet within {config.timeout:g} s ({reason}); "
        f"check that all ranks were started, and distributed.init_method"
    )


def _keeper(init_method: str) -> str:
    """Who keeps the store where the ranks meet, in words."""
    if init_method.startswith("file:"):
        return f"the file of distributed.init_method={init_method}"
    return f"the launcher at {os.environ.get('MASTER_ADDR')}" if init_method == "env://" and keeps_store() else "rank 0"


def _meet(config: DistributedConfig, launch: Launch, backend: str, device: torch.device) -> None:
    """Make the group of all ranks. All enter.

    Raises:
        UserError: ranks that NCCL needs GPUs for share one.
        RuntimeError: a rank did not come; says which.
    """
    patience = waiting_time(config.timeout)
    store = _base_store(config.init_method, launch, datetime.timedelta(seconds=patience))
    store = dist.PrefixStore(fresh_name(store, launch.rank, launch.size, patience), store)
    timeout = patience
    if backend == "nccl":
        if launch.size > 1:
            refuse_shared(store, launch.rank, launch.size, identity(device), patience)
        # NCCL's own watchdog ends the process as soon as it finds an error, and leaves no time to say who is missing; torchrun asks for it.
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
        timeout = config.timeout
    dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.size, timeout=datetime.timedelta(seconds=timeout))


def _base_store(init_method: str, launch: Launch, timeout: datetime.timedelta) -> dist.Store:
    """The store that a file, the launcher, or rank 0 keeps. A rank alone needs nobody's."""
    if launch.size == 1:
        return dist.HashStore()
    if init_method != "env://":
        return next(iter(dist.rendezvous(init_method, launch.rank, launch.size, timeout=timeout)))[0]
    host, port = store_address()
    if launch.rank > 0 or keeps_store():
        return dist.TCPStore(host, port, is_master=False, timeout=timeout)
    keep = functools.partial(dist.TCPStore, host, port, is_master=True, timeout=timeout, wait_for_workers=False)
    if (bound := bound_socket(host, port)) is None:
        return keep()
    return keep(master_listen_fd=bound.detach(), use_libuv=TorchVersion(torch.__version__) >= LIBUV_TAKES_SOCKETS)
