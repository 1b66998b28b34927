"""The data sets by name.

A further data set is an entry in the `DATA_SETS` of the file of its family, or a new file with one and its line here.
"""

from __future__ import annotations

from pfedmma.data.sources import cifar, coop, folders, lists, shapes
from pfedmma.data.sources.base import Open

DATA_SETS: dict[str, Open] = {
    **shapes.DATA_SETS,
    **coop.DATA_SETS,
    **lists.DATA_SETS,
    **cifar.DATA_SETS,
    **folders.DATA_SETS,
}
NAMES = tuple(DATA_SETS)
