"""What the page about methods shows is what happens: its example of a method is run as it stands there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.support import programs, small
from tests.support.ranks import run_ranks, train, values_of

README = (Path(__file__).resolve().parents[1] / "pfedmma" / "methods" / "README.md").read_text(encoding="utf-8")


def example(containing: str) -> str:
    """The one Python block of the page in which the words stand."""
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if containing in block]
    return block


def python(folder: Path, *arguments: str) -> str:
    """Run Python in ``folder``; what it printed."""
    ended = programs.python(arguments, folder)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def train_in(meeting: list[str], folder: Path, settings: list[str]) -> None:
    os.chdir(folder)
    train(meeting, settings)


SETTINGS = ["method.gains.start=0.1", "data.clients=4", "data.shots=2", "federation.rounds=4", "evaluation.every=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example of a method of one's own, trained there by two ranks."""
    folder = tmp_path_factory.mktemp("gains")
    (folder / "gains.py").write_text(example("class Gains"))
    settings = ["plugins=gains.py", "method.name=gains", "run_dir=run", *SETTINGS]
    values_of(run_ranks(folder / "meet", 2, train_in, folder, settings))
    return folder


def test_a_method_of_ones_own_learns_and_exchanges_what_it_says(folder: Path) -> None:
    summary = small.summary(folder / "run")
    assert summary["world_size"] == 2
    assert summary["accuracy"]["local"] > summary["zero_shot"]["local"] + 2
    assert summary["trained_parameters"] == 2 * summary["shared_parameters"]
    assert summary["bytes_per_client_round"] == 4 * summary["shared_parameters"] > 0
    assert summary["comm"]["uplink_bytes"] == 4 * 4 * summary["bytes_per_client_round"]  # rounds x clients
    assert (summary["config"]["optimizer.lr"], summary["config"]["method.gains.start"]) == (1.0, 0.1)


def test_every_command_works_with_it(folder: Path) -> None:
    """Each in a process of its own that starts elsewhere and is told of nothing but the run."""
    elsewhere, run = folder / "elsewhere", str(folder / "run")
    elsewhere.mkdir()
    found = json.loads(python(elsewhere, "-m", "pfedmma.evaluate", run).splitlines()[-1])
    assert found["accuracy"]["local"] == pytest.approx(small.summary(folder / "run")["accuracy"]["local"], abs=1e-9)
    Image.new("RGB", (40, 32), "red").save(elsewhere / "red.png")
    assert json.loads(python(elsewhere, "-m", "pfedmma.predict", run, "--client", "3", "--json", "red.png"))["top"]
    python(elsewhere, "-m", "pfedmma.export", run, "--client", "3", "--out", "client3.safetensors")
    python(elsewhere, "-m", "pfedmma.report", run)
    assert "gains" in (folder / "run" / "report.html").read_text()
    script = (
        "import sys; sys.path.append('..'); import gains, pfedmma, torch\n"
        "from pfedmma.clip import loading\n"
        "from pfedmma.config.schema import Config\n"
        "clip = loading.create_model(Config().backbone, 0)\n"
        "classify = pfedmma.load_client(clip, 'client3.safetensors').classifier(['red circle', 'blue star'])\n"
        "print(tuple(classify(torch.rand(3, 3, 32, 32)).shape))\n"
    )
    assert python(elsewhere, "-c", script).splitlines()[-1] == "(3, 2)"


def test_a_comparison_starts_runs_with_it(folder: Path) -> None:
    (folder / "few.py").write_text(f"from pfedmma.data.sources import shapes\nshapes.PER_CLASS.update({small.RANKS_DRAW})\n")
    settings = {"plugins": ["gains.py", "few.py"], "data": {"clients": 4, "shots": 2}, "federation": {"rounds": 1}}
    (folder / "gains.yaml").write_text(yaml.safe_dump({"settings": settings, "methods": ["gains"]}))
    python(folder, "-m", "pfedmma.compare", "gains.yaml")
    assert "`gains`" in (folder / "runs" / "compare" / "gains" / "table.md").read_text()
