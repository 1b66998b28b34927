"""The README and the pages of the rooms: what their commands name is there, and their settings can be set."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
from pathlib import Path

import pytest

from pfedmma.compare import grid
from pfedmma.config import schema as configuration
from pfedmma.config import shipped
from pfedmma.system.options import described

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / f"{room}README.md" for room in ("launch/", "benchmarks/", "benchmarks/results/", "", "configs/", "pfedmma/", "tests/")]
OF_ROOMS = [ROOT / "pfedmma" / room / "README.md" for room in ("api", "engine", "server")]  # without commands, or with few
RESULTS = ROOT / "benchmarks" / "results"
PACKAGE = ROOT / "pfedmma"
ELSEWHERE = (
    "config.yaml",
    "summary.json",
    "split.json",
    "checkpoints/",
    "table.md",
    "report.html",
    "caltech-101/",
    "split_zhou_*.json",
    "val/",
    "valid/",
)  # in run folders and data sets
FOLDERS = ("launch/", "benchmarks/", "configs/", "tests/", "pfedmma/")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SCRIPTS = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "launch").glob("*.s*"))
A_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands(page: Path) -> list[list[str]]:
    """The words of each line in the page's code blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [words for block in blocks for line in block.splitlines() if (words := shlex.split(line, comments=True))]


def code(page: Path) -> list[str]:
    """What stands between single backticks in the page's text."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def environment(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The variables in front of a command, and the command."""
    first = next(index for index, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))
    return dict(word.split("=", 1) for word in words[:first]), words[first:]


def settings(words: list[str]) -> list[str]:
    return [word for word in words if re.match(r"[a-z_.]+=", word)]


def values(words: list[str], option: str) -> list[str]:
    """What stands after each ``option``."""
    return [after for word, after in itertools.pairwise(words) if word == option]


@A_PAGE
def test_files_modules_and_targets_of_commands_are_there(page: Path) -> None:
    assert commands(page)
    for words in commands(page):
        variables, words = environment(words)
        assert all(re.search(rf"\b{name}\b", SCRIPTS) for name in variables), variables
        assert all((ROOT / word).exists() for word in words if word.startswith(FOLDERS)), words
        assert all(importlib.util.find_spec(module) for module in values(words, "-m")), words
        assert words[0] in ("python", "torchrun", "accelerate", "sbatch", "make", "pip", "eval") or words[0].startswith("launch/"), words
        if words[0] == "make":
            assert all(re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) for target in words[1:]), words


@A_PAGE
def test_settings_of_commands_can_be_set(page: Path) -> None:
    for words in commands(page):
        _, words = environment(words)
        given = settings(words)
        if "pfedmma.compare" in words:
            assert grid.read(shipped.located(words[words.index("pfedmma.compare") + 1], comparisons=True, beside=ROOT), given)
        else:
            configuration.load([shipped.located(file, beside=ROOT) for file in values(words, "--config")], given)


@A_PAGE
def test_options_of_benchmarks_are_theirs(page: Path) -> None:
    for words in commands(page):
        script = next((index for index, word in enumerate(words) if re.fullmatch(r"benchmarks/\w+\.py", word)), None)
        if script is not None:
            source = (ROOT / words[script]).read_text(encoding="utf-8")
            options = [word for word in words[script + 1 :] if word.startswith("--")]
            assert all(f'"{option}"' in source for option in options), words


@pytest.mark.parametrize("page", [*PAGES, *OF_ROOMS], ids=lambda page: str(page.relative_to(ROOT)))
def test_what_the_text_names_is_there(page: Path) -> None:
    for name in code(page):
        if target := re.fullmatch(r"make ([a-z-]+)", name):
            assert re.search(rf"^{target[1]}:", MAKEFILE, re.MULTILINE), name
        elif re.fullmatch(r"[\w./*-]+(\.(py|sh|sbatch|yaml|json|md)|/)", name):
            found = [*PACKAGE.rglob(name.rstrip("/")), *(path for folder in (page.parent, ROOT, RESULTS) for path in folder.glob(name))]
            assert name in ELSEWHERE or found, name
        elif setting := re.fullmatch(r"((?:data|backbone|method|federation|distributed)\.\w+)(=.*)?", name):
            names = [item.name for item in described(configuration.Config)]
            assert any(known == setting[1] or known.startswith(f"{setting[1]}.") for known in names), name
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert all((page.parent / link).exists() for link in links if "://" not in link), links


def test_links_to_parts_of_pages_lead_to_headings() -> None:
    for page in ROOT.rglob("README.md"):
        for link, part in re.findall(r"\]\(([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                text = (page.parent / link if link else page).read_text(encoding="utf-8")
                headings = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
                assert part in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, (page, link, part)


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    pages = {page for folder in ("benchmarks", "configs", "launch", "pfedmma", "tests") for page in (ROOT / folder).rglob("README.md")}
    pages -= set((ROOT / "tests" / "records").rglob("*.md"))  # says where kept files come from
    assert pages == {ROOT / link for link in re.findall(r"\]\(([^)#]+README\.md)", text)}


def test_every_variable_of_the_scripts_is_explained() -> None:
    explained = set(re.findall(r"\b[A-Z][A-Z_]+\b", PAGES[0].read_text(encoding="utf-8")))
    read = set(re.findall(r"\$\{([A-Z_]+):-", SCRIPTS))
    assert {name for name in read if not name.startswith("SLURM_")} <= explained


def test_every_script_and_benchmark_has_a_line() -> None:
    for page, pattern in ((PAGES[0], "launch/*.*"), (PAGES[1], "benchmarks/*.py")):
        programs = [path for path in ROOT.glob(pattern) if path.suffix != ".py" or "__main__" in path.read_text(encoding="utf-8")]
        names = {path.name for path in programs} - {"README.md"}
        assert names <= set(code(page)), names - set(code(page))


def test_every_room_and_command_is_on_the_map() -> None:
    """And imports run down the map: what stands lower knows nothing of what stands above it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## The package") : text.index("## Contribute")]
    rows = [re.findall(r"`([a-z_]+)/?`", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `")]
    height = {name: level for level, names in enumerate(rows) for name in names}
    rooms = {path.stem for path in (ROOT / "pfedmma").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(height) == rooms - {"__init__", "__main__", "version"}
    for path in (ROOT / "pfedmma").rglob("*.py"):
        own = path.relative_to(ROOT / "pfedmma").parts[0].removesuffix(".py")
        if own in height and path.name != "__main__.py":
            for name in re.findall(r"^\s*from pfedmma\.(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
                assert name == "version" or height[name] >= height[own], f"{path} imports {name}, which stands above it"
                assert name in (own, "version") or height[name] > 0 or own == "api", f"{path} imports a command"  # it calls them
