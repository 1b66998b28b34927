"""The page in a browser as narrow as a phone, where one is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pfedmma.report import main
from tests.support.reported import accuracy, member, summary, write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# A window of a browser without a screen is never narrower than 500 px: a frame of 390 px is what the page is laid out in.
FRAME = """<!doctype html><title>waiting</title><iframe width="390" height="800" src="page.html"></iframe><script>
onload = () => { const d = document.querySelector("iframe").contentDocument.documentElement;
  document.title = "widths " + d.clientWidth + " " + d.scrollWidth; };</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_nothing_is_wider_than_a_phone(tmp_path: Path):
    names = ["pfedmma", "a_method_with_a_name_of_many_characters_in_one_word"]
    rows = [member(i, 60.0, 55.0 + i, ["class_" * 12]) | {"domain": "a domain with a name"} for i in range(30)]
    extra = {"domains": {"a_domain_whose_name_has_no_end_in_sight": 3.0}}
    made = [summary(name, per_client=rows, accuracy=accuracy(80.0) | extra) for name in names]
    runs = [write_run(tmp_path / name, one) for name, one in zip(names, made, strict=True)]
    main([*map(str, runs), "--html", str(tmp_path / "page.html")])
    (tmp_path / "frame.html").write_text(FRAME)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [str(BROWSER), *options, "--virtual-time-budget=5000", "--dump-dom", (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    widths = re.search(r"widths (\d+) (\d+)", done.stdout)
    assert widths, done.stderr[-500:]
    assert int(widths[2]) <= int(widths[1]) <= 390
