"""Sums that few participants cannot bend, by hand, on one rank and on two."""

from __future__ import annotations

import pytest
import torch

from pfedmma.comm.ledger import Moved
from pfedmma.comm.world import World
from pfedmma.server.privacy import Asked, PrivacyConfig
from pfedmma.server.robust import MOST_GATHERED
from pfedmma.server.rules import ServerRules
from pfedmma.server.settings import ServerConfig, refuse, rules_from
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import MEAN
from pfedmma.system.errors import UserError
from tests.server.made import CPU, LAYOUT, SIZE, server_of, shared_over, uploads_of

# The last of five sends nonsense.
ROWS = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 1.0], [3.0, 4.0, 2.0], [4.0, 0.0, 2.0], [1e6, -1e6, 2.0]])


def rules(robust: str, **more: float) -> ServerRules:
    return rules_from(ServerConfig(robust=robust, **more), False, None, ServerRules(), SIZE)


def test_the_median_by_hand() -> None:
    server = server_of(rules("median"))
    server.round(uploads_of(ROWS))
    assert server.shared.tolist() == [3.0, 2.0, 2.0]
    server.round(uploads_of(ROWS[:4]))  # of four, the mean of the two in the middle
    assert server.shared.tolist() == [2.5, 2.0, 2.0]


def test_the_trimmed_mean_by_hand() -> None:
    """A fifth of each side: one of five."""
    server = server_of(rules("trimmed_mean", trim=0.2))
    server.round(uploads_of(ROWS))
    assert server.shared.tolist() == pytest.approx([3.0, 4 / 3, 2.0])
    server.round(uploads_of(ROWS[:4]))  # a fifth of four is none
    assert server.shared.tolist() == pytest.approx([2.5, 2.0, 2.0])


def test_nothing_trimmed_is_the_plain_mean() -> None:
    server = server_of(rules("trimmed_mean", trim=0.0))
    server.round(uploads_of(ROWS))
    torch.testing.assert_close(server.shared, ROWS.mean(dim=0))


def test_ways_are_clipped_by_hand() -> None:
    """From 1s: ways of length 3 and 0.5, at most 1 long."""
    rows = torch.tensor([[4.0, 1.0, 1.0], [1.0, 1.5, 1.0]])
    server = server_of(rules("norm_clip", norm=1.0))
    server.round(uploads_of(rows))
    torch.testing.assert_close(server.shared, torch.tensor([1.5, 1.25, 1.0]))


def test_without_a_bound_ways_are_clipped_to_the_median_of_the_round() -> None:
    """Lengths 1, 2 and 10: the last becomes 2."""
    rows = 1.0 + torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 10.0]])
    server = server_of(rules("norm_clip"))
    server.round(uploads_of(rows))
    torch.testing.assert_close(server.shared, 1.0 + torch.tensor([1.0, 2.0, 2.0]) / 3)


def test_a_client_that_does_not_move_is_no_division_by_zero() -> None:
    server = server_of(rules("norm_clip"))
    server.round(uploads_of(torch.ones(3, SIZE)))
    assert server.shared.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("robust", ["median", "trimmed_mean"])
@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4], []], [[3, 0], [1, 2, 4]]], ids=str)
def test_ranks_end_alike(robust: str, parts: list[list[int]]) -> None:
    server = server_of(rules(robust))
    server.round(uploads_of(ROWS))
    for end in shared_over(rules(robust), ROWS, parts):
        assert torch.equal(end, server.shared)


def test_the_gather_is_in_the_ledger() -> None:
    """Five uploads of three numbers instead of one sum of them."""
    world = World(0, 1, CPU)
    server_of(rules("median"), world).round(uploads_of(ROWS))
    assert world.ledger.close_round(SIZE, Moved(5 * SIZE, 5 * SIZE), 4)["payload_bytes"] == 5 * 3 * 4


def test_a_gather_that_is_too_large_is_refused_before_anything_is_trained() -> None:
    """The boundary itself is allowed."""
    layout = Layout({"a": (int(MOST_GATHERED) // 40,)}, {"a": MEAN})
    for config in (ServerConfig(robust="median"), ServerConfig(robust="trimmed_mean")):
        refuse(config, PrivacyConfig(), ServerRules(), layout, Asked(10, 10))
        with pytest.raises(
            UserError, match=r"^server.robust: 11 uploads of 6,400,000 numbers take 282 MB on every rank, more than 256; use"
        ):
            refuse(config, PrivacyConfig(), ServerRules(), layout, Asked(10, 11))
    refuse(ServerConfig(robust="norm_clip"), PrivacyConfig(), ServerRules(), layout, Asked(10, 10_000))


def test_the_layout_of_these_tests_exchanges_a_part() -> None:
    assert LAYOUT.size > SIZE
