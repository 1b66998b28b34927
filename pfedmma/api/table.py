"""Tables as columns of NumPy arrays, without pandas or for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pfedmma.system.errors import UserError


class Table(Mapping[str, np.ndarray]):
    """Columns [rows] by name, in order: whole numbers as int64, numbers as float64 with NaN where there is none, others as objects."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self._columns = {name: _array(values) for name, values in columns.items()}

    @classmethod
    def from_lines(cls, lines: Sequence[Sequence[Any]]) -> Table:
        """From lines as they stand in a CSV file, the first of which holds the names."""
        head, *rows = lines
        return cls({name: [row[number] for row in rows] for number, name in enumerate(head)})

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        """Number of columns, as of any mapping."""
        return len(self._columns)

    @property
    def rows(self) -> int:
        return max(map(len, self._columns.values()), default=0)

    def __repr__(self) -> str:
        return f"<{self.rows} rows of {', '.join(self._columns)}>"

    def frame(self) -> Any:
        """The table as a pandas DataFrame.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            said = "frame() needs pandas; pip install \"pfedmma[pandas]\", or take the columns, which are NumPy arrays: table['round']"
            raise UserError(said) from None
        return pandas.DataFrame(dict(self._columns))


def _array(values: Sequence[Any]) -> np.ndarray:
    known = [value for value in values if value is not None]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known):
        whole = bool(values) and len(known) == len(values) and all(isinstance(value, int) for value in known)
        return np.array([np.nan if value is None else value for value in values], np.int64 if whole else np.float64)
    found = np.empty(len(values), object)
    found[:] = values
    return found
