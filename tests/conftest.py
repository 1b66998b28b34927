"""Fixtures that tests in several folders share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from torch import nn

from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.methods import registry


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Leave out what takes long, unless it is asked for."""
    if not os.environ.get("PFEDMMA_SLOW_TESTS"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes long: make test-slow"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images beside the repository; they may not be copied into it."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real images: ../shared/data is not there")
    return folder


@pytest.fixture(scope="session")
def tiny_clip() -> nn.Module:
    """The open_clip model behind ``backbone.name=tiny``, with random weights; no test may change them."""
    return create_model(BackboneConfig("tiny", "none"), seed=0)


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No method is registered but the package's own, and what a test imports as a plugin is forgotten after it."""
    monkeypatch.setattr(registry, "REGISTERED", {})
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("pfedmma_plugin_", "own_")):
            del sys.modules[name]
