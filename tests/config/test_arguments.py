"""Arguments of commands that take settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pfedmma import evaluate
from pfedmma.compare import __main__ as compare
from pfedmma.config.arguments import parser_with_settings
from pfedmma.config.table import explained
from pfedmma.system.errors import UserError


def test_settings_and_files_may_stand_anywhere() -> None:
    parser = parser_with_settings("train", "about it", "seed=1")
    parser.add_argument("--flag", action="store_true")
    args = parser.parse_intermixed_args(["seed=1", "--config", "a.yaml", "data.clients=3", "--flag", "--config", "b.yaml", "x=2"])
    assert (args.settings, args.config, args.flag) == (["seed=1", "data.clients=3", "x=2"], ["a.yaml", "b.yaml"], True)
    assert parser.parse_intermixed_args([]).config == []


def test_help_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parser_with_settings("train", "about it", "seed=1").parse_intermixed_args(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and out.startswith("usage: python -m pfedmma.train") and "about it" in out and "--help SECTION." in out


@pytest.mark.parametrize("argv", [["--help", "optimizer."], ["-h", "optimizer"], ["seed=3", "--help", "optimizer."]])
def test_help_of_a_section(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parser_with_settings("train", "about it", "seed=1").parse_intermixed_args(argv)
    assert end.value.code == 0 and capsys.readouterr().out == explained("optimizer.") + "\n"


@pytest.mark.parametrize("command", [evaluate.main, compare.main], ids=["evaluate", "compare"])
def test_commands_without_config_files_explain_settings_too(
    command: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command(["--help", "evaluation."])
    assert end.value.code == 0 and capsys.readouterr().out == explained("evaluation.") + "\n"
    with pytest.raises(SystemExit):
        command(["--help"])
    assert "--help SECTION." in capsys.readouterr().out


def test_help_of_no_section() -> None:
    with pytest.raises(UserError, match="no section or setting 'seed=3'"):
        parser_with_settings("train", "about it", "seed=1").parse_intermixed_args(["--help", "seed=3"])
