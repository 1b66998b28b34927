"""The check for machines with GPUs, as far as a machine without one can try it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks.programs import LIMIT, PATIENCE, ROOT, one_sentence, run

pytestmark = pytest.mark.timeout(LIMIT)


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_check")


def test_without_a_gpu_it_says_so() -> None:
    one_sentence(run("gpu_check.py"), "needs a machine with a CUDA GPU")


def test_a_failing_part_does_not_stop_the_others(gpu_check: ModuleType, tmp_path: Path) -> None:
    say = 'print("words"); print(\'{"rate": 3}\'); print("and a launcher\'s warning")'
    commands = {
        "good": say,
        "silent": "pass",
        "broken": "raise SystemExit(3)",
        "slow": "import time; time.sleep(10**6)",
        "tests": "print('2 passed')",
    }
    parts = [
        gpu_check.Part(name, (sys.executable, "-c", code), 1.0 if name == "slow" else PATIENCE, name != "tests")
        for name, code in commands.items()
    ]
    ended = {end.name: end for end in gpu_check.run_all([*parts, parts[0]], tmp_path, 10 * PATIENCE, {"date": "today"})}
    assert {name: end.problem for name, end in ended.items()} == {
        "good": "",
        "silent": "no report on its last line",
        "broken": "exit status 3",
        "slow": "not done within 1 s",
        "tests": "",
    }
    assert ended["tests"].said == "2 passed"
    broken = gpu_check.Ended("starts", 1.0, 2.0, "", "an error of a library: [/some/file.cc:545]")
    assert gpu_check.table([*ended.values(), broken], "a GPU").row_count == 6
    gpu_check.show(gpu_check.table([broken], "a GPU"))
    assert json.loads((tmp_path / "good.json").read_text(encoding="utf-8")) == {"date": "today", "rate": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.json", "output.txt"]
    assert [end.problem for end in gpu_check.run_all(parts[:1], tmp_path, 0.5, {})] == ["no time was left"]


def test_checks_run_side_by_side(gpu_check: ModuleType, tmp_path: Path) -> None:
    """Each waits for the other."""
    code = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.05)
"""
    names = [str(tmp_path / name) for name in ("a", "b")]
    parts = [
        gpu_check.Part(name, (sys.executable, "-c", code, *files), PATIENCE, reports=False, alone=False)
        for name, files in (("one", names), ("other", names[::-1]))
    ]
    assert [end.problem for end in gpu_check.run_all(parts, tmp_path, 10 * PATIENCE, {})] == ["", ""]


def test_the_parts_are_there_and_most_find_time(gpu_check: ModuleType, tmp_path: Path) -> None:
    """Together they end within the budget, whatever their limits are; the first five fit it."""
    parts = gpu_check.all_parts(1, tmp_path)
    names = [part.name for part in parts]
    assert len(set(names)) == len(names) and set(gpu_check.NO_REPORT) < set(names)
    together = [part.limit for part in parts if not part.alone]
    assert max(together) + sum(part.limit for part in parts if part.alone and part.name in names[:7]) <= gpu_check.BUDGET
    files = [word for part in parts for word in part.command if word.endswith(".py")]
    assert all((ROOT / file).is_file() for file in files) and "tests/gpu/test_gpu_paths.py" in files
    assert "tests/test_rng.py" in files
    assert {part.name for part in parts if not part.reports} == {"tests", "train", "train-torchrun"}
    assert not any("{" in word for part in parts for word in part.command)


@pytest.mark.parametrize(("gpus", "ranks", "backend"), [(1, "2", "gloo"), (2, "2", "nccl"), (8, "8", "nccl")])
def test_ranks_for_the_gpus_that_there_are(gpu_check: ModuleType, tmp_path: Path, gpus: int, ranks: str, backend: str) -> None:
    """A lost rank needs another one, which shares the GPU where there is one."""
    commands = {part.name: part.command for part in gpu_check.all_parts(gpus, tmp_path)}
    lost = commands["lost_rank"]
    assert (lost[lost.index("--ranks") + 1], lost[lost.index("--backend") + 1]) == (ranks, backend)
    assert all(f"--nproc_per_node={gpus}" in commands[name] for name in ("train-torchrun", "communication", "balance"))
    assert f"run_dir={tmp_path}/alone" in commands["train"] and "torch.distributed.run" not in commands["train"]


OPTIONS = {"local_training.py": "local_training", "round_time.py": "round_time", "input.py": "input", "lost_rank.py": "lost_rank"}


def test_the_programs_take_the_options(gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read by each program's own parser, as if there were a GPU; settings among them are settings of a run."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    read = []
    for part in gpu_check.all_parts(2, tmp_path):
        program = Path(part.command[1]).name
        if program in OPTIONS:
            module = importlib.import_module(OPTIONS[program])
            monkeypatch.setattr(sys, "argv", list(part.command[1:]))
            args = module.arguments()
            if program == "local_training.py":
                read.append((part.name, module.config_of(args).backbone))
    backbones = dict(read)
    assert {backbone.name for backbone in backbones.values()} == {"ViT-B-16-quickgelu"}
    assert backbones["local_training-cudnn"].attention == "cudnn" and backbones["local_training-bf16"].attention == "auto"
    assert backbones["local_training-tf32"].tf32 and not backbones["local_training-fp32"].tf32
    assert backbones["local_training-deterministic"].deterministic
