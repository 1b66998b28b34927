"""What clients answer with when they are tested, exported or asked: own tensors, the server's, and what they read of others.

Shape legend: C clients, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.pool import Pool
from pfedmma.stack.rules import OWN, Others


@dataclass(frozen=True)
class Answers:
    """Own state of clients beside the server's: ``shared`` [X], and its ``pool``, of which a client reads ``reads`` others.

    ``texts`` [1,K,...]: by test set, text features that all clients answer with in place of their own; usually there are none.
    """

    states: ClientStates
    shared: Tensor
    pool: Pool
    reads: int
    texts: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """{name: [C, *shape]} of these clients."""
        return self.states.layout.views(self.states.gather_to_answer(ids, self.shared))

    def others(self, ids: Sequence[int]) -> Others | None:
        """What they read of other clients; None if there is nothing to read.

        Who has just trained and answers with its own tensors has what it read before: what others sent in that round is not there yet.
        """
        return self.pool.others(self.states.layout, ids, self.shared, self.reads, as_read=self.states.answers == OWN)

    def own(self, client: int) -> bool:
        """Whether a client's answer may differ from that of another one that never trained."""
        return self.reads > 0 or self.states.has_own(client)
