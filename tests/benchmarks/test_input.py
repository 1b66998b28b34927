"""The input benchmark: both sides see every file in every epoch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.programs import LIMIT, run
from tests.support import small

pytestmark = pytest.mark.timeout(LIMIT)


def test_both_sides_read_the_same_files(tmp_path: Path) -> None:
    images = small.write_caltech(tmp_path)
    done = run("input.py", "--root", str(images), "--size", "32", "--workers", "0", "--epochs", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["files"], report["size"]) == (len(list(images.rglob("*.jpg"))), 32)
    assert [len(report[f"{side}_images_per_second"]) for side in ("pfedmma", "dataloader")] == [2, 2]
    assert report["decoded_megabytes_held"] > 0 and report["versions"]["torch"] and report["processor"]


def test_a_folder_without_images(tmp_path: Path) -> None:
    done = run("input.py", "--root", str(tmp_path))
    assert done.returncode == 2 and "there is no image below" in done.stderr
