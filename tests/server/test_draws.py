"""Numbers from a key: the same for the same purpose, of the right kind, and from a file that is a key."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from pfedmma.server.draws import Draws
from pfedmma.system.errors import UserError

DRAWS = Draws.from_seed(3)


def test_masks_are_the_words_of_the_function() -> None:
    """SHAKE-256 of the key and what they are for, as little-endian words."""
    stream = hashlib.shake_256(b"k" * 32 + b"32/mask/4/1/2").digest(12)
    wanted = [int.from_bytes(stream[at : at + 4], "little") for at in (0, 4, 8)]
    assert Draws(b"k" * 32).mask(3, "mask", 4, 1, 2).tolist() == wanted


def test_each_purpose_has_its_own() -> None:
    first = DRAWS.mask(8, "mask", 1, 2, 3)
    assert torch.equal(first, DRAWS.mask(8, "mask", 1, 2, 3)) and torch.equal(first[:5], DRAWS.mask(5, "mask", 1, 2, 3))
    others = [
        DRAWS.mask(8, "noise", 1, 2, 3),
        DRAWS.mask(8, "mask", 12, 3),
        DRAWS.mask(8, "mask", 1, 2, 4),
        Draws.from_seed(4).mask(8, "mask", 1, 2, 3),
    ]
    assert not any(torch.equal(first, other) for other in others)


def test_masks_are_uniform() -> None:
    """100,000 words: their mean within 5 standard errors, and all 256 highest bytes about equally often."""
    words = DRAWS.mask(100_000, "mask", 0)
    assert int(words.min()) >= 0 and int(words.max()) < 2**32
    assert abs(float(words.double().mean()) / 2**32 - 0.5) < 5 * (1 / 12 / 100_000) ** 0.5
    counts = torch.bincount(words >> 24, minlength=256)
    assert float(((counts - 100_000 / 256) ** 2 / (100_000 / 256)).sum()) < 255 + 5 * (2 * 255) ** 0.5


@pytest.mark.parametrize("count", [1, 100_001])
def test_noise_is_normal(count: int) -> None:
    drawn = DRAWS.normal(count, "noise", 1)
    assert drawn.shape == (count,) and drawn.dtype == torch.float64 and bool(torch.isfinite(drawn).all())
    if count > 1:
        assert abs(float(drawn.mean())) < 5 * count**-0.5 and abs(float(drawn.var()) - 1.0) < 5 * (2 / count) ** 0.5
        inside = [float((drawn.abs() < bound).double().mean()) for bound in (1.0, 2.0, 3.0)]
        assert inside == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.005)
        assert abs(float((drawn[:-1] * drawn[1:]).mean())) < 5 * count**-0.5
        half = count // 2
        assert abs(float((drawn[:half] * drawn[half : 2 * half]).mean())) < 5 * half**-0.5  # the two of a pair


def test_a_key_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"\x07" * 32)
    assert torch.equal(Draws.from_file(str(file)).mask(4, "mask"), Draws(b"\x07" * 32).mask(4, "mask"))
    assert "\\x07" not in repr(Draws.from_file(str(file)))  # a key is not shown


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot read .*: No such file"), (b"short", "must hold 32 to 4096"), (b"l" * 5000, "must hold")]
)
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=rf"^privacy\.key_file: .*{message}"):
        Draws.from_file(str(file))
