"""``launch/notebook.ipynb``: clean, and every cell does what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pfedmma.compare import figures
from tests.support import inside, small

NOTEBOOK = Path(__file__).resolve().parents[2] / "launch" / "notebook.ipynb"
BOOK = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in BOOK["cells"] if cell["cell_type"] == "code"]


def test_it_is_kept_without_what_running_it_leaves() -> None:
    assert (BOOK["nbformat"], BOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in BOOK["cells"]}) == len(BOOK["cells"])
    for cell in BOOK["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that all cells leave, one after the other, of runs of one round on few images; and ``folder``."""
    pytest.importorskip("matplotlib").use("agg")
    folder = tmp_path_factory.mktemp("notebook")
    names: dict[str, Any] = {"__name__": "__main__", "folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        small.few_images(patch, train=2)
        inside.do_runs_here(patch)
        patch.setattr(figures, "draw", lambda runs, out, radar=False: None)  # seconds each; tests/compare draws them
        patch.chdir(folder)
        for number, source in enumerate(CODE):
            changed = source.replace("ROUNDS = 10", "ROUNDS = 1")
            exec(compile(changed, f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    sys.modules["matplotlib.pyplot"].close("all")
    return names


def test_it_trains_and_compares(after: dict[str, Any]) -> None:
    run, comparison = after["run"], after["comparison"]
    assert run.metrics["round"].tolist() == [1] and run.accuracy["local"] > 0
    assert set(comparison.table["method"]) == {"pfedmma", "local", "fedavg_mma"} and comparison.runs.rows == 3
    assert after["gain"].shape == (10,)
    assert comparison.runs["hm_percent"][0] == pytest.approx(run.accuracy["hm"])  # the same settings once more


def test_the_clients_model_is_one_of_open_clip(after: dict[str, Any]) -> None:
    import open_clip

    assert isinstance(after["clip"], open_clip.CLIP) and len(after["names"]) == after["shares"].numel() == 6
    assert after["shares"].sum().item() == pytest.approx(1.0) and after["shares"].max() > 1.5 / 6


def test_it_plots(after: dict[str, Any]) -> None:
    with Image.open(after["folder"] / "runs" / "notebook" / "curves.png") as picture:
        assert picture.size == (1350, 450)
    assert len(after["left"].lines) == len(after["right"].lines) == 3
