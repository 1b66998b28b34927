"""Clipping and noise by hand: what one client can move, how much noise there is, and who adds it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pfedmma.server.draws import Draws
from pfedmma.server.privacy import Asked, Bounded, PrivacyConfig
from pfedmma.server.rules import SHARED, ServerRules, Uploads
from pfedmma.server.settings import ServerConfig, bounded_from, refuse, rules_from
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import MEAN, POOL, UNIFORM
from pfedmma.system.errors import UserError
from tests.server.made import LAYOUT, SIZE, server_of, shared_over, uploads_of

DRAWS = Draws.from_seed(0)
# From 1s: ways of length 5, 0.5 and 0.
ROWS = torch.tensor([[4.0, 5.0, 1.0], [1.5, 1.0, 1.0], [1.0, 1.0, 1.0]])


def bounded(clip: float = 1.0, m: float = 3, z: float = 0.0, noise: str = "server") -> Bounded:
    return Bounded(clip, Asked(m, 3), z, noise, DRAWS)


def rules(within: Bounded, server: ServerConfig | None = None) -> ServerRules:
    return rules_from(server or ServerConfig(), False, within, ServerRules(), SIZE)


def end(rules: ServerRules, rows: Tensor = ROWS) -> Tensor:
    server = server_of(rules)
    server.round(uploads_of(rows))
    return server.shared


# Clipping --------------------------------------------------------------------------------------------------------------------------------


def test_ways_are_cut_to_the_norm() -> None:
    """[3, 4, 0] becomes [0.6, 0.8, 0], half a step stays; all weigh a third."""
    torch.testing.assert_close(end(rules(bounded())), 1.0 + torch.tensor([0.6 + 0.5, 0.8, 0.0]) / 3)


def test_a_norm_that_nobody_reaches_cuts_nothing() -> None:
    torch.testing.assert_close(end(rules(bounded(clip=100.0))), ROWS.mean(dim=0))


def test_all_weigh_the_same_however_many_images_they_have() -> None:
    layout = Layout({"a": (1,), "b": (1,)}, {"a": MEAN, "b": UNIFORM})
    assert layout.exchanged_size == 2
    uploads = Uploads(1, [0, 1, 2], [1, 10, 100], [0, 1, 2], ROWS)
    assert bounded().weights(uploads, MEAN) == bounded().weights(uploads, UNIFORM) == [1 / 3] * 3


def test_who_does_not_come_leaves_the_others_their_weight() -> None:
    """Of an expected 4, three ways are summed: none of them counts more for it."""
    torch.testing.assert_close(end(rules(bounded(m=4))), 1.0 + torch.tensor([0.6 + 0.5, 0.8, 0.0]) / 4)


def test_one_client_moves_the_server_by_no_more_than_the_norm() -> None:
    """Whatever it sends: with and without it, the sums are C / m apart at most."""
    with_it, without = ROWS.clone(), ROWS.clone()
    with_it[1] = torch.tensor([1e6, -3e7, 5.0])
    without[1] = 1.0
    assert (
        float(
            (
                end(rules(bounded(clip=0.7)))
                - end(
                    rules(bounded(clip=0.7)),
                )
            ).norm()
        )
        == 0.0
    )
    assert float((end(rules(bounded(clip=0.7)), with_it) - end(rules(bounded(clip=0.7)), without)).norm()) == pytest.approx(
        0.7 / 3, rel=1e-5
    )


# Noise -----------------------------------------------------------------------------------------------------------------------------------

WIDE = Layout({"a": (20_000,)}, {"a": MEAN})


def deviation(within: Bounded, rounds: int = 1) -> list[float]:
    """Standard deviations of what the server receives beside the plain mean, times m / C, of clients that do not move."""
    from pfedmma.server.server import Server
    from tests.server.made import Rank

    server = Server(WIDE, {SHARED: torch.zeros(20_000)}, Rank(), rules_from(ServerConfig(), False, within, ServerRules(), 20_000))
    seen = []
    for round_ in range(1, rounds + 1):
        before = server.shared
        server.round(Uploads(round_, [0, 1, 2], [1, 1, 1], [0, 1, 2], before.expand(3, -1)))
        seen.append(float((server.shared - before).std()) * within.asked.expected / within.clip)
    return seen


@pytest.mark.parametrize("noise", ["server", "clients"])
@pytest.mark.parametrize(("clip", "m", "z"), [(1.0, 3, 2.0), (0.25, 3, 2.0), (1.0, 30, 0.5)])
def test_the_sum_has_noise_of_z_times_the_norm(noise: str, clip: float, m: float, z: float) -> None:
    """Within 5 standard errors of a standard deviation of 20,000 numbers. Clients add a third of the variance each."""
    assert deviation(bounded(clip, m, z, noise)) == pytest.approx([z], rel=5 / (2 * 20_000) ** 0.5)


def test_each_round_has_noise_of_its_own() -> None:
    first, second = (bounded(z=1.0).rest(uploads_of(ROWS, round_), 50) for round_ in (1, 2))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.7 and not torch.equal(first, second)
    assert torch.equal(first, bounded(z=1.0).rest(uploads_of(ROWS, 1), 50))  # the same round again tells nothing new


def test_a_round_without_participants_has_the_noise_all_the_same() -> None:
    """Whether anybody took part is a secret, too; where clients add the noise and there is none, the server does."""
    for noise in ("server", "clients"):
        server = server_of(rules(bounded(z=1.0, noise=noise)))
        server.round(Uploads(1, [], [], [], torch.empty(0, SIZE)))
        torch.testing.assert_close(server.shared, 1.0 + DRAWS.normal(SIZE, "noise", 1).float() / 3)


def test_a_round_without_participants_and_noise_leaves_the_server_as_it_was() -> None:
    for plain in (rules(bounded()), ServerRules(), rules_from(ServerConfig(rule="adam"), False, None, ServerRules(), SIZE)):
        server = server_of(plain)
        server.round(Uploads(1, [], [], [], torch.empty(0, SIZE)))
        assert server.shared.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("noise", ["server", "clients"])
@pytest.mark.parametrize("parts", [[[0, 1, 2], []], [[1], [0, 2]], [[], [2], [0, 1]]], ids=str)
def test_ranks_end_alike(noise: str, parts: list[list[int]]) -> None:
    within = rules(bounded(z=0.5, noise=noise))
    alone, ends = end(within), shared_over(within, ROWS, parts)
    assert all(torch.equal(each, ends[0]) for each in ends)
    torch.testing.assert_close(ends[0], alone, rtol=1e-6, atol=1e-6)


def test_an_optimizer_steps_along_the_noisy_mean() -> None:
    """Momentum without memory at rate 1 takes it as it is."""
    noisy = bounded(z=0.5)
    torch.testing.assert_close(end(rules(noisy, ServerConfig(rule="momentum", betas=(0.0,)))), end(rules(noisy)))


# Settings --------------------------------------------------------------------------------------------------------------------------------


def test_no_bound_is_no_privacy() -> None:
    assert bounded_from(PrivacyConfig(), Asked(3, 3), 0.0, 0) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 3.0}, r"epsilon: needs a bound on what one client sends; set privacy\.clip"),
        ({"noise_multiplier": 1.0}, "noise_multiplier: needs a bound"),
        ({"secure_sum": True}, "secure_sum: needs a bound"),
        ({"clip": 1.0, "epsilon": 3.0, "noise_multiplier": 1.0}, "epsilon: privacy.noise_multiplier sets the noise, too"),
        ({"clip": -1.0}, "clip"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"noise": "nobody"}, "noise"),
    ],
)
def test_what_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PrivacyConfig(**settings)


@pytest.mark.parametrize(
    ("server", "plain", "layout", "message"),
    [
        (ServerConfig(), ServerRules(wire="bf16"), LAYOUT, r"^distributed\.wire: rounding to bf16 comes after privacy\.clip"),
        (ServerConfig(robust="median"), ServerRules(), LAYOUT, r"^server\.robust: how far one client moves median"),
        (
            ServerConfig(),
            ServerRules(),
            Layout({"c": (2,)}, {"c": POOL}),
            r"^privacy\.clip: this method's server keeps what each client sends",
        ),
    ],
    ids=["wire", "robust", "pool"],
)
def test_what_does_not_go_together(server: ServerConfig, plain: ServerRules, layout: Layout, message: str) -> None:
    refuse(server, PrivacyConfig(), plain, layout, Asked(3, 3))
    with pytest.raises(UserError, match=message):
        refuse(server, PrivacyConfig(clip=1.0), plain, layout, Asked(3, 3))
