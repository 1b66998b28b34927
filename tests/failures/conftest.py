"""What tests of failures share with those of several ranks, and runs that draw few images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pfedmma.data.sources import shapes


@pytest.fixture(scope="module", autouse=True)
def few_images() -> Iterator[None]:
    """As ranks of `ranks.run_ranks` draw them."""
    with pytest.MonkeyPatch.context() as patch:
        for split, count in {"train": 8, "val": 1, "test": 1}.items():
            patch.setitem(shapes.PER_CLASS, split, count)
        yield
