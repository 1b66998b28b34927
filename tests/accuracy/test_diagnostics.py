"""The arithmetic of the diagnostics, with numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from pfedmma.accuracy import diagnostics


def test_a_margin_is_the_right_class_over_the_mean_of_the_others() -> None:
    cosines = torch.tensor([[[0.5, 0.1, 0.3], [0.2, 0.2, 0.8]]])
    got = diagnostics.margins(cosines, torch.tensor([0, 1]))
    torch.testing.assert_close(got, torch.tensor([[0.5 - 0.2, 0.2 - 0.5]]))


def test_one_class_alone_has_no_margin() -> None:
    assert diagnostics.margins(torch.ones(1, 2, 1), torch.tensor([0, 0])).isnan().all()


def test_similarities_are_cosines_of_features_whatever_the_logits_are() -> None:
    images, texts = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    got = diagnostics.similarities(images, texts, torch.full((1, 1, 2), 99.0), torch.tensor(100.0))
    torch.testing.assert_close(got, torch.tensor([[[0.6, 0.8]]]))


@pytest.mark.parametrize(("images", "texts"), [((1, 2, 7, 4), (1, 2, 3, 4)), ((1, 2, 4), (1, 3, 5))], ids=["patches", "two spaces"])
def test_other_features_are_similar_as_their_logits_say(images: tuple[int, ...], texts: tuple[int, ...]) -> None:
    logits = torch.tensor([[[20.0, 10.0, 5.0], [1.0, 2.0, 3.0]]])
    z, w = torch.ones(images), torch.ones(texts)
    assert not diagnostics.comparable(z, w)
    torch.testing.assert_close(diagnostics.similarities(z, w, logits, torch.tensor(10.0)), logits / 10)


def test_the_modality_gap_is_between_the_means_of_normalised_features() -> None:
    images = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])  # mean direction (.5, .5)
    texts = torch.tensor([[[-1.0, 0.0], [0.0, -5.0], [0.0, -1.0], [-7.0, 0.0]]])  # (-.5, -.5)
    gap = (diagnostics.centre_offset(images, texts) / 2).norm(dim=1)
    assert gap.item() == pytest.approx(math.sqrt(2))


def test_offsets_of_batches_add_up() -> None:
    images, texts = torch.randn(2, 7, 4), torch.randn(2, 3, 4)
    parts = sum(diagnostics.centre_offset(part, texts) for part in images.split(3, dim=1))
    torch.testing.assert_close(parts, diagnostics.centre_offset(images, texts))


def test_confidence_is_the_largest_share() -> None:
    assert diagnostics.confidences(torch.tensor([[[0.0, math.log(3.0)]]])).item() == pytest.approx(0.75)


def test_calibration_error_of_two_bins() -> None:
    # (0, 1/2]: two images, mean confidence .4, one right: |.5 - .4| x 2/4. (1/2, 1]: mean .9, all right: .1 x 2/4.
    confidence = torch.tensor([[0.3, 0.5, 0.8, 1.0]], dtype=torch.float64)
    right = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    assert diagnostics.calibration_error(confidence, right, bins=2).item() == pytest.approx(100 * (0.05 + 0.05))
    # Of one bin: |.75 - .65|.
    assert diagnostics.calibration_error(confidence, right, bins=1).item() == pytest.approx(10.0)


def test_fifteen_bins_and_a_client_each() -> None:
    sure, wrong = torch.ones(1, 4, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)
    assert diagnostics.calibration_error(sure, wrong).item() == 100.0 and diagnostics.calibration_error(sure, sure).item() == 0.0
    # .60 and .66 lie in one bin of 15, (9/15, 10/15], and balance: 1 - .60 and 0 - .66.
    confidence, right = torch.tensor([[0.601, 0.66]] * 2, dtype=torch.float64), torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    got = diagnostics.calibration_error(confidence, right)
    assert got.tolist() == pytest.approx([100 * abs(0.399 - 0.66) / 2, 100 * (0.399 + 0.34) / 2])


def test_images_for_cka_are_spread_over_the_set() -> None:
    assert diagnostics.spread(10, 4).tolist() == [0, 2, 5, 7]
    assert diagnostics.spread(3, 4).tolist() == [0, 1, 2] and diagnostics.spread(0).tolist() == []
    assert len(diagnostics.spread(10_000)) == diagnostics.MOST_IMAGES


def cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """As Kornblith et al. write it: |Y'X|^2 / (|X'X| |Y'Y|), columns centred."""
    x, y = (a.double() - a.double().mean(dim=0) for a in (x, y))
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def test_one_pair_of_orthogonal_outputs_and_one_of_like_ones() -> None:
    x = torch.tensor([[1.0], [-1.0], [0.0], [0.0]])
    y = torch.tensor([[0.0], [0.0], [1.0], [-1.0]])
    grams = diagnostics.unit_grams(torch.stack([x, y, 3 * x + 7]))  # CKA knows neither scale nor offset
    assert diagnostics.mean_cka(grams[[0, 2]].sum(dim=0), 2) == pytest.approx(1.0)
    assert diagnostics.mean_cka(grams[[0, 1]].sum(dim=0), 2) == pytest.approx(0.0)
    assert diagnostics.mean_cka(grams.sum(dim=0), 3) == pytest.approx(1 / 3)  # one of three pairs is alike


def test_the_sum_of_gram_matrices_gives_the_mean_over_pairs() -> None:
    outputs = torch.randn(5, 12, 3, generator=torch.Generator().manual_seed(0))
    pairs = [cka(outputs[i], outputs[j]) for i in range(5) for j in range(i)]
    grams = diagnostics.unit_grams(outputs)
    assert diagnostics.mean_cka(grams.sum(dim=0), 5) == pytest.approx(sum(pairs) / 10)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    turned = diagnostics.unit_grams(torch.stack([outputs[0], outputs[0] @ rotation]))
    assert diagnostics.mean_cka(turned.sum(dim=0), 2) == pytest.approx(1.0)


def test_outputs_that_are_the_same_for_all_images_have_no_similarity() -> None:
    constant = F.normalize(torch.ones(1, 6, 3), dim=-1) * 0.1
    assert diagnostics.unit_grams(constant).abs().max() == 0.0
    assert diagnostics.mean_cka(torch.eye(6), 1) is None and diagnostics.mean_cka(torch.zeros(6, 6), 0) is None
