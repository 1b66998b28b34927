"""What tests of failures share with those of several ranks, and runs that draw few images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import small


@pytest.fixture(scope="module", autouse=True)
def few_images() -> Iterator[None]:
    """As ranks of `ranks.run_ranks` draw them."""
    with pytest.MonkeyPatch.context() as patch:
        small.few_images(patch, **small.RANKS_DRAW)
        yield
