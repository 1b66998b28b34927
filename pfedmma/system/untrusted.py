"""JSON and YAML that someone else may have written: read within bounds, or refused with a `ValueError` that says why.

The libraries alone go further than any file of ours needs: aliases that unfold to billions of values, nesting deeper than the stack,
numbers that no tensor holds, halves of characters, a key given twice of which one is silently lost.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pfedmma.system.files import read_text

DEEPEST = 50  # lists and mappings in one another
LARGEST = 2**63 - 1  # whole number, as int64 holds it
MOST_CHARACTERS = 1 << 17  # of a YAML file
MOST_VALUES = 20_000  # in a YAML file, aliases unfolded
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises OSError, or ValueError as `parse_json`."""
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """The value of a JSON text; ValueError if it is not JSON, or goes beyond the bounds above."""
    try:
        value = json.loads(text, parse_int=_whole, parse_float=_number, parse_constant=_constant, object_pairs_hook=_mapping)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _refuse_deep(value, DEEPEST)
    if _HALF.search(text):  # \ud83d\ude00 is a character, \ud83d alone is none
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text in it holds half a character") from None
    return value


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > LARGEST:
        raise ValueError(f"the number {text[:30]} in it is too large")
    return int(text)


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:30]} in it is too large")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} in it is no number")


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise ValueError(f"'{twice[:60]}' is in it twice")
    return found


def _refuse_deep(value: Any, left: int) -> None:
    if left == 0:
        raise ValueError("it is nested too deeply")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(item, (dict, list)):
            _refuse_deep(item, left - 1)


def read_yaml(path: Path, plain: Callable[[str], Any] | None = None) -> Any:
    """The value of a YAML file. Raises OSError, or ValueError as `parse_yaml`."""
    with open(path, encoding="utf-8-sig") as file:
        return parse_yaml(file.read(MOST_CHARACTERS + 1), plain)  # it may be endless, as a device is


def parse_yaml(text: str, plain: Callable[[str], Any] | None = None) -> Any:
    """The value of a YAML text; ValueError if it is not YAML, or goes beyond the bounds above. Tags make no objects.

    ``plain`` makes the values that are written without quotes, in place of YAML's guess: to it 0012 is ten, 12:30 is 750.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it is longer than {MOST_CHARACTERS} characters")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _weigh(node, {}, ())
        if plain is not None:
            loader.plain = plain
            loader.mark_plain(node, set())
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, ArithmeticError) as error:  # what its constructors raise
        raise ValueError(str(error)) from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with whole numbers that int64 holds, and unquoted values by ``plain`` where they are marked."""

    plain: Callable[[str], Any] = str

    def written(self, node: yaml.ScalarNode) -> Any:
        return self.plain(node.value)

    def mark_plain(self, node: yaml.Node, known: set[int]) -> None:
        """Give values whose kind YAML would guess a tag of their own, and names the tag of text."""
        if id(node) in known:
            return
        known.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            guessed = self.resolve(yaml.ScalarNode, node.value, (True, False))
            node.tag = _PLAIN if node.style is None and node.tag == guessed else node.tag
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self.mark_plain(item, known)
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    key.tag = "tag:yaml.org,2002:str"
                self.mark_plain(value, known)

    def whole(self, node: yaml.ScalarNode) -> int:
        if len(str(node.value)) > 70 or abs(value := self.construct_yaml_int(node)) > LARGEST:
            raise ValueError(f"the number {str(node.value)[:30]} in it is too large")
        return value


_PLAIN = "!plain"
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole)
_Loader.add_constructor(_PLAIN, _Loader.written)


def _weigh(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """How many values a node unfolds to; a node that is used again is weighed once, and counts again."""
    if id(node) in known:
        return known[id(node)]
    if id(node) in above:
        raise ValueError("an alias in it refers to what it is part of")
    if len(above) == DEEPEST:
        raise ValueError("it is nested too deeply")
    below = [*above, id(node)]
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({name for name in names if name != "<<" and names.count(name) > 1}):
            raise ValueError(f"'{twice[0][:60]}' is set in it twice")
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[id(node)] = 1 + sum(_weigh(child, known, tuple(below)) for child in children)
    if known[id(node)] > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES} values")
    return known[id(node)]
