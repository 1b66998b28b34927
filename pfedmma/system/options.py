"""Reading any dataclass of settings from nested plain values: names, types and bounds checked, the nearest name told."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pfedmma.system import untrusted
from pfedmma.system.errors import UserError

MOST_CHARACTERS = 4096  # of a text
LARGEST = 3.4e38  # number
# What another value of a setting makes of a run: another run; the same run, which may go on with it; a run with the very same results;
# nothing, as it says where the run lies and who follows it.
CHANGES = ANOTHER_RUN, GOES_ON, SAME_RESULT, OUTSIDE = "another run", "goes on", "same result", "outside"


Earlier = Callable[[Mapping[str, Any]], Any]  # a value, by the other settings {"data.name": "shapes", ...}


def setting(default: Any, meaning: str, change: str = ANOTHER_RUN, earlier: Earlier | None = None) -> Any:
    """A field of a dataclass of settings.

    Args:
        meaning: what it sets, with unit and choices, in a line; tables of settings are made of it.
        change: `ANOTHER_RUN`, `GOES_ON` (it may change when a run is resumed), `SAME_RESULT` (no result depends on it) or `OUTSIDE`
            (no setting of the run itself).
        earlier: what versions did that had no such setting, where that is not the default.
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning, "change": change, "earlier": earlier})


class Described(NamedTuple):
    """What a dataclass says about one of its settings; ``name`` is dotted."""

    name: str
    type: Any
    default: Any
    meaning: str
    change: str
    earlier: Earlier | None = None


class Open:
    """A base for dataclasses of settings to which sub-sections are added from elsewhere, of which one is in use: its field ``own``."""

    @classmethod
    def sections(cls) -> dict[str, type]:
        """Name -> dataclass of every sub-section that there is."""
        raise NotImplementedError

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Any:
        """From the values of fields and sub-sections by name."""
        raise NotImplementedError

    def section_in_use(self) -> str:
        """The name of the sub-section that ``own`` holds."""
        raise NotImplementedError


def fields_of(cls: type) -> list[tuple[str, Any, dataclasses.Field | None]]:
    """Name, type and field of each setting and sub-section of ``cls``, in order; the type of a sub-section is a dataclass."""
    kinds = typing.get_type_hints(cls)
    declared: Any = cls  # a dataclass, which `type` does not say
    found: list[tuple[str, Any, dataclasses.Field | None]] = [(item.name, kinds[item.name], item) for item in dataclasses.fields(declared)]
    if not issubclass(cls, Open):
        return found
    return [*(item for item in found if item[0] != "own"), *((name, kind, None) for name, kind in cls.sections().items())]


def is_section(kind: Any) -> bool:
    """Whether a type among `fields_of` is that of a sub-section."""
    return dataclasses.is_dataclass(kind)


def value_of(config: Any, name: str) -> Any:
    """The value of a setting, or the dataclass of a sub-section; None of a sub-section that is not in use."""
    if isinstance(config, Open) and name in config.sections():
        return config.own if name == config.section_in_use() else None  # type: ignore[attr-defined]
    return getattr(config, name)


def described(cls: type, prefix: str = "") -> list[Described]:
    """All settings of ``cls`` and its sub-sections, in order of declaration; ``prefix`` ("method.") stands before their names.

    A field that is declared without `setting` has no meaning and makes another run.
    """
    found = []
    for name, kind, item in fields_of(cls):
        if is_section(kind):
            found += described(kind, f"{prefix}{name}.")
        else:
            assert item is not None
            says = item.metadata
            meaning, change = says.get("meaning", ""), says.get("change", ANOTHER_RUN)
            found.append(Described(f"{prefix}{name}", kind, item.default, meaning, change, says.get("earlier")))
    return found


def done_earlier(cls: type, flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"data.medium": 0.0, ...}: what versions did that lack settings of ``cls``, where it is not the default, in a run of ``flat``."""
    return {item.name: item.earlier(flat) for item in described(cls) if item.earlier}


def read_settings(path: Path) -> dict[str, Any]:
    """Nested settings from a YAML file: values as they are written, names with dots taken apart. Errors as `read_yaml`."""
    return dotted(read_yaml(path, Written))


def read_yaml(path: Path, plain: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """A YAML mapping from a file; a file that is missing, broken or no mapping is a `UserError`. ``plain``: see `untrusted.parse_yaml`."""
    try:
        tree = untrusted.read_yaml(path, plain)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the config file {path}: {getattr(error, 'strerror', None) or error}") from None
    except ValueError as error:
        raise UserError(f"the config file {path} is not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"the config file {path} must hold 'key: value' lines, not {'a list' if isinstance(tree, list) else 'one value'}")
    return tree


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"federation.rounds": 50, ...} in order of declaration."""
    flat: dict[str, Any] = {}
    for name, kind, _ in fields_of(type(config)):
        value = value_of(config, name)
        if not is_section(kind):
            flat[f"{prefix}{name}"] = value
        elif value is not None:
            flat |= flatten(value, f"{prefix}{name}.")
    return flat


def nested(config: Any) -> dict[str, Any]:
    """{"federation": {"rounds": 50, ...}, ...}: plain values that `section` reads back."""
    tree = {}
    for name, kind, _ in fields_of(type(config)):
        value = value_of(config, name)
        if not is_section(kind):
            tree[name] = plain(value)
        elif value is not None:
            tree[name] = nested(value)
    return tree


def plain(value: Any) -> Any:
    """A setting's value as JSON and YAML keep it."""
    return list(value) if isinstance(value, tuple) else value


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
        insert(branch, str(name), dotted(value) if isinstance(value, dict) else value)
        result = merged(result, branch)
    return result


class Raw(str):
    """Text from the command line: read as YAML unless the setting is a string."""


class Written(Raw):
    """A value from a file without quotes around it; as `Raw`, and nothing where YAML says nothing."""

    @property
    def nothing(self) -> bool:
        return self in ("", "~", "null", "Null", "NULL")

    def __repr__(self) -> str:
        return str(self)


def insert(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Put ``value`` at a dotted name of a tree."""
    *parents, last = dotted.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            child = tree[parent] = {}
        tree = child
    tree[last] = value


def _unknown(name: str, root: type, prefix: str) -> UserError:
    known = [item.name for item in described(root, prefix)]
    last = name.rsplit(".", 1)[-1]
    near = [item for item in known if item.rsplit(".", 1)[-1] == last] or difflib.get_close_matches(name, known, 1, 0.6)
    if not near:
        like = difflib.get_close_matches(last, [item.rsplit(".", 1)[-1] for item in known], 1, 0.6)
        near = [item for item in known if item.rsplit(".", 1)[-1] in like]
    sections = ", ".join(f"{prefix}{own}" for own, _, _ in fields_of(root))
    hint = f"did you mean {' or '.join(repr(item) for item in near)}?" if near else f"the sections are {sections}"
    return UserError(f"unknown setting '{name}'; {hint}")


def section(cls: type, tree: dict[str, Any], prefix: str = "", root: tuple[type, str] | None = None) -> Any:
    """A config dataclass from nested plain values, names and types checked; ``prefix`` ("method.") stands before names in errors.

    ``root``: the dataclass that an unknown name may be of, and its prefix; by default this one.
    """
    root = root or (cls, prefix)
    kinds = {name: kind for name, kind, _ in fields_of(cls)}
    values = {}
    for name, value in tree.items():
        full = f"{prefix}{name}"
        if name not in kinds:
            while isinstance(value, dict) and value and len(full) < 200:  # name the setting, not only its section
                name, value = next(iter(value.items()))
                full = f"{full}.{name}"
            raise _unknown(shown(full), *root)
        if is_section(kinds[name]):
            if value is None or (isinstance(value, Written) and value.nothing):
                value = {}
            if not isinstance(value, dict):
                keys = [item.name for item in described(kinds[name], f"{full}.")]
                raise UserError(f"'{full}' is a section; " + (f"set one of its keys, for example {keys[0]}" if keys else "it has no keys"))
            values[name] = section(kinds[name], value, f"{full}.", root)
        else:
            values[name] = converted(value, kinds[name], full)
    try:
        return cls.from_values(values) if issubclass(cls, Open) else cls(**values)
    except UserError as error:
        raise UserError(f"{prefix}{error}") from None


def converted(value: Any, kind: Any, name: str) -> Any:
    """``value`` as ``kind``, the type of the setting ``name``, or a `UserError` that says what was expected."""
    if isinstance(value, Raw):
        if kind is str:
            return "" if isinstance(value, Written) and value.nothing else _text(value, name)
        try:
            value = untrusted.parse_yaml(value)
        except ValueError as error:
            reason = f" ({error})" if "too large" in str(error) else ""
            raise UserError(f"{name}: cannot read the value '{shown(value)}'{reason}; {_wanted(kind)} is expected") from None
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
        if isinstance(value, dict) and all(str(key).isdecimal() for key in value):  # {8: 0.5} is 8:0.5
            value = [f"{key}:{item}" for key, item in value.items()]
        if isinstance(value, str):  # one item, or several with commas between them
            value = [Raw(item.strip()) for item in value.split(",") if item.strip()]
        if value is None:
            value = []
        if isinstance(value, (int, float)) and typing.get_args(kind)[0] in (int, float):  # one item
            value = [value]
        if isinstance(value, (list, tuple)):
            return tuple(converted(item, typing.get_args(kind)[0], name) for item in value)
    elif isinstance(kind, types.UnionType):
        if value is None:
            return None
        return converted(value, next(k for k in typing.get_args(kind) if k is not type(None)), name)
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
