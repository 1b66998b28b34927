"""What accuracies do not say of the clients' models: how images and classes lie to each other, and how alike clients have become.

All are of the base test images, as each client sees them, and the means over the tested clients:

- **alignment margin**: cos(z, w_y) minus the mean of cos(z, w_c) over the other classes, mean over images. z and w are the features of an
  image and of a class. Where a method has no one feature of each in one space (FedOTP: patches, and two prompts a class), it is the
  margin of logits / exp(logit_scale), the similarity by which the method answers: of FedOTP, cosines weighed by a plan of mass gamma.
  With pFedMoAP it is that of the client's own prompt, without the experts; with FedCLIP, of the attended image feature.
- **modality gap** (Liang et al. 2022, arXiv 2203.02053): |mean z - mean w|, over images and over classes; None where z and w are not
  of one space.
- **ECE** (Guo et al. 2017, arXiv 1706.04599): expected calibration error in percent, from the logits of every method. In each of 15
  equal bins (k/15, (k+1)/15] of the confidence, the largest softmax, |share right - mean confidence| counts by its images.
- **CKA of S** (Kornblith et al. 2019, arXiv 1905.00414): linear CKA of what S gives in the highest adapted block of the image tower,
  before the activation, on one batch of images; mean over all pairs of clients. See `Method.shared_outputs`. None where a method has no S.

The mean over pairs needs no pair: with K the centred Gram matrix of a client, CKA(i, j) is the inner product of K_i / |K_i| and
K_j / |K_j|, so one sum of such matrices is enough. It is [B,B] whatever the number of clients, and it is all that ranks add up.

Shape legend: C clients, N images, B images of the batch for CKA, K classes, D embedding, r numbers that S gives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15
MOST_IMAGES = 128  # B: more would make CKA better known, and the sum over ranks larger: B x B numbers in fp64, 131 kB


def similarities(images: Tensor, texts: Tensor, logits: Tensor, scale: Tensor) -> Tensor:
    """Cosines [C,N,K] of features [C,N,D] and [C,K,D]; logits [C,N,K] / ``scale`` where the features are not `comparable`."""
    if not comparable(images, texts):
        return logits.float() / scale
    return torch.bmm(F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1).mT)


def comparable(images: Tensor, texts: Tensor) -> bool:
    """Whether there is one feature of an image and one of a class, and both are of one space."""
    return images.dim() == texts.dim() == 3 and images.shape[-1] == texts.shape[-1]


def margins(similarity: Tensor, labels: Tensor) -> Tensor:
    """By how much the right class is nearer than the mean of the others [C,N]; NaN where there is one class alone.

    Args:
        similarity: [C,N,K]. labels: [N].
    """
    own = similarity[:, torch.arange(len(labels), device=labels.device), labels]
    return own - (similarity.sum(dim=-1) - own) / (similarity.shape[-1] - 1)


def confidences(logits: Tensor) -> Tensor:
    """The largest softmax of each image: [C,N,K] -> [C,N]."""
    return logits.float().softmax(dim=-1).amax(dim=-1)


def centre_offset(images: Tensor, texts: Tensor) -> Tensor:
    """The sum over images of z - mean w, features normalised: [C,N,D], [C,K,D] -> [C,D]. Over N, its length is the modality gap."""
    z, w = (F.normalize(x.float(), dim=-1) for x in (images, texts))
    return z.double().sum(dim=1) - images.shape[1] * w.double().mean(dim=1)


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> Tensor:
    """ECE in percent [C].

    Args:
        confidence: [C,N], 0 to 1. right: [C,N], 1 where the model is right and 0 where not, or between.
    """
    place = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    apart = torch.zeros(len(confidence), bins, dtype=torch.float64).scatter_add_(1, place, right - confidence)  # n_bin (right - confidence)
    return apart.abs().sum(dim=1) / confidence.shape[1] * 100.0


def spread(images: int, most: int = MOST_IMAGES) -> Tensor:
    """At most so many of a test set's images, ascending and evenly apart, so that sets in order of class give some of each class."""
    count = min(images, most)
    return torch.arange(count) * images // max(count, 1)


def unit_grams(outputs: Tensor) -> Tensor:
    """Centred Gram matrices of length 1 [C,B,B], fp64, from [C,B,r]; 0 of a client whose outputs are the same for all images."""
    x = outputs.double()
    # Centring the columns of X centres both sides of X X'.
    x = x - x.mean(dim=1, keepdim=True)
    size = x.flatten(1).norm(dim=1)
    flat = size <= 1e-6 * outputs.double().flatten(1).norm(dim=1)  # nothing but rounding errors of a constant
    grams = x @ x.mT
    lengths = grams.flatten(1).norm(dim=1).masked_fill(flat, torch.inf)
    return grams / lengths[:, None, None]


def mean_cka(total: Tensor, clients: float) -> float | None:
    """The mean of linear CKA over all pairs of clients, from the sum of their `unit_grams` that are not 0; None without a pair.

    |sum of K|^2 is the sum over all pairs, each twice, and of each client with itself, which is 1.
    """
    return (float(total.square().sum()) - clients) / (clients * (clients - 1)) if clients > 1 else None
