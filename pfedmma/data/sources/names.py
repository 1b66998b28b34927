"""Names of classes: which are names at all, which sound alike in a prompt, and those that a user gives in a file (``data.class_names``)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from pfedmma.data.sources.base import Source
from pfedmma.system import untrusted
from pfedmma.system.errors import UserError
from pfedmma.system.files import expanded, read_text

_WORDNET_ID = re.compile("n[0-9]{8}")
LONGEST_NAME = 300  # of a class; what a prompt has no room for is cut off anyway


def spoken(name: str) -> str:
    """A class name as CLIP's tokenizer reads it in a prompt: "_" is a space, and capitals and wider spaces do not count."""
    return " ".join(name.replace("_", " ").split()).lower()


def distinct(names: Sequence[str], where: str, setting: str = "data.root") -> None:
    """A `UserError` where two classes would be the same in a prompt, or a name is none."""
    odd = next((name for name in names if not is_name(name)), None)
    if odd is not None:
        raise UserError(f"{setting}: {where} give the class name {odd[:60]!a}; up to {LONGEST_NAME} printable characters make a name")
    seen: dict[str, str] = {}
    for name in names:
        other = seen.get(spoken(name))
        if other is not None:
            alike = "" if other == name else f", the other time as '{name}'"
            raise UserError(f"{setting}: {where} give the class name '{other}' to two classes{alike}")
        seen[spoken(name)] = name


def nameless_note(names: Sequence[str]) -> tuple[str, ...]:
    """A sentence on class names that are ids of WordNet, which tell a text tower nothing, if they are."""
    if not names or not all(_WORDNET_ID.fullmatch(name) for name in names):
        return ()
    return (f"the classes are called by ids such as {names[0]}, which say nothing to CLIP; data.class_names=FILE gives them names",)


def is_name(name: str) -> bool:
    """Whether a text can be a class name."""
    return bool(name.strip()) and len(name) <= LONGEST_NAME and name.isprintable()


def renamed(source: Source, path: str) -> Source:
    """The source with the class names that the file ``path`` gives.

    The file is JSON or text. Either it gives a name to each class by what the source calls it ("n01440764 tench" on a line; an
    object; pairs), more classes than there are included, or the names alone, as many as there are classes and in their order.

    Raises:
        UserError: no such file, another form, a class without a name, or two of one name.
    """
    file = expanded(path)
    try:
        pairs = _pairs(read_text(file), source.class_names)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"data.class_names: cannot read {path}: {reason}; give a name a line, or an id and a name") from None
    if all(key is None for key, _ in pairs):
        if len(pairs) != len(source.class_names):
            raise UserError(
                f"data.class_names: {path} gives {len(pairs)} names to the {len(source.class_names)} classes of {source.name}; "
                f"give as many, or '<class> <name>' on each line"
            )
        names = tuple(name for _, name in pairs)
    else:
        given = dict(pairs)
        if len(given) < len(pairs):
            raise UserError(f"data.class_names: {path} names a class twice")
        without = next((name for name in source.class_names if name not in given), None)
        if without is not None:
            raise UserError(f"data.class_names: {path} gives no name to the class '{without}' of {source.name}")
        names = tuple(given[name] for name in source.class_names)
    distinct(names, f"the entries of {path}", "data.class_names")
    notes = tuple(note for note in source.notes if note not in nameless_note(source.class_names))
    return dataclasses.replace(source, class_names=names, notes=notes)


def _pairs(text: str, classes: Sequence[str]) -> list[tuple[str | None, str]]:
    """(what the source calls the class, or None; its name) of each entry. Raises ValueError."""
    if text.lstrip().startswith(("{", "[")):
        return _json_pairs(untrusted.parse_json(text), classes)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [re.split(r"[\s,:;=]+", line, maxsplit=1) for line in lines]
    keyed = [pair for pair in pairs if len(pair) == 2 and pair[0] in classes and pair[1]]
    # A list of names may begin with a word that is also a class ("dog house"), so all classes have to be there.
    if {pair[0] for pair in keyed} == set(classes):
        return [(pair[0], _plain(pair[1])) for pair in pairs if len(pair) == 2]
    return [(None, _plain(line)) for line in lines]


def _json_pairs(value: Any, classes: Sequence[str]) -> list[tuple[str | None, str]]:
    if isinstance(value, dict):
        if all(isinstance(item, list) and len(item) == 2 for item in value.values()):  # {"0": ["n01440764", "tench"], ...}
            return _json_pairs(list(value.values()), classes)
        if not set(classes) <= value.keys() and value.keys() >= {str(number) for number in range(len(value))}:  # by label
            value = [value[str(number)] for number in range(len(value))]
    pairs = list(value.items()) if isinstance(value, dict) else [item if isinstance(item, list) else (None, item) for item in value]
    if not all(len(pair) == 2 and isinstance(pair[1], str) and isinstance(pair[0], (str, type(None))) for pair in pairs):
        raise ValueError("it is neither a list of names nor an object that gives each class a name")
    return [(key, name) for key, name in pairs]


def _plain(name: str) -> str:
    """A name out of a line of text, without the quotes of a CSV file."""
    return name.strip().strip("\"'").strip()
