"""Which GPU a rank computes on."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from typing import Any

import torch

from pfedmma.system.errors import UserError

_KEY = "pfedmma/gpu-{}"


def own_gpu(local_rank: int) -> torch.device:
    """The GPU of a rank of this machine, always with its index.

    A launcher may show all GPUs to each rank, or to each its own (``srun --gpus-per-task=1``). Ranks that outnumber the GPUs they see share
    them, which gloo allows and `refuse_shared` finds.
    """
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def identity(device: torch.device) -> str:
    """A word that two ranks share if, and only if, they have the same GPU. It does not tell which it is."""
    properties = torch.cuda.get_device_properties(device)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    # Versions of torch that do not know a GPU's own number: its place among those that the machine shows.
    own = getattr(properties, "uuid", None) or f"{visible}/{device.index}"
    return hashlib.sha256(f"{platform.node()}/{own}".encode()).hexdigest()[:16]


def refuse_shared(store: Any, rank: int, size: int, own: str, timeout: float) -> None:
    """See that no other rank has the GPU ``own``. All enter, and all come to the same end.

    Args:
        store: a ``torch.distributed.Store`` that all ranks share.
        timeout: seconds to wait for the others.

    Raises:
        UserError: two ranks have the same GPU; says which.
        RuntimeError: somebody did not come; says who.
    """
    store.set(_KEY.format(rank), own)
    deadline, left = time.monotonic() + timeout, list(range(size))
    while left := [other for other in left if not store.check([_KEY.format(other)])]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"rank {left[0]} did not say which GPU it has")
        time.sleep(0.02)
    first: dict[str, int] = {}
    for other in range(size):
        gpu = store.get(_KEY.format(other)).decode()
        if gpu in first:
            raise UserError(
                f"distributed.backend: NCCL needs a GPU for each rank, and ranks {first[gpu]} and {other} have the same one; "
                f"start fewer ranks, or set distributed.backend=gloo to share GPUs"
            )
        first[gpu] = other
