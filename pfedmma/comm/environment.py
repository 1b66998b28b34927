"""What a launcher tells a rank, in environment variables. One that is there and empty says nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pfedmma.system.errors import UserError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
DEFAULT_PORT = 29500  # torch's own
# How Open MPI, MPICH and Intel MPI, and SLURM's srun with PMI say the same.
OF_MPI = {
    "RANK": ("OMPI_COMM_WORLD_RANK", "PMI_RANK"),
    "WORLD_SIZE": ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
    "LOCAL_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"),
    "LOCAL_WORLD_SIZE": ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"),
}


def whole_number(name: str, default: int) -> int:
    """A variable that counts something.

    Raises:
        UserError: it holds something else.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit()):
        raise UserError(
            f"{name}: the environment says {text!r}, which is no whole number; a launcher sets it, unset it to start without one"
        )
    return int(text)


def forget_empty() -> None:
    """Unset the variables of launchers that are empty; libraries would read them as numbers."""
    for name in NAMES:
        if name in os.environ and not os.environ[name].strip():
            del os.environ[name]


def take_from_mpi() -> None:
    """Set the variables of launchers from those of MPI, where it has started several processes and nobody else has."""
    said = {name: next(filter(None, (os.environ.get(other, "").strip() for other in others)), "") for name, others in OF_MPI.items()}
    if said["WORLD_SIZE"] in ("", "1") or any(name in os.environ for name in OF_MPI):
        return
    os.environ.update({name: value for name, value in said.items() if value})


@dataclass(frozen=True)
class Launch:
    """One rank's place among those that a launcher has started."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the ranks of this machine
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> Launch | None:
        """None without a launcher.

        Raises:
            UserError: what it says makes no sense.
        """
        size = whole_number("WORLD_SIZE", 1)
        if not os.environ.get("LOCAL_RANK", "").strip() and size <= 1:
            return None
        rank, local = whole_number("RANK", 0), whole_number("LOCAL_RANK", 0)
        if rank >= size:
            raise UserError(f"RANK: the environment says rank {rank} of WORLD_SIZE={size}; ranks count from 0 to WORLD_SIZE - 1")
        return cls(rank, size, local, whole_number("LOCAL_WORLD_SIZE", 1))


def keeps_store() -> bool:
    """Whether the launcher keeps the store in which the ranks meet (torchrun and accelerate launch do), rather than rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def store_address() -> tuple[str, int]:
    """Host and port at which the ranks meet.

    Raises:
        UserError: the launcher has not said.
    """
    host = os.environ.get("MASTER_ADDR", "").strip()
    if not host:
        raise UserError(
            "distributed.init_method: env:// needs MASTER_ADDR and MASTER_PORT in the environment, the address of rank 0 and a free port "
            "there; torchrun and accelerate launch set them"
        )
    return host, whole_number("MASTER_PORT", DEFAULT_PORT)


def unused_precision() -> str:
    """One line where accelerate was asked for a mixed precision, which is a setting here; else ""."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "").strip().lower()
    if asked in ("", "no"):
        return ""
    return f"accelerate's mixed_precision '{asked}' changes nothing here; backbone.precision decides, as in backbone.precision=bf16"
