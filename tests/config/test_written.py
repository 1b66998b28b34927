"""Settings in a file are taken as they are written, whatever YAML 1.1 makes of them; names may have dots."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfedmma.config import schema


def load(tmp_path: Path, text: str) -> schema.Config:
    (tmp_path / "a.yaml").write_text(text)
    return schema.load(tmp_path / "a.yaml")


@pytest.mark.parametrize("written", ["0012", "12:30", "2025-11-25", "1_000", "0x10", "1e3", "yes", "off", "3.10", "+1", "=", "a b"])
def test_text_is_what_is_written(tmp_path: Path, written: str) -> None:
    """As on the command line."""
    config = load(tmp_path, f"run_dir: {written}\ndata:\n  held_out_domain: ''\n")
    assert config.run_dir == written == schema.load(None, [f"run_dir={written}"]).run_dir


@pytest.mark.parametrize("written", ["", "~", "null", "Null", "''"])
def test_nothing_is_nothing(tmp_path: Path, written: str) -> None:
    config = load(tmp_path, f"resume: {written}\ndata:\noptimizer: {written if written != repr('') else '~'}\n")
    assert config.resume == "" and config.optimizer == schema.Config().optimizer


def test_other_kinds_are_read_as_ever(tmp_path: Path) -> None:
    text = "seed: 7\nmethod: {rescale: false, scale: 1e-3, exchange: [shared, visual.down]}\ntrackers: [tensorboard]\noptimizer: {lr: .5}\n"
    config = load(tmp_path, text)
    assert (config.seed, config.method.rescale, config.method.scale) == (7, False, 1e-3)
    assert (config.method.exchange, config.trackers, config.optimizer.lr) == (("shared", "visual.down"), ("tensorboard",), 0.5)


def test_quoted_text_and_aliases(tmp_path: Path) -> None:
    text = "run_dir: &name '0012'\ndata:\n  root: *name\n"
    config = load(tmp_path, text)
    assert config.run_dir == config.data.root == "0012"


@pytest.mark.parametrize(
    "text",
    [
        "federation.rounds: 3\n",
        "federation:\n  rounds: 3\n",
        "{federation.rounds: 3}",
        "federation.rounds: 3\nfederation:\n  batch_size: 4\n",
    ],
)
def test_names_with_dots_are_taken_apart(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text).federation.rounds == 3


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfseed: 5\r\nfederation:\r\n  rounds: 4\r\n")
    config = schema.load(tmp_path / "a.yaml")
    assert (config.seed, config.federation.rounds) == (5, 4)


def test_what_is_dumped_is_read_back(tmp_path: Path) -> None:
    config = schema.load(None, ["run_dir=0012", "method.exchange=[shared]", "data.template=12:30 {}"])
    assert load(tmp_path, schema.dump(config)) == config
