"""Where the private state of clients rests if a node has several ranks: in a file that they map, so that any of them can train a client.

The system keeps such a file in memory as far as there is room. Each row is written by the rank that has trained its client, and read by
another one after a collective that both have entered: the end of a round's training is one. On a GPU a rank also keeps the rows that
it wrote on the device, up to a budget, for as long as no other rank writes them; who always trains the same clients reads nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pfedmma.stack.offload import Tier
from pfedmma.system.shared_file import SharedFile, create_shared_file

WHAT = "the state of clients"
_COUNT = torch.int32  # how often a row was written; as wide as its numbers, which it stands behind


def create_rows(path: Path, clients: int, width: int) -> None:
    """A new file for `SharedRows` of so many clients, its owner's alone. Raises a `RankFailure` if there is no room for it."""
    create_shared_file(path, 4 * width * clients, _COUNT.itemsize * clients, WHAT)


class SharedRows(Mapping[int, Tensor]):
    """Rows [width], fp32, by client id, of those of the ``clients`` that have one; safe for two threads of a rank.

    A row that is read must not be changed in place, and holds until the client's next one is kept. ``limit``: bytes of rows on the device.
    """

    def __init__(self, path: Path, clients: Sequence[int], width: int, device: torch.device, limit: float) -> None:
        self.width, self.device = width, device
        self._slots = {client: slot for slot, client in enumerate(clients)}
        self._file = SharedFile(path, 4 * width * len(clients), _COUNT.itemsize * len(clients), WHAT)
        self._rows = self._file.content.view(torch.float32).view(len(clients), width)
        self._counts = self._file.marks.view(_COUNT)
        self._near = Tier(device, 0.0 if device.type == "cpu" else limit)
        self._near_counts: dict[int, int] = {}  # of the rows there, when they were written
        self._lock = threading.RLock()

    def __getitem__(self, client: int) -> Tensor:
        with self._lock:
            if client not in self:
                raise KeyError(client)
            return self._near.use(client) if self._is_near(client) else self._rows[self._slots[client]]

    def __setitem__(self, client: int, row: Tensor) -> None:
        with self._lock:
            slot = self._slots[client]
            self._file.write(4 * self.width * slot, row.detach().cpu())
            self._counts[slot] += 1
            if self.device.type != "cpu":
                self._near_counts[client] = int(self._counts[slot])
                self._near.forget(client)
                self._near.keep(client, row.detach().clone())

    def __contains__(self, client: object) -> bool:
        return client in self._slots and bool(self._counts[self._slots[client]])  # type: ignore[index]

    def __iter__(self) -> Iterator[int]:
        return iter([client for client, count in zip(self._slots, self._counts.tolist(), strict=True) if count])

    def __len__(self) -> int:
        return int(self._counts.count_nonzero())

    def at_hand(self, clients: Iterable[int]) -> bool:
        """Whether all rows that these clients have are in the fastest memory."""
        with self._lock:
            return self.device.type == "cpu" or all(self._is_near(client) or client not in self for client in clients)

    def bytes_by_place(self) -> dict[str, int]:
        """Where the rows rest, as {"cuda": bytes, copies on this rank's device; "shared": bytes, together with the other ranks}."""
        near = {} if self.device.type == "cpu" else {self.device.type: self._near.held}
        return near | {"shared": 4 * self.width * len(self)}

    def _is_near(self, client: int) -> bool:
        """Whether the row on the device is the newest."""
        return client in self._near.rows and self._near_counts[client] == int(self._counts[self._slots[client]])
