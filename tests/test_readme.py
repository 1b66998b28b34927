"""What the page about methods shows is what happens: its example of a method is run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import small

README = (Path(__file__).resolve().parents[1] / "pfedmma" / "methods" / "README.md").read_text(encoding="utf-8")


def example(containing: str) -> str:
    """The one Python block of the page in which the words stand."""
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if containing in block]
    return block


def python(folder: Path, *arguments: str) -> str:
    """Run Python in ``folder``; what it printed."""
    command = [sys.executable, *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=small.PATIENCE, env=env)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example of a method of one's own, trained there by two ranks."""
    folder = tmp_path_factory.mktemp("gains")
    (folder / "gains.py").write_text(example("class Gains"))
    settings = [
        "method.name=gains",
        "method.gains.start=0.1",
        "run_dir=run",
        "data.clients=4",
        "data.shots=2",
        "federation.rounds=4",
        "evaluation.every=4",
    ]
    python(folder, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "gains.py", *settings)
    return folder


def test_a_method_of_ones_own_learns_and_exchanges_what_it_says(folder: Path) -> None:
    summary = small.summary(folder / "run")
    assert summary["world_size"] == 2
    assert summary["accuracy"]["local"] > summary["zero_shot"]["local"] + 2
    assert summary["trained_parameters"] == 2 * summary["shared_parameters"]
    assert summary["bytes_per_client_round"] == 4 * summary["shared_parameters"] > 0
    assert summary["comm"]["uplink_bytes"] == 4 * 4 * summary["bytes_per_client_round"]  # rounds x clients
    assert (summary["config"]["optimizer.lr"], summary["config"]["method.gains.start"]) == (1.0, 0.1)


def test_its_clients_are_exported_and_loaded(folder: Path) -> None:
    script = (
        "import gains, open_clip, torch, pfedmma\n"
        "from pfedmma import export\n"
        "from pfedmma.config import schema as config\n"
        "from pfedmma.clip import loading\n"
        "export.main(['run', '--client', '3', '--out', 'client3.safetensors'])\n"
        "clip = loading.create_model(config.Config().backbone, 0)\n"
        "classify = pfedmma.load_client(clip, 'client3.safetensors').classifier(['red circle', 'blue star'])\n"
        "print(tuple(classify(torch.rand(3, 3, 32, 32)).shape))\n"
    )
    assert python(folder, "-c", script).splitlines()[-1] == "(3, 2)"
