"""What one client's model sees in images: the same as at evaluation, from the run's folder alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pfedmma import rng
from pfedmma.data.drawn.drawing import COLOURS, SHAPES, STYLES, draw_random
from pfedmma.predict import LABEL_SPACES, find_images
from pfedmma.predict import main as predict
from pfedmma.system.errors import UserError
from pfedmma.train import main as train
from tests.support import painted, small
from tests.support.specimens import with_digest

METHODS = ("zeroshot", "pfedmma", "promptfl", "pfedmoap", "fedotp")
CLIENTS = 3
Answer = dict[str, Any]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/<class>/`` and ``test/<class>/`` of 12 classes: drawings under much noise, and not square."""
    root = tmp_path_factory.mktemp("pictures")
    for part, count in (("train", 3), ("test", 4)):
        for colour, shape in painted.KINDS:
            folder = root / part / f"{COLOURS[colour]}_{SHAPES[shape]}"
            folder.mkdir(parents=True)
            kinds = (torch.full((count,), value) for value in (shape, colour, 0, STYLES.index("night")))
            for number, picture in enumerate(draw_random(*kinds, rng.generator(0, part, colour, shape))):
                noise = rng.generator(0, part, colour, shape, number)
                noisy = 0.35 * picture + 165 * torch.rand(picture.shape, generator=noise)
                image = Image.fromarray(noisy.to(torch.uint8).permute(1, 2, 0).numpy())
                image.resize((47 + number, 39)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def run_of(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A finished run of a method; two of three clients train in its one round."""
    root = tmp_path_factory.mktemp("runs")
    runs: dict[tuple[str, ...], Path] = {}

    def run_of(*chosen: str) -> Path:
        if chosen not in runs:
            method, *more = chosen
            run = root / str(len(runs))
            settings = ["backbone.pretrained=auto", "data.name=imagefolder", f"data.root={pictures}", f"data.clients={CLIENTS}"]
            settings += ["data.shots=3", "federation.participation=0.6", "federation.rounds=1", "evaluation.every=1", "optimizer.lr=0.05"]
            train(small.settings(run, *settings, f"method.name={method}", *more))
            runs[chosen] = run
        return runs[chosen]

    return run_of


@pytest.fixture
def answers(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[Answer]]:
    def answers(run: Path, client: int, *more: str | Path) -> list[Answer]:
        capsys.readouterr()
        predict([str(run), "--client", str(client), "--json", *map(str, more)])
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return answers


def truth(answer: Answer) -> str:
    return Path(answer["image"]).parent.name


def percent_right(found: list[Answer], classes: set[str]) -> float:
    """Accuracy on the images of these classes."""
    right = [answer["top"][0]["class"] == truth(answer) for answer in found if truth(answer) in classes]
    return 100.0 * sum(right) / len(right)


# The same as at evaluation.


@pytest.mark.parametrize("method", [*METHODS, "pfedmma method.private_init=own", "fedpgp method.private_init=own"])
def test_it_is_right_as_often_as_the_evaluation_says(method: str, pictures: Path, run_of: Callable[..., Path], answers: Any) -> None:
    run = run_of(*method.split())
    names = sorted(folder.name for folder in (pictures / "test").iterdir())
    base, novel = set(names[:6]), set(names[6:])
    clients = small.summary(run)["per_client"]
    for row in clients:
        found = answers(run, row["id"], pictures / "test", "--classes", "base", "--top", "1", "--batch-size", "7")
        assert len(found) == 48 and {answer["round"] for answer in found} == {1}
        assert percent_right(found, base) == pytest.approx(row["base"])
        assert percent_right(found, set(row["classes"])) == pytest.approx(row["local"])
    found = answers(run, clients[0]["id"], pictures / "test", "--classes", "novel")
    assert percent_right(found, novel) == pytest.approx(clients[0]["novel"])
    # Equality means something.
    assert 0 < clients[0]["base"] < 100
    if method.startswith("pfedmma"):
        assert len({row["base"] for row in clients}) > 1


def test_all_classes_by_default_and_those_of_the_client(pictures: Path, run_of: Callable[..., Path], answers: Any) -> None:
    run, picture = run_of("pfedmma"), pictures / "test" / "red_circle" / "0.png"
    names = sorted(folder.name for folder in (pictures / "test").iterdir())
    (everything,) = answers(run, 0, picture, "--top", "99")
    assert sorted(row["class"] for row in everything["top"]) == names
    values = [row["probability"] for row in everything["top"]]
    assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1.0)
    assert answers(run, 0, picture)[0]["top"] == everything["top"][:5]
    held = small.summary(run)["per_client"][1]["classes"]
    (own,) = answers(run, 1, picture, "--classes", "own")
    assert sorted(row["class"] for row in own["top"]) == sorted(held)


def test_any_names(tmp_path: Path, pictures: Path, run_of: Callable[..., Path], answers: Any) -> None:
    run, picture = run_of("pfedmma"), pictures / "test" / "red_circle" / "0.png"
    (given,) = answers(run, 0, picture, "--names", "red circle, brown square,,red circle")
    assert [row["class"] for row in given["top"]] in (["red circle", "brown square"], ["brown square", "red circle"])
    (tmp_path / "names.txt").write_text("red circle\n\nbrown square\n", encoding="utf-8")
    assert answers(run, 0, picture, "--names-file", tmp_path / "names.txt") == [given]
    # A class is what its prompt says: "_" is read as a space.
    (spoken,) = answers(run, 0, picture, "--names", "red_circle,brown_square")
    assert [row["probability"] for row in spoken["top"]] == [row["probability"] for row in given["top"]]


def test_the_precision_of_the_run(tmp_path: Path, pictures: Path, run_of: Callable[..., Path], answers: Any) -> None:
    run = run_of("pfedmma")
    half = Path(shutil.copytree(run, tmp_path / "half"))
    text = (half / "config.yaml").read_text()
    assert "precision: fp32" in text
    (half / "config.yaml").write_text(text.replace("precision: fp32", "precision: bf16"))
    exact, rough = (
        {
            row["class"]: row["probability"]
            for row in answers(folder, 0, pictures / "test" / "red_circle" / "0.png", "--top", "99")[0]["top"]
        }
        for folder in (run, half)
    )
    assert 1e-4 < max(abs(exact[name] - rough[name]) for name in exact) < 0.2


def test_an_interrupted_run_answers_from_its_newest_good_checkpoint(tmp_path: Path, pictures: Path, answers: Any) -> None:
    settings = [*painted.SETTINGS, "federation.rounds=2", "checkpoint.every=1"]
    train(small.settings(tmp_path / "run", *settings, f"data.root={painted.paint(tmp_path / 'painted')}"))
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "painted")  # the data are not needed
    picture = pictures / "test" / "red_circle" / "0.png"
    (newest,) = answers(tmp_path / "run", 1, picture)
    (tmp_path / "run" / "checkpoints" / "round-000002" / "server.safetensors").write_bytes(b"cut off")
    (older,) = answers(tmp_path / "run", 1, picture)
    assert (newest["round"], older["round"]) == (2, 1) and newest["client"] == 1
    assert newest["top"] != older["top"]


# What a person reads.


def test_readable_lines(pictures: Path, run_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, folder = run_of("pfedmma"), pictures / "test" / "red_circle"
    predict([str(run), "--client", "1", str(folder), "--top", "2", "--batch-size", "1"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == f"client 1 of {run} after round 1 (pfedmma), 12 classes"
    assert lines[::3] == [str(folder / f"{number}.png") for number in range(4)]
    shares = [float(line.split()[0]) for line in lines if "%" in line]
    assert len(shares) == 8 and all(first >= second for first, second in zip(shares[::2], shares[1::2], strict=True))


def test_folders_are_searched_in_order(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPG", "a.webp", "b/c/.hidden.png", "b/notes.txt", "b/c/0.jpeg", "B.png/x.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([str(tmp_path / "b" / "notes.txt"), str(tmp_path)])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "b/notes.txt", "B.png/x.bmp", "a.webp", "b/1.JPG", "b/2.png", "b/c/0.jpeg"
    ]  # fmt: skip


# What goes wrong.


def test_an_unreadable_image_among_others(
    tmp_path: Path, pictures: Path, run_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(pictures / "test" / "red_circle", tmp_path / "some"))
    (folder / "1.png").write_bytes(b"<html>404</html>")
    whole = [str(run_of("pfedmma")), "--client", "0", "--json", "--batch-size", "3"]
    with pytest.raises(SystemExit) as ended:
        predict([*whole, str(folder)])
    captured = capsys.readouterr()
    assert ended.value.code == 1
    assert [Path(json.loads(line)["image"]).name for line in captured.out.splitlines()] == ["0.png", "2.png", "3.png"]
    first, last = captured.err.splitlines()
    assert first.startswith(f"error: cannot read the image {folder / '1.png'}") and last == "error: 1 of 4 images could not be read"
    # The others are answered as without it.
    predict([*whole, *(str(folder / f"{number}.png") for number in (0, 2, 3))])
    again = [json.loads(line)["top"] for line in capsys.readouterr().out.splitlines()]
    for row, other in zip(map(json.loads, captured.out.splitlines()), again, strict=True):
        assert [item["probability"] for item in row["top"]] == pytest.approx([item["probability"] for item in other], rel=1e-4)


def test_no_readable_image_at_all(tmp_path: Path, run_of: Callable[..., Path]) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").touch()
    with pytest.raises(UserError, match=r"cannot read the image .*0\.png"):
        predict([str(run_of("pfedmma")), "--client", "0", str(tmp_path / "0.png")])
    with pytest.raises(UserError, match="none of the 2 images can be read"):
        predict([str(run_of("pfedmma")), "--client", "0", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--client", "3", "PICTURE"], r"--client: .* has clients 0 \.\. 2, not 3"),
        (["--client", "-1", "PICTURE"], r"has clients 0 \.\. 2"),
        (["--client", "0", "nowhere.png"], "there is no image nowhere.png"),
        (["--client", "0", "EMPTY"], "there is no image in the folder .*looked for .*png"),
        (["--client", "0"], "IMAGE"),
        (["PICTURE"], "--client"),
        (["--client", "0", "PICTURE", "--top", "0"], "--top: '0' is no whole number from 1 on"),
        (["--client", "0", "PICTURE", "--classes", "some"], "--classes: invalid choice: 'some'"),
        (["--client", "0", "PICTURE", "--names", " ,"], "--names: gives no class name"),
        (["--client", "0", "PICTURE", "--names", "cat\ud800"], "--names: 'cat.ud800' is no class name"),
        (["--client", "0", "PICTURE", "--names-file", "nowhere.txt"], "--names-file: cannot read nowhere.txt: No such file"),
        (["--client", "0", "PICTURE", "--names-file", "PICTURE"], "--names-file: cannot read"),
        (["--client", "0", "PICTURE", "--names", "a", "--classes", "own"], "not allowed with"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, pictures: Path, run_of: Callable[..., Path], arguments: list[str], message: str
) -> None:
    known = {"PICTURE": str(pictures / "test" / "red_circle" / "0.png"), "EMPTY": str(tmp_path)}
    with pytest.raises(UserError, match=message):
        predict([str(run_of("pfedmma")), *(known.get(word, word) for word in arguments)])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_to_use(pictures: Path, run_of: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="--device: 'cuda' is asked for"):
        predict([str(run_of("pfedmma")), "--client", "0", str(pictures), "--device", "cuda"])


def test_runs_that_cannot_answer(tmp_path: Path, pictures: Path, run_of: Callable[..., Path], answers: Any) -> None:
    picture = pictures / "test" / "red_circle" / "0.png"
    with pytest.raises(UserError, match="holds no run"):
        answers(tmp_path, 0, picture)
    with pytest.raises(UserError, match=r"no good checkpoint .*train with checkpoint\.every greater than 0"):
        answers(run_of("pfedmma", "checkpoint.every=0"), 0, picture)
    whole = run_of("zeroshot", "data.protocol=iid", "data.shots=0")
    assert len(answers(whole, 0, picture, "--top", "99")[0]["top"]) == 12
    with pytest.raises(UserError, match="has no novel classes, its protocol is iid"):
        answers(whole, 0, picture, "--classes", "novel")


def with_classes(run: Path, copy: Path, classes: Any) -> Path:
    """A copy of a run whose checkpoint says these classes."""
    shutil.copytree(run, copy)
    (file,) = (copy / "checkpoints").glob("round-*/manifest.json")
    tree = json.loads(file.read_text())
    file.write_bytes(with_digest(tree | {"progress": tree["progress"] | {"classes": classes}}))
    return copy


def test_a_run_without_its_classes_asks_for_names(tmp_path: Path, pictures: Path, run_of: Callable[..., Path], answers: Any) -> None:
    """As checkpoints are that were written before they said them."""
    run, picture = with_classes(run_of("zeroshot"), tmp_path / "run", None), pictures / "test" / "red_circle" / "0.png"
    for space in LABEL_SPACES:
        with pytest.raises(UserError, match=rf"the checkpoint in {run} does not say the run's classes; name some by --names"):
            answers(run, 0, picture, "--classes", space)
    assert len(answers(run, 0, picture, "--names", "cat,dog")[0]["top"]) == 2


@pytest.mark.parametrize(
    "classes", [{}, [], "cat", {"base": ["a"], "novel": [1], "held": "4A=="}, {"base": ["a"], "novel": [], "held": "4AAA"}]
)
def test_a_run_with_classes_that_are_none_is_damaged(
    tmp_path: Path, pictures: Path, run_of: Callable[..., Path], answers: Any, classes: Any
) -> None:
    run, picture = with_classes(run_of("zeroshot"), tmp_path / "run", classes), pictures / "test" / "red_circle" / "0.png"
    with pytest.raises(UserError, match="no good checkpoint"):
        answers(run, 0, picture, "--names", "cat,dog")


def test_file_names_of_any_bytes(tmp_path: Path, pictures: Path, run_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9 [red].png")
    shutil.copy(pictures / "test" / "red_circle" / "0.png", odd)
    for more in ([], ["--json"]):
        predict([str(run_of("zeroshot")), "--client", "0", str(odd), *more])
    *_, line = capsys.readouterr().out.splitlines()
    assert os.fsencode(json.loads(line)["image"]) == os.fsencode(odd)
