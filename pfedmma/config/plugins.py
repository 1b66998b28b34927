"""Code of the user's own that the settings name: files or modules that register methods, imported before the settings are read.

A run keeps the SHA-256 of each beside its name, and goes on, or is tested, with that code alone. Of a module, that is its own file; what
the module itself imports is not compared.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from pfedmma.system.errors import UserError
from pfedmma.system.files import expanded
from pfedmma.system.options import shown


class Plugins(NamedTuple):
    """``names``: files by their whole paths, and modules; ``hashes``: the SHA-256 of each, in the same order."""

    names: tuple[str, ...]
    hashes: tuple[str, ...]


def load(names: Sequence[str], hashes: Sequence[str] = (), run_dir: str = "") -> Plugins:
    """Import each of ``names`` once in this process.

    Args:
        names: files, from where the program was started (a file that is not there any more is also found there by its name alone, if its
            hash is known); or modules by their dotted names.
        hashes: as a run keeps them; empty where none are known yet.
        run_dir: of the run; code inside it is refused, as a folder of results may come from anybody.

    Raises:
        UserError: a plugin is not there, is another one than ``hashes`` say, or fails when it is imported.
    """
    if hashes and len(hashes) != len(names):
        raise UserError(f"plugin_hashes: {len(hashes)} for {len(names)} plugins; leave plugin_hashes out, as a run fills it in")
    known = hashes or [""] * len(names)
    found = [_load_file(n, h, run_dir) if _is_file(n) else _load_module(n, h) for n, h in zip(names, known, strict=True)]
    return Plugins(tuple(name for name, _ in found), tuple(made for _, made in found))


def _is_file(name: str) -> bool:
    return name.endswith(".py") or "/" in name


def _load_file(name: str, known: str, run_dir: str) -> tuple[str, str]:
    path = expanded(name).absolute()
    if known and not path.exists():
        path = Path(path.name).absolute()
    if run_dir and path.resolve().is_relative_to(expanded(run_dir).resolve()):
        raise UserError(f"plugins: {_called(name)} lies inside the run folder, which holds no code; keep it elsewhere")
    source = _read(path, name)
    made = _checked(hashlib.sha256(source).hexdigest(), known, name)
    module = f"pfedmma_plugin_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}_{made}"
    if module not in sys.modules:
        _run(module, path, source)
    return str(path), made


def _load_module(name: str, known: str) -> tuple[str, str]:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None or spec.origin is None or not spec.has_location:
        raise UserError(f"plugins: there is no module '{shown(name)}'; write a file as name.py, or a module that Python finds")
    made = _checked(hashlib.sha256(_read(Path(spec.origin), name)).hexdigest(), known, name)
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error
    return name, made


def _called(name: str) -> str:
    """A plugin in a message: the last part of a path, which a whole one might not show."""
    return shown(Path(name).name)


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        where = f" (looked for at {path})" if str(path) != name else ""
        raise UserError(
            f"plugins: cannot read {shown(name)}: {error.strerror}{where}; give the path from where the program is started"
        ) from None


def _checked(made: str, known: str, name: str) -> str:
    if known and made != known:
        raise UserError(
            f"plugins: {_called(name)} is not the code that the run was made with (SHA-256 {known[:12]}... then, {made[:12]}... now); "
            "restore it, or start a new run"
        )
    return made


def _run(name: str, path: Path, source: bytes) -> None:
    """Run just the bytes that were hashed as a module, which is known by ``name`` from then on."""
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their own module up
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(str(path), error) from error


def _failed(name: str, error: BaseException) -> UserError:
    """The line of the plugin in which it failed, as far as that is known."""
    if isinstance(error, UserError):
        return UserError(f"plugins: {_called(name)}: {error}")
    trace, line = error.__traceback__, getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename.endswith(Path(name).name) else line
        trace = trace.tb_next
    at = f", line {line}" if line else ""
    return UserError(f"plugins: {_called(name)} cannot be imported: {type(error).__name__}: {shown(str(error))}{at}; repair it")
