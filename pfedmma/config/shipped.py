"""The files of settings and of comparisons that come with the package, known by their names: ``--config demo``, ``compare embedded``."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from pfedmma.system.errors import UserError
from pfedmma.system.options import shown

PACKAGE = Path(__file__).resolve().parents[1]
COMPARE = "compare"  # the folder of compare files; all others hold settings
SUFFIXES = (".yaml", ".yml")


def folder() -> Path:
    """Where they lie: inside the package where it is installed, beside it in the repository and where that is installed editable."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def names(comparisons: bool = False) -> list[str]:
    """Names such as "demo" and "methods/fedlora"; of compare files such as "embedded"."""
    start = folder() / COMPARE if comparisons else folder()
    found = (path.relative_to(start).with_suffix("").as_posix() for path in start.rglob("*.yaml"))
    return sorted(name for name in found if comparisons or not name.startswith(f"{COMPARE}/"))


def located(text: str | Path, comparisons: bool = False, beside: Path | None = None) -> Path:
    """The file that a user means: that of a path, or that of the package of a name without the suffix.

    Args:
        text: a `Path` is never taken for a name.
        comparisons: whether a compare file is meant.
        beside: the folder that a relative path starts from; by default the one where the program was started.

    Raises:
        UserError: there is no such file; names the near ones. A file that cannot be read is found here.
    """
    name, path = str(text), (beside or Path()) / text
    if isinstance(text, Path) or os.path.isfile(path):  # unlike Path's, no error on a name that cannot be
        return path
    known = names(comparisons)
    if name in known:
        return folder() / (COMPARE if comparisons else "") / f"{name}.yaml"
    if os.path.lexists(path):
        return path
    if path.suffix not in SUFFIXES:
        near = difflib.get_close_matches(name, known, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the package has {', '.join(n for n in known if '/' not in n)}"
        raise UserError(f"there is no {'compare' if comparisons else 'config'} file '{shown(name)}', in the package or here; {hint}")
    if own := _of_the_package(path, known):
        raise UserError(f"cannot read the config file {path}: there is no such file; the package has one, write {own}")
    return path


def _of_the_package(path: Path, known: list[str]) -> str:
    """The longest name that a path ends in, empty if there is none."""
    parts = path.with_suffix("").parts
    ends = ["/".join(parts[-length:]) for length in range(len(parts), 0, -1)]
    return next((end for end in ends if end in known), "")
