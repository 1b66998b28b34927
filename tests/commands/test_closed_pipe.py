"""Programs whose output nobody reads any more, as in ``... | head -1``, end quietly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENDED = 141  # as a shell shows it: 128 + SIGPIPE


def unread(*command: str) -> tuple[int, str]:
    """Exit status and stderr of a program whose reader has gone."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, text=True, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        return process.wait(120), process.stderr.read()


def program(body: str) -> tuple[int, str]:
    return unread("-c", f"import sys\nfrom pfedmma.system.errors import UserError, run_main\ndef main():\n    {body}\nrun_main(main)")


@pytest.mark.parametrize(
    "body",
    [
        "print('a line')",  # first written at the very end
        "print('a line', flush=True)",
        "[print('a line') for _ in range(100_000)]",  # in the middle of what it does
        "sys.stdout.write('x' * 1_000_000)",
    ],
)
def test_it_ends_quietly(body: str) -> None:
    assert program(body) == (ENDED, "")


def test_an_error_is_still_said() -> None:
    assert program("print('a line'); raise UserError('this is wrong')") == (2, "error: this is wrong\n")


def test_another_pipe_s_end_is_no_silence() -> None:
    command = "from pfedmma.system.errors import run_main\ndef main(): raise BrokenPipeError('of a worker')\nrun_main(main)"
    ended = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert ended.returncode == 1 and "BrokenPipeError: of a worker" in ended.stderr


def test_a_list_of_commands_for_a_scheduler(tmp_path: Path) -> None:
    assert unread("-m", "pfedmma.compare", "configs/compare/embedded.yaml", "--dry-run", "--out", str(tmp_path)) == (ENDED, "")
