"""Settings as keywords of a call: ``rounds=5``, ``data__clients=4``, ``optimizer={"lr": 0.1}``, ``**{"data.beta": 0.3}``."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pfedmma.config.schema import Config
from pfedmma.system.errors import UserError
from pfedmma.system.options import described, fields_of, is_section, shown


def as_settings(keywords: Mapping[str, Any]) -> list[str]:
    """The keywords as they would stand on the command line: ``federation.rounds=5``.

    A keyword is a dotted name, the same with two underscores for a dot, the last word of a name if no other setting ends in it, or a
    section: with a text its name, as in ``method="local"``, or with a mapping of its settings. None is the setting's empty value.

    Raises:
        UserError: no setting ends in the word, or several do. Other names and values are checked by who reads the settings.
    """
    return [f"{name}={_text(value)}" for keyword, given in keywords.items() for name, value in _flat(_whole_name(keyword), given)]


def _whole_name(keyword: str) -> str:
    name = keyword.replace("__", ".")
    if "." in name or name in {own for own, _, _ in fields_of(Config)}:
        return name
    known = [item.name for item in described(Config)]
    found = [full for full in known if full.rsplit(".", 1)[-1] == name]
    found = [full for full in found if full.count(".") == 1] or found  # before those of a single method
    if not found:
        near = difflib.get_close_matches(name, [full.rsplit(".", 1)[-1] for full in known], 1, 0.6)
        raise UserError(f"no setting ends in '{shown(name)}'; " + (f"did you mean {near[0]}?" if near else "write section__name=value"))
    if len(found) > 1:
        ways = ", ".join(full.replace(".", "__") for full in found)
        raise UserError(f"'{name}' is a setting of several sections; write one of {ways}")
    return found[0]


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for below, item in value.items():
            yield from _flat(f"{name}.{below}", item)
    elif isinstance(value, str) and name in {own for own, kind, _ in fields_of(Config) if is_section(kind)}:
        yield f"{name}.name", value
    else:
        yield name, value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_item, value))}]"
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _item(value: Any) -> str:
    """An item of a list, as YAML reads it."""
    return json.dumps(os.fspath(value)) if isinstance(value, (str, os.PathLike)) else _text(value)
