"""Data sets as a run opens them, and what a user is told where that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfedmma.data.loading import DataConfig, open_source
from pfedmma.data.sources.base import Source
from pfedmma.system.errors import UserError


def opened(name: str, root: Path | str, seed: int = 0, **settings: object) -> Source:
    return open_source(DataConfig(name=name, root=str(root), **settings), seed, 224)  # type: ignore[arg-type]


def refusal(name: str, root: Path | str) -> str:
    with pytest.raises(UserError) as error:
        opened(name, root)
    message = str(error.value)
    assert message.startswith("data.root: ") and "\n" not in message
    return message
