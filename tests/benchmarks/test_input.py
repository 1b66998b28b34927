"""The input benchmark: both sides see every file in every epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.programs import LIMIT, one_sentence, report_of, run
from tests.support import small

pytestmark = pytest.mark.timeout(LIMIT)


def test_both_sides_read_the_same_files(tmp_path: Path) -> None:
    images = small.write_caltech(tmp_path)
    report = report_of(run("input.py", "--root", str(images), "--size", "32", "--workers", "0", "--epochs", "2", "--device", "cpu"))
    assert report["size"] == 32 and report["date"]
    (found,) = report["files"].values()
    assert found["files"] == len(list(images.rglob("*.jpg")))
    assert [len(found[f"{side}_images_per_second"]) for side in ("pfedmma", "dataloader")] == [2, 2]
    assert found["decoded_megabytes_held"] > 0


def test_files_of_the_sizes_of_a_data_set(tmp_path: Path) -> None:
    small_ones = ("--most", "40", "--size", "32", "--workers", "0", "--epochs", "1", "--device", "cpu")
    found = report_of(run("input.py", "--drawn", "cifar10,caltech101", *small_ones))["files"]
    assert [(name, record["files"]) for name, record in found.items()] == [("cifar10", 40), ("caltech101", 40)]
    assert found["cifar10"]["bytes_a_file"] < found["caltech101"]["bytes_a_file"]


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--root", "."), "there is no image below"), (("--drawn", "mnist"), "nothing is known of the sizes in 'mnist'")],
)
def test_what_has_no_images(tmp_path: Path, options: tuple[str, str], words: str) -> None:
    one_sentence(run("input.py", options[0], str(tmp_path) if options[1] == "." else options[1]), words)


def test_what_a_step_of_images_on_a_gpu_leaves_to_the_host() -> None:
    options = ("--drawn", "food101", "--decode", "reduced", "--most", "3", "--size", "32", "--workers", "0", "--epochs", "1", "--step", "5")
    report = report_of(run("input.py", *options, "--device", "cpu"))
    assert report["decode"] == "reduced"
    left = report["files"]["food101"]["resident"]
    # Every image once, at twice the size on its shorter side: 512 x 512, 512 x 384, 384 x 512.
    assert left["bytes_on_device"] == 3 * (64 * 64 + 85 * 64 + 64 * 85)
    assert left["images"] == 5 and left["bytes_to_device"] == 5 * 7 * 8 and left["milliseconds"] > 0
