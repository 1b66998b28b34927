"""The page in a browser as narrow as a phone, where one is installed: its width, its hints, its tables that can be sorted."""

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
onload = () => { const page = document.querySelector("iframe").contentDocument, d = page.documentElement;
  const table = page.querySelector("table.sortable"), told = [d.clientWidth, d.scrollWidth, page.querySelectorAll(".wider").length];
  const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent == "Local");
  const ends = () => { const rows = table.tBodies[0].rows;
    told.push(rows[0].cells[column].textContent, rows[rows.length - 1].cells[column].textContent); };
  for (const click of [1, 2]) { table.tHead.rows[0].cells[column].firstChild.click(); ends(); }
  document.title = "told " + told.join(" "); };</script>"""


def told(folder: Path) -> list[float]:
    """Of ``page.html`` in a frame of 390 px: width, what it would need, tables with a hint; Local at both ends, sorted down, then up."""
    (folder / "frame.html").write_text(FRAME)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [str(BROWSER), *options, "--virtual-time-budget=5000", "--dump-dom", (folder / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    found = re.search(r"told ([^<]*)<", done.stdout)
    assert found, done.stderr[-500:]
    return list(map(float, found[1].split()))


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_nothing_is_wider_than_a_phone_and_tables_are_sorted(tmp_path: Path):
    names = ["pfedmma", "a_method_with_a_name_of_many_characters_in_one_word"]
    rows = [member(i, 60.0, 55.0 + i, ["class_" * 12]) | {"domain": "a domain with a name"} for i in range(30)]
    extra = {"domains": {"a_domain_whose_name_has_no_end_in_sight": 3.0}}
    made = [summary(name, per_client=rows, accuracy=accuracy(80.0) | extra) for name in names]
    runs = [write_run(tmp_path / name, one) for name, one in zip(names, made, strict=True)]
    main([*map(str, runs), "--html", str(tmp_path / "page.html")])
    width, needed, hints, highest, lowest, first, last = told(tmp_path)
    assert needed <= width <= 390 and hints > 2  # wide tables scroll, and say so
    assert (highest, lowest) == (84.0, 55.0) == (last, first)
