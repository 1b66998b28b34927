"""The attacks of privacy.py, on plain numbers: ridge regression, what it is worth, and how sure that is.

Shape legend: n clients to learn from, v to attack, X numbers seen of each, q numbers to find, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

PENALTIES = [10.0**power for power in range(-4, 4)]  # in units of the mean squared length of a row
LEARNT = 0.75  # of the clients to learn from; the others choose the penalty
TIMES = 1000  # samples of a bootstrap
Quality = Callable[[Tensor, Tensor], float]  # of what was found [v,q] beside the truth [v,q]; larger is better
Figure = dict[str, float]  # "value", and the ends "low" and "high" of its 95 % interval


class Ridge:
    """Ridge regressions from what is seen of clients to learn from [n,X] to anything about them, then applied to others [v,X].

    Columns are standardised by the clients to learn from. In the dual form, so that X may be large.
    """

    def __init__(self, learn: Tensor, attack: Tensor) -> None:
        mean, deviation = learn.mean(dim=0), learn.std(dim=0)
        kept = deviation > 0
        x, y = ((rows - mean)[:, kept] / deviation[kept] for rows in (learn, attack))
        self.gram, self.cross = (x @ x.T).double(), (y @ x.T).double()

    def __call__(self, targets: Tensor, quality: Quality) -> Tensor:
        """What it finds of those attacked [v,q]; ``targets`` [n,q]: of those to learn from.

        Of `PENALTIES` it takes the one whose ``quality`` is best on the last quarter of these, learnt from the others.
        """
        count = round(LEARNT * len(targets))
        wanted = targets.double()
        tried = [self._solved(self.gram[:count, :count], wanted[:count], self.gram[count:, :count], penalty) for penalty in PENALTIES]
        best = max(range(len(tried)), key=lambda i: quality(tried[i], wanted[count:]))
        return self._solved(self.gram, wanted, self.cross, PENALTIES[best])

    @staticmethod
    def _solved(gram: Tensor, targets: Tensor, cross: Tensor, penalty: float) -> Tensor:
        mean = targets.mean(dim=0)
        ridge = penalty * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        return cross @ torch.linalg.solve(gram + ridge, targets - mean) + mean


def auc(scores: Tensor, truth: Tensor) -> Tensor:
    """Of each row [v], how often something true has a higher score than something false; NaN where there is only one of the two.

    Args:
        scores: [v,K]. truth: [v,K] bool.
    """
    ahead = (scores[:, :, None] > scores[:, None, :]).double() + 0.5 * (scores[:, :, None] == scores[:, None, :])
    pairs = (truth[:, :, None] & ~truth[:, None, :]).double()
    return (ahead * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2))


def named(scores: Tensor, truth: Tensor) -> Tensor:
    """Of each row [v], how many of the k highest scores are of its k true columns; every row of ``truth`` [v,K] has k of them."""
    count = int(truth[0].sum())
    return truth.gather(1, scores.topk(count, dim=1).indices).double().mean(dim=1)


def found_again(rows: Tensor, among: Tensor) -> Tensor:
    """Whether the direction of each row [v,X] is nearest to that of the row of the same number in ``among`` [v,X]: [v] of 0 and 1."""
    cosines = torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(among, dim=1).T
    return (cosines.argmax(dim=1) == torch.arange(len(rows))).double()


def closeness(found: Tensor, truth: Tensor) -> float:
    """Minus the mean squared error."""
    return -float((found - truth).square().mean())


def mean_auc(found: Tensor, truth: Tensor) -> float:
    return float(auc(found, truth > 0.5).nanmean())


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r of two series [v]."""
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def circular_correlation(a: Tensor, b: Tensor) -> float:
    """Of two series of angles, each given as vectors [v,2] of any length (Jammalamadaka and SenGupta 2001)."""
    angles = [torch.atan2(each[:, 1], each[:, 0]) for each in (a, b)]
    sines = torch.stack([torch.sin(each - torch.atan2(each.sin().mean(), each.cos().mean())) for each in angles])
    return float(sines.prod(dim=0).sum() / sines.square().sum(dim=1).prod().sqrt())


def bootstrap(statistic: Callable[[Tensor], float], count: int) -> Figure:
    """A number that follows from the rows of ``count`` victims, with the interval of samples of them drawn with replacement."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([statistic(torch.randint(count, (count,), generator=generator)) for _ in range(TIMES)], dtype=torch.float64)
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"value": statistic(torch.arange(count)), "low": low, "high": high}


def mean_of(each: Tensor) -> Figure:
    """The mean of what each victim comes to [v]."""
    return bootstrap(lambda rows: float(each[rows].nanmean()), len(each))


def cohorts_of(clients: int, size: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` cohorts of the clients 0, 1, ... [count,size]: they are shuffled and dealt, and again when too few are left."""
    each = clients // size
    deals = [torch.randperm(clients, generator=generator)[: each * size].view(each, size) for _ in range(-(-count // each))]
    return torch.cat(deals)[:count]


def of_cohorts(each: Tensor, apart: int) -> Figure:
    """The mean of what each cohort comes to [c], ``apart`` of which share no client: the interval is as wide as if there were no others."""
    value, deviation = float(each.nanmean()), float(each[~each.isnan()].std())
    return {"value": value, "low": value - 1.96 * deviation / apart**0.5, "high": value + 1.96 * deviation / apart**0.5}


def without_basis(changes: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
    """What does not depend on the basis in which a client's private tensors lie [n,numbers].

    Of the change of each tensor its norm, its part along what it was, and its singular values.

    Args:
        changes: {name: [n,*shape]}. start: {name: [*shape]}.
    """
    columns = []
    for name, change in changes.items():
        along = change.flatten(1) @ torch.nn.functional.normalize(start[name].flatten(), dim=0)
        columns += [change.flatten(1).norm(dim=1, keepdim=True), along[:, None]]
        if change.dim() == 3:
            columns.append(torch.linalg.svdvals(change))
    return torch.cat(columns, dim=1)
