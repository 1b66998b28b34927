"""Reading any dataclass of settings from nested plain values: names, types and bounds checked, the nearest name told."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import reprlib
import types
import typing
from pathlib import Path
from typing import Any

from pfedmma.system import untrusted
from pfedmma.system.errors import UserError

MOST_CHARACTERS = 4096  # of a text
LARGEST = 3.4e38  # number
# What another value of a setting makes of a run: another run; the same run, which may go on with it; a run with the very same results;
# nothing, as it says where the run lies and who follows it.
ANOTHER_RUN, GOES_ON, SAME_RESULT, OUTSIDE = "another run", "goes on", "same result", "outside"


def setting(default: Any, meaning: str, change: str = ANOTHER_RUN) -> Any:
    """A field of a dataclass of settings.

    Args:
        meaning: what it sets, with unit and choices, in a line; tables of settings are made of it.
        change: `ANOTHER_RUN`, `GOES_ON` (it may change when a run is resumed), `SAME_RESULT` (no result depends on it) or `OUTSIDE`
            (no setting of the run itself).
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning, "change": change})


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file; a file that is missing, broken or no mapping is a `UserError`."""
    try:
        tree = untrusted.read_yaml(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the config file {path}: {getattr(error, 'strerror', None) or error}") from None
    except ValueError as error:
        raise UserError(f"the config file {path} is not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"the config file {path} must hold 'key: value' lines, not a {type(tree).__name__}")
    return tree


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"federation.rounds": 50, ...} in order of declaration."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        name = f"{prefix}{item.name}"
        flat.update(flatten(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value})
    return flat


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above``, and what ``below`` says where it says nothing."""
    result = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merged(result[name], value) if both else value
    return result


def dotted(tree: dict[str, Any]) -> dict[str, Any]:
    """Nested values from a mapping whose keys may be dotted: {"optimizer.lr": 0.1} -> {"optimizer": {"lr": 0.1}}."""
    result: dict[str, Any] = {}
    for name, value in tree.items():
        branch: dict[str, Any] = {}
        _insert(branch, str(name), dotted(value) if isinstance(value, dict) else value)
        result = merged(result, branch)
    return result


class _Raw(str):
    """Text from the command line: read as YAML unless the setting is a string."""


def _insert(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            child = tree[parent] = {}
        tree = child
    tree[last] = value


def _all_names(cls: Any, prefix: str = "") -> list[str]:
    names = []
    for name, kind in typing.get_type_hints(cls).items():
        names += _all_names(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else [f"{prefix}{name}"]
    return names


def _unknown(name: str, root: type, prefix: str) -> UserError:
    known = _all_names(root, prefix)
    last = name.rsplit(".", 1)[-1]
    near = [item for item in known if item.rsplit(".", 1)[-1] == last] or difflib.get_close_matches(name, known, 1, 0.6)
    if not near:
        like = difflib.get_close_matches(last, [item.rsplit(".", 1)[-1] for item in known], 1, 0.6)
        near = [item for item in known if item.rsplit(".", 1)[-1] in like]
    sections = ", ".join(f"{prefix}{item.name}" for item in dataclasses.fields(root))
    hint = f"did you mean {' or '.join(repr(item) for item in near)}?" if near else f"the sections are {sections}"
    return UserError(f"unknown setting '{name}'; {hint}")


def section(cls: type, tree: dict[str, Any], prefix: str = "", root: tuple[type, str] | None = None) -> Any:
    """A config dataclass from nested plain values, names and types checked; ``prefix`` ("method.") stands before names in errors.

    ``root``: the dataclass that an unknown name may be of, and its prefix; by default this one.
    """
    root = root or (cls, prefix)
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in tree.items():
        full = f"{prefix}{name}"
        if name not in hints:
            while isinstance(value, dict) and value and len(full) < 200:  # name the setting, not only its section
                name, value = next(iter(value.items()))
                full = f"{full}.{name}"
            raise _unknown(shown(full), *root)
        if dataclasses.is_dataclass(hints[name]):
            if value is None:
                value = {}
            if not isinstance(value, dict):
                raise UserError(f"'{full}' is a section; set one of its keys, for example {_all_names(hints[name], full + '.')[0]}")
            values[name] = section(hints[name], value, f"{full}.", root)
        else:
            values[name] = _convert(value, hints[name], full)
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{prefix}{error}") from None


def _convert(value: Any, kind: Any, name: str) -> Any:
    """``value`` as ``kind``, or a `UserError` that says what was expected."""
    if isinstance(value, _Raw):
        if kind is str:
            return _text(value, name)
        try:
            value = untrusted.parse_yaml(value)
        except ValueError:
            raise UserError(f"{name}: cannot read the value '{shown(value)}'; {_wanted(kind)} is expected") from None
    if kind is str:
        # YAML reads a bare none/12 as something else; a setting that is a string keeps what was written.
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return _text(str(value), name)
        if value is None:
            return ""
    elif kind is bool:
        if isinstance(value, bool):
            return value
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif kind is float:
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            with contextlib.suppress(ValueError):
                value = float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if LARGEST < abs(value) < math.inf:
                raise UserError(f"{name}: a number that float32 holds is expected, not '{shown(value)}'")
            return float(value)
    elif typing.get_origin(kind) is tuple:
        if isinstance(value, str):  # one item, or several with commas between them
            value = [item.strip() for item in value.split(",") if item.strip()]
        if value is None:
            value = []
        if isinstance(value, (list, tuple)):
            return tuple(_convert(item, typing.get_args(kind)[0], name) for item in value)
    elif isinstance(kind, types.UnionType):
        if value is None:
            return None
        return _convert(value, next(k for k in typing.get_args(kind) if k is not type(None)), name)
    raise UserError(f"{name}: {_wanted(kind)} is expected, not '{shown(value)}'")


def _text(value: str, name: str) -> str:
    """``value`` as text that a file name, a prompt and a page can hold."""
    if len(value) > MOST_CHARACTERS:
        raise UserError(f"{name}: a text of at most {MOST_CHARACTERS} characters is expected, not one of {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}: text in UTF-8 is expected, not '{shown(value)}'") from None
    if "\0" in value:
        raise UserError(f"{name}: text without a zero character is expected, not '{shown(value)}'")
    return str(value)


def shown(value: Any) -> str:
    """A value in an error message: its beginning, in characters that can be shown."""
    text = reprlib.repr(value) if isinstance(value, (list, dict)) else str(value)
    start = text if len(text) <= 80 else f"{text[:80]}..."
    return start if start.isprintable() else ascii(start)[1:-1]


def _wanted(kind: Any) -> str:
    words = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
    if typing.get_origin(kind) is tuple:
        return "a list"
    return words.get(kind, "a number or null")
