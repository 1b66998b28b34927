"""A run whose backbone is another by now neither goes on nor answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.evaluate import main as evaluate
from pfedmma.predict import main as predict
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import small


def write_weights(path: Path, seed: int, dtype: torch.dtype = torch.float32) -> None:
    """Tiny with random weights, as a file."""
    model = create_model(BackboneConfig(pretrained="none"), seed)
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}, path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_weights(tmp_path / "weights.safetensors", 1)
    Image.new("RGB", (40, 40), (9, 90, 200)).save(tmp_path / "image.png")
    pretrained = f"backbone.pretrained={tmp_path / 'weights.safetensors'}"
    main(small.settings(tmp_path / "run", pretrained, "backbone.name=tiny", "federation.rounds=1"))
    return tmp_path / "run"


def test_other_weights_behind_the_same_path_are_refused(run: Path) -> None:
    write_weights(run.parent / "weights.safetensors", 2)
    for command in (
        lambda: main([f"resume={run}", "federation.rounds=2"]),
        lambda: evaluate([str(run)]),
        lambda: predict([str(run), str(run.parent / "image.png"), "--client=0"]),
    ):
        with pytest.raises(UserError, match=r"^backbone.pretrained: .*made with other frozen weights \(weights.safetensors\); set it"):
            command()
    assert len(small.metrics(run)) == 1


def test_the_same_weights_in_half_precision_go_on(run: Path) -> None:
    write_weights(run.parent / "weights.safetensors", 1, torch.bfloat16)
    main([f"resume={run}", "federation.rounds=2"])
    assert len(small.metrics(run)) == 2
