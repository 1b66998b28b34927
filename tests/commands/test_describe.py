"""``python -m pfedmma.describe``: a table, a picture, and a partition that a run takes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from pfedmma.config import schema as configuration
from pfedmma.data.loading import divide, open_source
from pfedmma.data.partition.federated import FederatedData
from pfedmma.describe import counts, main
from pfedmma.system.errors import UserError
from tests.support.programs import python

SHAPES = ["data.name=shapes", "data.shots=4"]


def federation_of(settings: list[str]) -> FederatedData:
    """The partition that a run with these settings would work on."""
    config = configuration.load(None, settings)
    return divide(open_source(config.data, config.seed, 32), config.data, config.seed, config.evaluation.split)


def rows(out: str) -> list[list[str]]:
    """The cells of the table's body."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    return [row for row in cells if row and row[0]]


def same(one: FederatedData, other: FederatedData) -> bool:
    return len(one.clients) == len(other.clients) and all(
        mine.classes == theirs.classes
        and mine.domain == theirs.domain
        and all(torch.equal(getattr(mine, name), getattr(theirs, name)) for name in ("train", "labels", "test"))
        for mine, theirs in zip(one.clients, other.clients, strict=True)
    )


def assert_described(settings: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> FederatedData:
    """Describe; the table and the written partition must be those of the run."""
    file = folder / "partition.json"
    main([*settings, "--out", str(file)])
    out = capsys.readouterr().out
    assert f"partition: {file}" in out.replace("\n", "")
    federation = federation_of(settings)
    table = rows(out)
    assert len(table) == len(federation.clients)
    for row, client in zip(table, federation.clients, strict=True):
        numbers = [str(n) for n in (len(client.classes), len(client.train), len(client.test))]
        assert row[:5] == [str(client.id), client.domain or "-", *numbers]
    taken = federation_of([*settings, f"data.partition_file={file}"])
    assert same(federation, taken) and list(federation.sets()) == list(taken.sets())
    return federation


@pytest.mark.parametrize("protocol", ["base_to_novel", "base_to_novel_dirichlet", "iid", "dirichlet"])
def test_drawn_images(protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    federation = assert_described([*SHAPES, f"data.protocol={protocol}", "data.clients=6"], tmp_path, capsys)
    assert sum(len(client.train) for client in federation.clients) == 4 * (60 if protocol.startswith("base_to_novel") else 120)


def test_the_table_says_what_there_is_most_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, count in (("ant", 4), ("bee", 8)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{i}.png")
    main(["data.name=imagefolder", f"data.root={tmp_path}", "data.protocol=iid", "data.clients=1", "data.shots=0"])
    out = capsys.readouterr().out
    assert rows(out) == [["0", "-", "2", "9", "3", "bee 6, ant 3"]]
    assert "imagefolder, iid, seed 0: base 2 classes / 3 images" in re.sub(r"\s+", " ", out)


def test_names_that_look_like_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    # Folders may be called anything; rich would read "[b]" as bold and drop it.
    for name in ("[b]", "[i] $x_1$"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{i}.png")
    main(["data.name=imagefolder", f"data.root={tmp_path}", "data.protocol=iid", "data.clients=1", "data.shots=0"])
    assert "[b] 3" in capsys.readouterr().out


def test_counts_are_classes_by_clients():
    federation = federation_of([*SHAPES, "data.protocol=dirichlet", "data.clients=3"])
    held = counts(federation)
    assert held.shape == (120, 3) and held.sum(1).tolist() == [4] * 120
    assert held.sum(0).tolist() == [len(client.train) for client in federation.clients]


def test_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "c.yaml").write_text("seed: 3\ndata: {name: shapes, clients: 2, shots: 2}\n")
    main(["--config", str(tmp_path / "c.yaml"), "data.clients=5"])
    out = capsys.readouterr().out
    assert len(rows(out)) == 5 and "seed 3" in out  # the command line wins over the file


def test_a_picture(tmp_path: Path):
    pytest.importorskip("matplotlib")
    main([*SHAPES, "data.protocol=dirichlet", "data.clients=4", "--plot", str(tmp_path / "held.png")])
    with Image.open(tmp_path / "held.png") as image:
        assert image.format == "PNG" and min(image.size) > 300
        assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 20  # something is drawn
    for where in (tmp_path / "absent" / "held.png", tmp_path / "held.nonsense"):
        with pytest.raises(UserError, match="--plot: cannot write"):
            main([*SHAPES, "--plot", str(where)])


def test_a_picture_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="--plot needs matplotlib; install it with: pip install"):
        main([*SHAPES, "--plot", str(tmp_path / "held.png")])
    assert not list(tmp_path.iterdir())


def test_a_partition_in_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match="cannot write"):
        main([*SHAPES, "--out", str(tmp_path / "absent" / "p.json")])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["data.protocl=iid"], "did you mean 'data.protocol'"),
        (["data.protocol=domains"], "domains needs a source with domains, which shapes has not"),
        (["data.protocol=pachinko"], "pachinko needs superclasses, which shapes has not"),
        (["data.clients=61"], "works"),
        (["data.shots=65"], "has 64 training images, fewer than 65 shots"),
        (["data.protocol=iid", "data.clients=500", "data.shots=1"], "120 training images cannot give 500 clients 1 each"),
        (["data.protocol=iid", "data.held_out_domain=photo"], "shapes has not"),
        (["data.held_out_domain=photo"], "base_to_novel has no unseen domain"),
        (["data.protocol=base_to_novel_dirichlet", "data.held_out_domain=photo"], "base_to_novel_dirichlet has no unseen domain"),
        (["data.domains=photo"], "data.domains: shapes has no domain 'photo'; it has flat, sketch, night, blurry"),
    ],
)
def test_impossible_requests(arguments: list[str], told: str):
    with pytest.raises(UserError, match=re.escape(told)) as error:
        main([*arguments])
    assert "\n" not in str(error.value)


def test_the_command_ends_with_one_line_and_status_2():
    done = python(["-m", "pfedmma.describe", "data.name=imagefolder", "data.root=absent"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: data.root: there is no folder 'absent'\n"


@pytest.mark.parametrize("protocol", ["base_to_novel", "iid", "dirichlet"])
def test_the_launcher_has_no_say(protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = []
    for rank, world in ((0, 1), (0, 8), (3, 8)):
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world)):
            monkeypatch.setenv(name, str(value))
        torch.manual_seed(rank)
        file = tmp_path / f"{rank}-{world}.json"
        main([*SHAPES, f"data.protocol={protocol}", "--out", str(file)])
        written.append(file.read_bytes())
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("protocol", ["base_to_novel", "iid", "dirichlet"])
def test_real_cifar(protocol: str, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    clients = 5 if protocol == "base_to_novel" else 20
    settings = [
        "data.name=imagefolder",
        f"data.root={real_data / 'cifar10-images'}",
        f"data.protocol={protocol}",
        f"data.clients={clients}",
    ]
    federation = assert_described([*settings, "data.shots=0"], tmp_path, capsys)
    assert sum(len(client.train) for client in federation.clients) == (2500 if protocol == "base_to_novel" else 5000)
    text = (tmp_path / "partition.json").read_text()
    assert json.loads(text)["data"] == "imagefolder" and str(real_data) not in text  # it may be taken to another machine


@pytest.mark.parametrize(
    ("settings", "sets"),
    [
        (["data.protocol=domains", "data.clients=8"], ["base"]),
        (["data.protocol=domains", "data.clients=6", "data.held_out_domain=sketch"], ["base", "unseen"]),
        (["data.protocol=dirichlet", "data.clients=6", "data.held_out_domain=photo"], ["base", "unseen"]),
        (["data.protocol=base_to_novel", "data.clients=2"], ["base", "novel"]),
    ],
)
def test_real_pacs(settings: list[str], sets: list[str], real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = f"data.root={real_data / 'pacs'}"
    federation = assert_described(["data.name=domainfolder", root, "data.shots=16", *settings], tmp_path, capsys)
    assert list(federation.sets()) == sets


@pytest.mark.parametrize("name", ["caltech101", "dtd"])
def test_real_coop_sets(name: str, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = [f"data.name={name}", f"data.root={real_data}", "data.clients=5"]
    federation = assert_described(settings, tmp_path, capsys)
    assert {len(client.train) // len(client.classes) for client in federation.clients} == {16}


def test_the_help_says_what_goes_in_and_what_comes_out(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(f"{option} FILE" in told for option in ("--config", "--plot", "--out")) and "[key=value ...]" in told
    assert "data.partition_file=FILE" in told


def test_the_earlier_name_of_the_command_works():
    done = python(["-m", "pfedmma.data", "describe", *SHAPES])
    assert done.returncode == 0 and "60 classes" in done.stdout, done.stderr


def folder_with_faults(root: Path) -> list[str]:
    """Two classes of six images, an empty one, a file that is no image, and two images that cannot be read."""
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (4, 4)).save(root / name / f"{i}.png")
    (root / "cat").mkdir()
    (root / "ant" / "notes.txt").write_text("x")
    (root / "ant" / "0.png").write_bytes(b"")
    (root / "bee" / "5.png").write_bytes((root / "bee" / "5.png").read_bytes()[:40])
    return ["data.name=imagefolder", f"data.root={root}", "data.protocol=iid", "data.clients=1", "data.shots=0"]


def test_what_was_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(folder_with_faults(tmp_path))
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and told[0] == "warning: left out: the classes cat, of which there is no image"
    assert told[1].startswith("warning: left out: 1 of 13 files (1 .txt)")


def test_check_decodes_every_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = folder_with_faults(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*settings, "--check"])
    said = capsys.readouterr()
    assert ended.value.code == 1 and said.out.endswith("checked: 12 images, 2 of which cannot be read\n")
    named = sorted(line for line in said.err.splitlines() if line.startswith("error: "))
    assert len(named) == 2 and str(tmp_path / "ant" / "0.png") in named[0] and str(tmp_path / "bee" / "5.png") in named[1]
    for path in ("ant/0.png", "bee/5.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / path)
    main([*settings, "--check"])
    assert capsys.readouterr().out.endswith("checked: 12 images, 0 of which cannot be read\n")
