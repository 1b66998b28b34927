"""What could stand for settings, files of settings and compare files on a command line; see `pfedmma.system.completion`."""

from __future__ import annotations

from typing import Any

from pfedmma.config import shipped
from pfedmma.config.schema import Config
from pfedmma.data.loading import NAMES
from pfedmma.methods import registry
from pfedmma.system import completion
from pfedmma.system.options import described

ENDINGS = tuple(suffix.removeprefix(".") for suffix in shipped.SUFFIXES)


def settings(prefix: str, **asked: Any) -> dict[str, str]:
    """Names of settings with "=" and their meanings; behind the "=" the values, where they are known words."""
    name, equals, _ = prefix.partition("=")
    if not equals:
        return {f"{item.name}=": item.meaning for item in described(Config)}
    words = {"data.name": NAMES, "method.name": list(registry.BUILT_IN)} | {
        item.name: ("true", "false") for item in described(Config) if item.type is bool
    }
    return {f"{name}={word}": "" for word in words.get(name, ())}


def config_files(prefix: str, **asked: Any) -> dict[str, str]:
    """Names of the package's files, and files that are there."""
    return dict.fromkeys(shipped.names(), "") | completion.files(prefix, ENDINGS)


def compare_items(prefix: str, **asked: Any) -> dict[str, str]:
    """Names of the package's compare files, files that are there, and settings."""
    if "=" in prefix:
        return settings(prefix)
    return dict.fromkeys(shipped.names(comparisons=True), "") | completion.files(prefix, ENDINGS) | settings(prefix)
