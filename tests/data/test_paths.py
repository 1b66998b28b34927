"""``data.root`` as people write it, for every data set alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfedmma.data.loading import DataConfig, open_source
from pfedmma.data.sources.registry import NAMES
from pfedmma.system.errors import UserError


@pytest.mark.parametrize("root", ["~/some", "$HERE/some", "${HERE}/some"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "shapes"])
def test_what_stands_for_the_folder_is_put_in(name: str, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The error of an empty folder, rather than that of a folder that is not there."""
    (tmp_path / "some").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HERE", str(tmp_path))
    told = []
    for given in (root, str(tmp_path / "some")):
        with pytest.raises(UserError) as error:
            open_source(DataConfig(name=name, root=given), 0, 32)
        told.append(str(error.value).replace(given, "ROOT"))
    assert "there is no folder" not in told[0] and told[0].replace(str(tmp_path / "some"), "ROOT") == told[1]
