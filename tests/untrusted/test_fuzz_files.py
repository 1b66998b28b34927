"""Whatever is done to a file of someone else, it is read or refused in a sentence, and soon.

Of each kind of file in `specimens` a good one is changed: bytes anywhere, values of its JSON or YAML, words of its text.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from pfedmma.config.schema import Config
from pfedmma.system import options
from tests.support.specimens import SPECIMENS, packed, unpacked

SOON = 5.0  # seconds of this process: none of the specimens takes a tenth of it
JSON = ("manifest", "partition", "split", "summary")
YAML = ("config", "comparison")
TENSORS = ("adapter", "client", "weights", "shard", "server")
HEADERS = ("adapter header", "client header", "shard header", "server header")
BYTES = (*TENSORS, *HEADERS, "torch weights", "list", "image", "metrics", *JSON, *YAML)

quickly = trials(deadline=None, max_examples=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """An empty folder each time."""
    root, number = tmp_path_factory.mktemp("fuzz"), itertools.count()

    def fresh() -> Path:
        path = root / str(next(number))
        path.mkdir()
        return path

    return fresh


@pytest.fixture(scope="module")
def good() -> dict[str, bytes]:
    return {name: specimen.good() for name, specimen in SPECIMENS.items()}


def check(name: str, folder: Path, content: bytes) -> str:
    """Read ``content`` as a file of this kind."""
    start = time.process_time()
    outcome = SPECIMENS[name].outcome(folder, content)
    assert time.process_time() - start < SOON
    assert outcome == "read" or len(outcome) < 2000
    return outcome


@pytest.mark.parametrize("name", SPECIMENS)
def test_the_good_file_is_read(name: str, folder: Callable[[], Path], good: dict[str, bytes]):
    # Or the rest of this module would show nothing. The list is of one data set, whose images are not there.
    assert check(name, folder(), good[name]) == "read" or name == "list"


# Bytes.

EXTREMES = (b"\xff" * 8, b"\0" * 8, b"\xff" * 7 + b"\x7f", b"\x7f\xff\xff\xff", b"\0", b'"', b"}", b"-", b"1e999", b"\xed\xa0\x80", b"\n")


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` with up to four bits flipped, pieces cut, doubled or overwritten, or the end torn off; mostly near the beginning."""
    data = bytearray(content)
    near = st.integers(0, min(len(data), 400)) | st.integers(0, len(data))
    for _ in range(draw(st.integers(1, 4))):
        at, size = draw(near), draw(st.integers(1, 40))
        match draw(st.sampled_from(["flip", "cut", "double", "write", "insert", "tear"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at : at + size]
            case "double":
                data[at:at] = data[at : at + size]
            case "write":
                piece = draw(st.sampled_from(EXTREMES))
                data[at : at + len(piece)] = piece
            case "insert":
                data[at:at] = draw(st.sampled_from(EXTREMES) | st.binary(max_size=12))
            case "tear":
                del data[at:]
    return bytes(data)


@pytest.mark.parametrize("name", BYTES)
@quickly
@given(data=st.data())
def test_damaged_bytes(name: str, folder: Callable[[], Path], good: dict[str, bytes], data: st.DataObject):
    check(name, folder(), data.draw(damaged(good[name])))


@pytest.mark.parametrize("name", BYTES)
@trials(deadline=None, max_examples=15)
@given(content=st.binary(max_size=200))
def test_any_bytes(name: str, folder: Callable[[], Path], content: bytes):
    check(name, folder(), content)


# Values.

NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 7, 2**31, 2**63 - 1, 2**63, -(2**63), 10**18, 10**30]) | st.sampled_from(
    [0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), float("-inf")]
)
WORDS = st.sampled_from(
    ["", " ", "0", "-1", "nan", "train", "mean", "pool", "../x", "/etc/passwd", "a\0b", "\ud800", "{}", "é" * 300, "a" * 5000]
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.sampled_from(["id", "round", "total"]), inner, max_size=3),
    max_leaves=4,
)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in ``tree``, of long lists the first few."""
    keys = list(tree) if isinstance(tree, dict) else range(min(len(tree), 6)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from places(tree[key])


@st.composite
def edited(draw: st.DrawFn, good: Any) -> Any:
    """``good`` with up to three of its values replaced, removed, moved elsewhere, renamed or buried deep."""
    tree = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        where = list(places(tree))
        if not where:
            break
        container, key = draw(st.sampled_from(range(len(where))).map(where.__getitem__))
        match draw(st.sampled_from(["replace", "replace", "remove", "move", "rename", "bury"])):
            case "replace":
                container[key] = draw(VALUES)
            case "remove":
                del container[key]
            case "move":
                other, place = where[draw(st.integers(0, len(where) - 1))]
                container[key] = copy.deepcopy(other[place]) if isinstance(place, int) or place in other else None
            case "rename" if isinstance(container, dict):
                container[draw(WORDS)] = container.pop(key)
            case "bury":
                for _ in range(draw(st.sampled_from([1, 30, 300]))):
                    container[key] = [container[key]]
    return tree


@pytest.mark.parametrize("name", JSON)
@quickly
@given(data=st.data())
def test_edited_json(name: str, folder: Callable[[], Path], good: dict[str, bytes], data: st.DataObject):
    check(name, folder(), json.dumps(data.draw(edited(json.loads(good[name])))).encode())


@trials(deadline=None, max_examples=150)
@given(data=st.data())
def test_an_edited_manifest(folder: Callable[[], Path], good: dict[str, bytes], data: st.DataObject):
    check("manifest", folder(), json.dumps(data.draw(edited(json.loads(good["manifest"])))).encode())


@quickly
@given(data=st.data())
def test_edited_lines_of_metrics(folder: Callable[[], Path], good: dict[str, bytes], data: st.DataObject):
    rows = data.draw(edited([json.loads(line) for line in good["metrics"].splitlines()]))
    lines = rows if isinstance(rows, list) else [rows]
    check("metrics", folder(), "".join(json.dumps(row) + "\n" for row in lines).encode())


@pytest.mark.parametrize("name", TENSORS)
@quickly
@given(data=st.data())
def test_an_edited_header(name: str, folder: Callable[[], Path], good: dict[str, bytes], data: st.DataObject):
    header, rest = unpacked(good[name])
    check(name, folder(), packed(data.draw(edited(header)), rest))


@pytest.mark.parametrize("name", YAML)
@quickly
@given(data=st.data())
def test_edited_yaml(name: str, folder: Callable[[], Path], good: dict[str, bytes], data: st.DataObject):
    tree = data.draw(edited(yaml.safe_load(good[name])))
    try:
        text = yaml.safe_dump(tree, allow_unicode=data.draw(st.booleans()))
    except RecursionError:  # PyYAML writes less deep than others do
        text = json.dumps(tree)
    check(name, folder(), text.encode(errors="surrogatepass"))


# Words.

SCRAPS = [
    *("a", ": ", ", ", "\n", "\n  ", "- ", "&a ", "*a ", "&b ", "*b ", "<<: ", "<<: *a", "? ", "[", "]", "{", "}", '"', "'"),
    *("\\u", "\\ud800", "|", "%", "@", "`", "#", "---", "...", "~", "=", "é", "\0", "\x85", "data:", "method:", "methods:", "seeds:"),
    *("!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!python/object/apply:os.system ", "!!str "),
    *("!<tag:yaml.org,2002:int> ", "1", "-1", "0x", "0b", "1:30", "1e400", ".nan", ".inf", "2001-99-99", "null", "true", "shots", "name"),
    *("2001-12-14t21:59:43.10-05:00", "federation.rounds"),
]


@pytest.mark.parametrize("name", [*YAML, "setting"])
@trials(deadline=None, max_examples=150)
@given(scraps=st.lists(st.sampled_from(SCRAPS), max_size=14))
def test_scraps_of_yaml(name: str, folder: Callable[[], Path], scraps: list[str]):
    check(name, folder(), "".join(scraps).encode())


KEYS = sorted(options.flatten(Config()))


@trials(deadline=None, max_examples=300)
@given(key=st.sampled_from(KEYS) | st.text(max_size=5), value=NUMBERS.map(str) | WORDS | st.text(max_size=8) | st.sampled_from(SCRAPS))
def test_any_value_of_any_setting(folder: Callable[[], Path], key: str, value: str):
    check("setting", folder(), f"{key}={value}".encode(errors="surrogatepass"))


LINES = (
    *("a/b/c.jpg 1", "clipart/bird/x.png 2", "../../x 1", "/etc/passwd 3", "n01 ../..", "n01 tench", "\u00b2 1", "x \u00b2 1", "#"),
    *("1 A", "A/v_A_g01.avi 1", "é" * 300, "é" * 300 + " 1", "a\0b 1"),
)


@quickly
@given(lines=st.lists(st.sampled_from(LINES) | st.text(max_size=12), max_size=5))
def test_any_lines_of_a_list(folder: Callable[[], Path], lines: list[str]):
    check("list", folder(), "\n".join(lines).encode(errors="surrogatepass"))
