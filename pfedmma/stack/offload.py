"""Where the private state of clients rests between their rounds: in memory up to a budget, beyond it in a temporary file.

A client has one row of ``width`` numbers, from the first time that it trains. On a GPU rows rest on the device up to
one budget, then in host memory up to another, then on disk; the rows that have gone unused longest move down. A client that never
trained has no row and costs nothing. This is for a rank that is alone on its node; several share theirs (`pfedmma.stack.shared_rows`).
"""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import IO

import torch
from torch import Tensor

from pfedmma.system.errors import RankFailure
from pfedmma.system.files import temporary_folder


@dataclass(frozen=True)
class Budget:
    """Bytes that may be taken on the device (a GPU) and in host memory."""

    device: float = 8e9
    host: float = 16e9

    def share(self, part: float) -> Budget:
        return Budget(self.device * part, self.host * part)


class OffloadedRows(MutableMapping[int, Tensor]):
    """Rows [width], fp32, by client id; safe for two threads.

    A row that is read must not be changed in place, and holds until the client's next one is kept.
    """

    def __init__(self, width: int, device: torch.device, budget: Budget) -> None:
        self.width, self.device = width, device
        self._tiers = [Tier(device, budget.device)] if device.type != "cpu" else []
        self._tiers.append(Tier(torch.device("cpu"), budget.host))
        self._file = RowFile(width)
        self._lock = threading.RLock()

    def __getitem__(self, client: int) -> Tensor:
        with self._lock:
            for tier in self._tiers:
                if client in tier.rows:
                    return tier.use(client)
            return self._file.read(client)

    def __setitem__(self, client: int, row: Tensor) -> None:
        with self._lock:
            first = self._tiers[0]
            if client in first.rows:  # in its old place: fresh memory costs more than the copy
                first.use(client).copy_(row)
            else:
                self._forget(client)
                self._put(0, client, row.detach().clone())  # by itself: a view would keep a whole stack in memory

    def __delitem__(self, client: int) -> None:
        with self._lock:
            if client not in self:
                raise KeyError(client)
            self._forget(client)

    def __contains__(self, client: object) -> bool:
        with self._lock:  # a row on its way from one tier to another is in neither
            return any(client in tier.rows for tier in self._tiers) or client in self._file.slots

    def __iter__(self) -> Iterator[int]:
        with self._lock:
            return iter([*(client for tier in self._tiers for client in tier.rows), *self._file.slots])

    def __len__(self) -> int:
        with self._lock:
            return sum(len(tier.rows) for tier in self._tiers) + len(self._file.slots)

    def at_hand(self, clients: Iterable[int]) -> bool:
        """Whether all rows that these clients have are in the fastest memory."""
        with self._lock:
            return all(client in self._tiers[0].rows or client not in self for client in clients)

    def bytes_by_place(self) -> dict[str, int]:
        """Where the rows rest, as {"cuda" or "cpu" or "disk": bytes}."""
        return {tier.device.type: tier.held for tier in self._tiers} | {"disk": 4 * self.width * len(self._file.slots)}

    def _put(self, level: int, client: int, row: Tensor) -> None:
        """Keep a row at a level, and move down what has gone unused longest until the rest fits."""
        if level == len(self._tiers):
            self._file.write(client, row)
            return
        for oldest, old in self._tiers[level].keep(client, row):
            self._put(level + 1, oldest, old)

    def _forget(self, client: int) -> None:
        for tier in self._tiers:
            tier.forget(client)
        self._file.forget(client)


class Tier:
    """Rows in one kind of memory, the one unused longest first."""

    def __init__(self, device: torch.device, limit: float) -> None:
        self.device, self.limit, self.held = device, limit, 0
        self.rows: OrderedDict[int, Tensor] = OrderedDict()

    def use(self, client: int) -> Tensor:
        """The row of a client that has one here."""
        self.rows.move_to_end(client)
        return self.rows[client]

    def keep(self, client: int, row: Tensor) -> list[tuple[int, Tensor]]:
        """Keep a row of a client that has none here; gives (client, row) of those that no longer fit."""
        self.rows[client] = row.to(self.device)
        self.held += row.nbytes
        gone = []
        while self.held > self.limit:
            oldest, old = self.rows.popitem(last=False)
            self.held -= old.nbytes
            gone.append((oldest, old))
        return gone

    def forget(self, client: int) -> None:
        if (row := self.rows.pop(client, None)) is not None:
            self.held -= row.nbytes


class RowFile:
    """Rows on disk, in a file without a name that is gone with the process. A row that is forgotten leaves its slot to the next."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.slots: dict[int, int] = {}
        self._free: list[int] = []
        self._used = 0
        self._file: IO[bytes] | None = None

    def write(self, client: int, row: Tensor) -> None:
        slot = self._free.pop() if self._free else self._used
        self._used = max(self._used, slot + 1)
        folder = temporary_folder()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="pfedmma-", dir=folder)  # noqa: SIM115, it lives as long as the rows
            self._file.seek(slot * 4 * self.width)
            self._file.write(row.cpu().numpy().tobytes())
            self._file.flush()
        except OSError as error:
            raise RankFailure(
                f"federation.host_gb: the state of clients beyond it cannot be kept in {folder} ({error.strerror}); "
                f"raise federation.host_gb, or set TMPDIR to a larger disk"
            ) from error
        self.slots[client] = slot

    def read(self, client: int) -> Tensor:
        """The row in host memory; KeyError if it is not here."""
        slot = self.slots[client]
        assert self._file is not None
        self._file.seek(slot * 4 * self.width)
        return torch.frombuffer(bytearray(self._file.read(4 * self.width)), dtype=torch.float32)

    def forget(self, client: int) -> None:
        if (slot := self.slots.pop(client, None)) is not None:
            self._free.append(slot)
