"""How other authors' code is found, imported and left again; a written repository takes their place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.support import public_code

TRAINER = """
from Dassl.dassl.engine.trainer import TrainerX
from Dassl.dassl.utils import load_checkpoint
from dassl.engine import TRAINER_REGISTRY
from clip import clip
from clip.model import WIDTH
from clip.simple_tokenizer import SimpleTokenizer
from trainers.other import OTHER

@TRAINER_REGISTRY.register()
class Theirs(TrainerX):
    tokens = clip.tokenize("cat.")
"""


@pytest.fixture
def laid_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the repository "somebody/theirs"."""
    folder = tmp_path / "somebody-theirs"
    for name, text in {"trainers/theirs.py": TRAINER, "trainers/other.py": "OTHER = 2", "clip/model.py": "WIDTH = 3"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setenv(public_code.VARIABLE, str(tmp_path))
    return public_code.repository("somebody/theirs")


def test_an_absent_repository_skips_with_a_sentence(laid_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.skip.Exception, match=r"no folder nobody-none; tests/public_code/README.md says"):
        public_code.repository("nobody/none")
    monkeypatch.delenv(public_code.VARIABLE)
    with pytest.raises(pytest.skip.Exception, match="PFEDMMA_PUBLIC_CODE names no folder"):
        public_code.repository("somebody/theirs")


def test_a_module_reads_stand_ins_and_its_own_repository_and_leaves_nothing_behind(laid_out: Path) -> None:
    modules, path = dict(sys.modules), list(sys.path)
    module = public_code.load(laid_out, "trainers.theirs")

    assert (module.OTHER, module.WIDTH) == (2, 3)
    assert module.Theirs.tokens.shape == (1, 77)
    assert module.SimpleTokenizer().encode("cat") == module.Theirs.tokens[0, 1:2].tolist()
    with pytest.raises(NotImplementedError, match="load_checkpoint is stood in for"):
        module.load_checkpoint("file")
    assert not {"trainers", "clip", "Dassl", "dassl"} & (sys.modules.keys() - modules.keys())
    assert sys.path == path
    assert not list(laid_out.rglob("__pycache__"))


def test_a_step_of_theirs_ends_with_gradients(laid_out: Path) -> None:
    model = torch.nn.Linear(2, 1)
    trainer = public_code.load(laid_out, "trainers.theirs").Theirs(model, cfg=None)
    before = model.weight.detach().clone()
    trainer.model_backward_and_update(model(torch.ones(3, 2)).sum())

    assert torch.equal(model.weight, before)
    assert torch.equal(public_code.gradients_of(model, {"w": before}, {"w": "weight"})["w"], torch.full((1, 2), 3.0))


def test_a_difference_is_told_in_the_largest_number(laid_out: Path) -> None:
    wanted = public_code.Step(torch.tensor([[4.0, 2.0]]), {"w": torch.tensor([10.0, 0.0])})
    near = public_code.Step(wanted.logits, {"w": torch.tensor([10.0, 9e-5])})
    far = public_code.Step(wanted.logits, {"w": torch.tensor([10.0, 1.2e-4])})

    public_code.assert_same_step(near, wanted)
    with pytest.raises(AssertionError, match=r"1\.2e-05"):
        public_code.assert_same_step(far, wanted)
