"""How series look, and that every renderer can draw it."""

from __future__ import annotations

import re

from pfedmma.methods import registry
from pfedmma.report import charts
from pfedmma.report.style import STYLE
from pfedmma.system.series import COLOURS, DASHES, DIFFERENT, MARKS, OWN, look, positions


def test_the_first_series_differ_also_without_colour() -> None:
    looks = [look(i) for i in range(35)]
    assert len(set(looks)) == 35
    assert len({(one.dashes, one.mark) for one in looks[:5]}) == 5 and len({one.on_white for one in looks[:7]}) == 7
    assert look(0).dashes == () and look(35) == look(0)


def test_the_page_has_every_mark_stroke_and_colour() -> None:
    assert set(charts.MARKS) == set(MARKS) and len(set(charts.MARKS.values())) == len(MARKS)
    image = charts.line_chart([charts.Curve(f"{i}", [(1.0, float(i)), (2.0, 0.0)], i) for i in range(7)], str)
    lines = [path for path in image.iter("path") if path.get("class", "").startswith("line")]
    assert [path.get("class") for path in lines] == [f"line s{i}" for i in range(7)]
    assert [path.get("stroke-dasharray") for path in lines][:3] == ["none", "7 3", "2 3"] and len(DASHES) == 5
    white, dark = re.findall(r":root \{ (--s0.*?) \}", STYLE)
    for i, (on_white, on_dark) in enumerate(COLOURS):
        assert f"--s{i}: {on_white};" in white and f"--s{i}: {on_dark};" in dark
        assert f".line.s{i} {{ stroke: var(--s{i}); }}" in STYLE and f"rect.s{i} {{ fill: var(--s{i}); }}" in STYLE


def test_a_name_has_its_look_in_whatever_company() -> None:
    assert positions(["local", "pfedmma"]) == positions(["pfedmma", "local"])[::-1] == [OWN.index("local"), OWN.index("pfedmma")]
    alone = positions(["a new one"])
    assert positions(["zeroshot", "a new one", "fedavg_mma"])[1:2] == alone and alone[0] >= len(OWN)
    assert positions(["pfedmma, seed 1", "pfedmma"])[1] == OWN.index("pfedmma")


def test_no_two_series_share_a_look() -> None:
    names = [*registry.NAMES, *registry.NAMES[:3], "a", "b"]
    found = positions(names)
    assert len(set(found)) == len(names) and positions(names) == found
    assert found[names.index("pfedmma")] == OWN.index("pfedmma")
    assert len(set(positions([f"method {k}" for k in range(DIFFERENT)]))) == DIFFERENT
    assert len(set(positions(["one"] * (DIFFERENT + 2)))) == DIFFERENT + 2
    assert len({look(place).on_white for place in positions(OWN[:7])}) == 7
