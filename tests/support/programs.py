"""Python programs in processes of their own that start in milliseconds: forked from the server of `ranks`, which has imported torch."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pfedmma.data.sources import shapes
from tests.support.ranks import CONTEXT
from tests.support.small import PATIENCE, RANKS_DRAW


def python(
    arguments: Sequence[str],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    draw: Mapping[str, int] = RANKS_DRAW,
) -> subprocess.CompletedProcess[str]:
    """What ``python *arguments`` does in the folder ``cwd`` with the environment ``env`` (default: those here).

    ``arguments``: -m MODULE, -c CODE or a file, and what the program is told. ``draw``: images of a class in a split, where there are
    not to be as many as ever. What an interpreter reads when it starts, as PYTHONIOENCODING, has no effect, and what is already
    imported here is not imported again: a test of these starts a real one.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        environment = dict(os.environ if env is None else env)
        process = CONTEXT.Process(target=_program, args=(list(arguments), str(cwd or Path.cwd()), environment, dict(draw), out, err))
        process.start()
        process.join(PATIENCE)
        process.kill()  # what is still alive then hangs
        process.join()
        return subprocess.CompletedProcess(list(arguments), process.exitcode, out.read_text("utf-8"), err.read_text("utf-8"))


def _program(arguments: list[str], cwd: str, environment: dict[str, str], draw: dict[str, int], out: Path, err: Path) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    shapes.PER_CLASS.update(draw)
    for number, file, name in ((1, out, "stdout"), (2, err, "stderr")):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        setattr(sys, name, os.fdopen(number, "w", buffering=1, encoding="utf-8"))
    kind = arguments[0]
    sys.argv = arguments[1:] if kind in ("-m", "-c") else arguments
    sys.path.insert(0, str(Path(kind).resolve().parent) if kind not in ("-m", "-c") else cwd)
    if kind == "-m":
        sys.modules.pop(arguments[1], None)  # the server has imported it under its own name
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv[0] = "-c"
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(kind, run_name="__main__")
