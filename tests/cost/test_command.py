"""``python -m pfedmma.cost``: numbers of the paper's backbone, tables that cut nothing, files, and what it refuses."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from pfedmma.config import schema
from pfedmma.cost import lines, shown
from pfedmma.cost.__main__ import chosen, main
from pfedmma.cost.lines import Line, Sweep
from pfedmma.cost.links import links
from pfedmma.methods import registry
from pfedmma.system.errors import UserError
from tests.config.test_plugins import BIAS
from tests.support.columns import unexplained

TINY = ["--methods", "pfedmma,promptfl,zeroshot", "--classes", "4", "federation.batch_size=2"]
# Trained and exchanged parameters of one client at ViT-B/16.
PAPER = {
    "zeroshot": (0, 0),
    "pfedmma": (674_560, 8_448),
    "local": (674_560, 0),
    "fedavg_mma": (674_560, 674_560),
    "promptfl": (8_192, 8_192),
    "fedpgp": (12_416, 8_192),
    "fedotp": (16_384, 8_192),
    "pfedmoap": (74_240, 8_192),
    "fedclip": (525_312, 525_312),
    "fedmaple": (3_555_072, 3_555_072),
    "fedlora": (184_320, 184_320),
    "promptfolio": (16_384, 8_192),
    "fedpha": (16_384, 8_192),
    "fedtpg": (4_206_080, 4_206_080),
    "clipadapter": (131_072, 131_072),
    "fedmgp": (12_800, 5_120),
}


def sweep(**changed: object) -> Sweep:
    return Sweep(["fp32"], [10], [1, 2, 8], links("home=10M,lan=1G"), 4)._replace(**changed)


@pytest.fixture(scope="module")
def paper() -> list[Line]:
    """Every method at ViT-B/16, with few images and classes."""
    configs = [schema.load(None, ["backbone.name=ViT-B-16", "federation.batch_size=2", f"method.name={name}"]) for name in PAPER]
    return lines.lines(configs, sweep())


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_parameters_and_bytes_of_every_method_at_vit_b_16(paper: list[Line]) -> None:
    for line in paper:
        trained, exchanged = PAPER[line.method]
        cells = line.cells
        assert (cells["trained_parameters_per_client"], cells["exchanged_parameters_per_client"]) == (trained, exchanged)
        assert cells["uplink_bytes_per_client_round"] == 4 * exchanged
        down = 10 if line.method == "pfedmoap" else 1  # its own and those of nine others
        assert cells["downlink_bytes_per_client_round"] == down * 4 * exchanged
        assert cells["uplink_bytes_per_run"] == 50 * 10 * 4 * exchanged
        assert cells["client_exchange_seconds_home_modelled"] == pytest.approx(8 * (1 + down) * 4 * exchanged / 10e6)
    assert {line.backbone for line in paper} == {149_620_737} and paper[0].delivery == 598_482_948


def test_the_page_of_methods_has_these_numbers() -> None:
    page = (Path(registry.__file__).parent / "README.md").read_text(encoding="utf-8")
    table = page[page.index("| `method.name` | paper |") :].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| `")][1:]
    said = {row[0].strip("`"): (int(row[2].replace(",", "")), int(row[5].replace(",", ""))) for row in rows}
    assert said == {name: (trained, 4 * exchanged) for name, (trained, exchanged) in PAPER.items()}


def test_a_step_of_every_method_is_counted(paper: list[Line]) -> None:
    steps = {line.method: line.step for line in paper}
    assert all(step is not None and step.flop > 0 for step in steps.values())
    assert all((step.kept_bytes > 0) == (name != "zeroshot") for name, step in steps.items())
    assert steps["pfedmma"] == steps["local"] and steps["fedclip"].kept_bytes < steps["promptfl"].kept_bytes < steps["fedmaple"].kept_bytes


def test_a_clients_own_tensors_by_hand(paper: list[Line]) -> None:
    """Weights, gradients and SGD's momentum, three numbers a weight; Adam has two in place of the momentum."""
    state = {line.method: line.state for line in paper}
    assert state["pfedmma"] == 3 * 4 * 674_560 and state["fedlora"] == 4 * 4 * 184_320 and state["zeroshot"] == 0


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("wires", [["fp32"], ["fp32", "bf16"]])
def test_tables_cut_no_name_and_no_number(paper: list[Line], width: int, wires: list[str]) -> None:
    configs = [line.config for line in paper if line.ranks == 1][:3] if len(wires) > 1 else []
    own = lines.lines(configs, sweep(wires=wires, clients=[10, 100])) if configs else paper
    console = Console(width=width, record=True, file=io.StringIO())
    for table in shown.tables(own, width):
        console.print(table)
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    assert all(line.method in text for line in own) and f"{own[0].exchange.method.layout.trained_size:,}" in text
    assert ("no room for" in text) == (width < 100)


def test_the_csv_has_a_line_for_each_combination_and_all_columns_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*TINY, "--wire", "fp32,bf16", "--ranks", "1,4", "--clients", "5,10", "--links", "a=1M/2M", "--csv", str(tmp_path / "c.csv")])
    rows = read(tmp_path / "c.csv")
    assert unexplained(rows[0]) == set()
    assert len(rows) == 3 * 2 * 2 * 2 and f"csv: {tmp_path / 'c.csv'}" in capsys.readouterr().out.replace("\n", "")
    row = next(r for r in rows if (r["method"], r["wire"], r["clients"], r["ranks"]) == ("pfedmma", "bf16", "5", "4"))
    up = int(row["uplink_bytes_per_client_round"])
    assert up == 2 * int(row["exchanged_parameters_per_client"]) == 2 * 3 * 1056
    assert int(row["uplink_bytes_per_run"]) == 50 * 5 * up and float(row["ring_bytes_per_rank_round_modelled"]) == 1.5 * up
    assert float(row["client_exchange_seconds_a_modelled"]) == pytest.approx(8 * (up / 1e6 + up / 2e6))
    assert float(row["ring_exchange_seconds_a_modelled"]) == pytest.approx(8 * 1.5 * up / 1e6)
    assert float(row["backbone_delivery_seconds_a_modelled"]) == pytest.approx(8 * int(row["backbone_bytes"]) / 2e6)
    counts = {"method", "backbone", "wire", "clients", "participants_per_round", "rounds", "ranks"}
    counts |= {"local_step_images", "local_step_classes", "local_step_precision"}
    units = re.compile("bytes|seconds|parameters|flop")
    assert all(units.search(name) for name in row.keys() - counts)


def test_the_settings_of_a_run_are_those_of_its_costs(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("method: {dim: 8}\nfederation: {rounds: 3}\ndistributed: {wire: fp16}\n")
    main(["--methods", "pfedmma", "--config", str(tmp_path / "own.yaml"), "--classes", "3", "data.clients=4", "--csv", str(tmp_path / "c")])
    row = read(tmp_path / "c")[0]
    assert (row["wire"], row["clients"], row["rounds"], row["exchanged_parameters_per_client"]) == ("fp16", "4", "3", str(3 * (8 * 8 + 8)))


def test_the_local_step_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*TINY, "--no-step", "--csv", str(tmp_path / "c.csv")])
    rows = read(tmp_path / "c.csv")
    assert {row["local_step_flop"] for row in rows} == {""} and int(rows[0]["client_state_bytes"]) > 0
    said = capsys.readouterr()
    assert "a local step" not in said.out + said.err and "a round's exchange" in said.out


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    main([*TINY, "--plot", str(tmp_path / "bytes.png")])
    with Image.open(tmp_path / "bytes.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 10


def test_no_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"--plot needs matplotlib; install it with"):
        main([*TINY, "--plot", str(tmp_path / "bytes.png")])


def test_a_method_of_ones_own(no_plugins: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "textbias.py").write_text(BIAS)
    file = str(tmp_path / "c.csv")
    main([f"plugins={tmp_path / 'textbias.py'}", "--methods", "textbias", "--classes", "4", "federation.batch_size=2", "--csv", file])
    row = read(tmp_path / "c.csv")[0]
    assert (row["method"], row["exchanged_parameters_per_client"]) == ("textbias", "0")
    assert int(row["trained_parameters_per_client"]) > 0 and int(row["local_step_flop"]) > 0
    assert "textbias" in capsys.readouterr().out and chosen("all")[-1] == "textbias"


READS_A_NUMBER = BIAS.replace("        return F", "        assert float(state['bias'].sum()) < 1e9\n        return F").replace(
    "textbias", "reader"
)


def test_a_method_whose_step_reads_numbers_still_has_its_bytes(
    no_plugins: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reader.py").write_text(READS_A_NUMBER)
    main([f"plugins={tmp_path / 'reader.py'}", "--methods", "reader", "--csv", str(tmp_path / "c.csv")])
    row, said = read(tmp_path / "c.csv")[0], capsys.readouterr()
    assert row["local_step_flop"] == "" and int(row["client_state_bytes"]) > 0
    assert "a local step of reader is not counted" in said.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--methods", "fedprox9"], r"^--methods: name.*pfedmma"),
        (["--methods", ","], "^--methods: a list"),
        (["--backbone", "ViT-B-17"], r"^backbone\.name: 'ViT-B-17'.*ViT-B-16"),
        (["--backbone", "RN50", "--methods", "pfedmma"], r"^backbone\.name: the image tower"),
        (["--wire", "fp8"], "--wire: 'fp8' is none of fp32"),
        (["--ranks", "0"], "--ranks: '0' is no whole number"),
        (["--clients", "1,x"], "--clients: 'x' is no whole number"),
        (["--links", "home"], "^--links: 'home' is no link"),
        (["--classes", "9999"], "^--classes: there are names"),
        (["method.exchange=all"], r"exchange: .*\(of method \w+; --methods chooses others\)"),
        (["federation.rounds=0"], r"^federation\.rounds"),
    ],
)
def test_what_cannot_be_said_ends_in_one_sentence(options: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        main(options)
