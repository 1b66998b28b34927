"""The parameters with which clients begin: the same for all, or private ones that are drawn for each.

Shape legend: P parameters of one client, Q of them private.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

ALIKE, APART = CHOICES = ("shared", "own")  # of ``method.private_init``


@dataclass(frozen=True)
class Start:
    """``common`` [P]: of every client. ``private``: a client's own [Q] by its id, in place of those in ``common``; None: all are alike.

    Nothing of ``private`` is kept: it gives the same numbers whenever a client is asked for that has not trained.
    """

    common: Tensor
    private: Callable[[int], Tensor] | None = None
