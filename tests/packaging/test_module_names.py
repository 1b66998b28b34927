"""No module of the project is named like one of Python itself.

Python puts the folder of a script that is started by its path before its own library: a neighbour called ``numbers.py`` would be what torch
imports. (Ruff's A005 looks at whole paths of modules, so it does not see this.)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("pfedmma", "tests", "benchmarks", "launch")


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """The name of each module and package below ``root``, and its file."""
    for room in ROOMS:
        for file in (root / room).rglob("*.py"):
            yield (file.parent.name if file.name == "__init__.py" else file.stem), file


def like_pythons_own(root: Path) -> list[str]:
    return [f"{file.relative_to(root)}" for name, file in modules(root) if name in sys.stdlib_module_names]


def test_no_module_has_the_name_of_one_of_python() -> None:
    assert len(list(modules(ROOT))) > 300
    assert like_pythons_own(ROOT) == []


def test_it_is_seen(tmp_path: Path) -> None:
    for name in ("tests/support/numbers.py", "pfedmma/queue/__init__.py", "pfedmma/queue/items.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(like_pythons_own(tmp_path)) == ["pfedmma/queue/__init__.py", "tests/support/numbers.py"]
