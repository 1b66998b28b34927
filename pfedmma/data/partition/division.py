"""How a data set is to be divided among clients."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Division:
    """Among how many ``clients``, and by which ``seed``.

    - ``shots``: training images a class (and domain, where there are any) that are used, 0 for all.
    - ``beta``: concentration of the Dirichlet draws, for protocols that draw; smaller is more skewed.
    - ``least``: training images that every client must get.
    - ``held_out``: a domain that no client holds, by name; empty for none.
    """

    clients: int
    seed: int
    shots: int = 0
    beta: float = 0.5
    least: int = 1
    held_out: str = ""
