"""The secure sum: equal to the plain sum of whole numbers bit for bit, and what travels for it tells nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pfedmma.server.draws import Draws
from pfedmma.server.privacy import Asked, Bounded
from pfedmma.server.rules import SHARED, ServerRules, Uploads
from pfedmma.server.secure_sum import WORD, SecureSum, key_bytes, masked, signed, whole
from pfedmma.server.server import Server
from pfedmma.server.settings import ServerConfig, rules_from
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import MEAN
from tests.server.made import LAYOUT, SIZE, Rank, server_of, shared_over, uploads_of
from tests.support.ranks import run_ranks, values_of

DRAWS = Draws.from_seed(1)
ROWS = 1.0 + torch.randn(5, SIZE, generator=torch.Generator().manual_seed(0))


def rules(clip: float = 1.0, most: int = 5, z: float = 0.0, noise: str = "server", secure: bool = True) -> ServerRules:
    return rules_from(ServerConfig(), secure, Bounded(clip, Asked(most, most), z, noise, DRAWS), ServerRules(), SIZE)


def plain_sum(ways: Tensor, bits: int, m: float) -> Tensor:
    """The oracle: ways rounded to 2^-bits, added as whole numbers, divided by m."""
    return (torch.round(ways.double() * 2.0**bits).long().sum(dim=0).double() / 2.0**bits / m).float()


def cut(rows: Tensor, clip: float) -> Tensor:
    ways = rows - 1.0
    return ways * (clip / ways.norm(dim=1, keepdim=True)).clamp(max=1.0)


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4]], [[0, 1, 2, 3, 4], []], [[2, 0], [4, 1, 3]], [[0], [1], [2], [3, 4]]], ids=str)
def test_it_is_the_plain_sum_bit_for_bit(parts: list[list[int]]) -> None:
    secure = rules()
    wanted = 1.0 + plain_sum(cut(ROWS, 1.0), SecureSum(Bounded(1.0, Asked(5, 5), 0.0, "server", DRAWS)).bits, 5)
    for end in shared_over(secure, ROWS, parts):
        assert torch.equal(end, wanted)


def test_it_is_near_the_sum_of_real_numbers() -> None:
    """To 5 / 2 of 2^-b, where 5 clients of norm 1 leave b = 30 - 3."""
    secure, real = server_of(rules()), server_of(rules(secure=False))
    for server in (secure, real):
        server.round(uploads_of(ROWS))
    assert float((secure.shared - real.shared).abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("most", "clip", "z", "bits"), [(1, 1.0, 0.0, 30), (2, 1.0, 0.0, 29), (100, 1.0, 0.0, 23), (10, 50.0, 0.0, 21), (4, 1.0, 1.0, 26)]
)
def test_how_fine_the_numbers_are(most: int, clip: float, z: float, bits: int) -> None:
    """b = 30 - ceil(log2(m C)), with room for 12 standard deviations of noise."""
    assert SecureSum(Bounded(clip, Asked(most, most), z, "server", DRAWS)).bits == bits


def test_the_largest_sum_does_not_overflow() -> None:
    """All clients at the norm, in the same direction."""
    rows = torch.ones(5, SIZE)
    rows[:, 0] += 100.0
    server = server_of(rules(clip=4.0))
    server.round(uploads_of(rows))
    assert server.shared.tolist() == [5.0, 1.0, 1.0]
    rows[:, 0] -= 200.0
    server = server_of(rules(clip=4.0))
    server.round(uploads_of(rows))
    assert server.shared.tolist() == [-3.0, 1.0, 1.0]


def test_whole_numbers_by_hand() -> None:
    assert whole(torch.tensor([0.5, -0.25, 0.0]), 4.0).tolist() == [2, WORD - 1, 0]
    assert signed(torch.tensor([2, WORD - 1, WORD // 2, WORD // 2 - 1])).tolist() == [2, -1, -(WORD // 2), WORD // 2 - 1]


def test_masks_cancel_out_and_each_upload_has_its_own() -> None:
    words = whole(cut(ROWS, 1.0), 2.0**27)
    sent = masked(words, uploads_of(ROWS), DRAWS)
    assert torch.equal(sent.sum(dim=0) % WORD, words.sum(dim=0) % WORD)
    assert not (sent == words).any()
    assert bool(((sent >= 0) & (sent < WORD)).all())


def test_what_a_client_sends_looks_uniform() -> None:
    """Of a client that does not move, so that all it sends are masks: each of the 16 highest half-bytes as often as any other."""
    uploads = Uploads(3, [4, 9], [1, 1], [4], torch.zeros(1, 50_000))
    sent = masked(torch.zeros(1, 50_000, dtype=torch.int64), uploads, DRAWS)[0]
    for shift in (28, 0):
        counts = torch.bincount((sent >> shift) & 15, minlength=16)
        assert float(((counts - 3125) ** 2 / 3125).sum()) < 15 + 6 * (2 * 15) ** 0.5


def test_the_masks_of_another_round_are_others() -> None:
    words = torch.zeros(2, 8, dtype=torch.int64)
    first, second = (masked(words, Uploads(r, [0, 1], [1, 1], [0, 1], torch.zeros(2, 8)), DRAWS) for r in (1, 2))
    assert not (first == second).any()


@pytest.mark.parametrize("lost", [[0], [2], [4, 1]], ids=str)
@pytest.mark.parametrize("spread", [False, True], ids=["one rank", "two ranks"])
def test_who_drops_out_takes_no_mask_along(lost: list[int], spread: bool) -> None:
    """The others had masked their uploads towards it already."""
    there = [i for i in range(5) if i not in lost]
    rows = ROWS[there]
    bits = SecureSum(Bounded(1.0, Asked(5, 5), 0.0, "server", DRAWS)).bits
    wanted = 1.0 + plain_sum(cut(rows, 1.0), bits, 5)
    parts = [there[:1], there[1:]] if spread else [there]
    for end in shared_over(rules(), rows, parts, lost=lost):
        assert torch.equal(end, wanted)


@pytest.mark.parametrize("noise", ["server", "clients"])
def test_noise_lies_in_the_sum(noise: str) -> None:
    """The same as without masks, up to the grid of whole numbers."""
    secure, real = server_of(rules(z=0.5, noise=noise)), server_of(rules(z=0.5, noise=noise, secure=False))
    for server in (secure, real):
        server.round(uploads_of(ROWS))
    assert float((secure.shared - real.shared).abs().max()) < 1e-5
    assert float((secure.shared - 1.0).norm()) > 0.05


def test_the_wire_carries_masked_whole_numbers_alone() -> None:
    """Each of three ranks hosts one client: none of what it hands over is near its way, in whatever scale, and all of it is whole."""
    seen = []
    for rank in range(3):
        world = Rank(rank)
        server_of(rules(most=3), world).round(uploads_of(ROWS[:3], hosted=[rank]))
        (sent,) = world.sent
        assert sent.dtype == torch.int64 and bool(((sent >= 0) & (sent < WORD)).all())
        own = whole(cut(ROWS[rank : rank + 1], 1.0), 2.0**28)[0]
        assert not (sent == own).any()
        seen.append(sent)
    assert torch.equal(sum(seen) % WORD, whole(cut(ROWS[:3], 1.0), 2.0**28).sum(dim=0) % WORD)


@pytest.mark.parametrize(("participants", "bytes_"), [(10, 2_112), (100, 22_272), (1000, 223_872), (0, 0)])
def test_the_model_of_bytes_for_keys(participants: int, bytes_: int) -> None:
    """2 m 32 + (5 m - 4) 32."""
    assert key_bytes(participants) == bytes_


WIDE = Layout({"a": (400,)}, {"a": MEAN})


def secure_round(meeting: list[str], clients: int) -> list[float]:
    """What a real rank of several receives after a round of ``clients``, dealt out in turn."""
    from pfedmma.comm.world import open_world
    from pfedmma.config import schema

    world = open_world(schema.load(None, meeting).distributed)
    try:
        rows = torch.randn(clients, 400, generator=torch.Generator().manual_seed(5))
        hosted = [i for i in range(clients) if i % world.size == world.rank]
        within = Bounded(1.0, Asked(clients, clients), 1.0, "server", DRAWS)
        server = Server(WIDE, {SHARED: torch.zeros(400)}, world, rules_from(ServerConfig(), True, within, ServerRules(), 400))
        server.round(Uploads(1, list(range(clients)), [1] * clients, hosted, rows[hosted]))
        return server.shared.tolist()
    finally:
        world.close()


def test_real_ranks_end_bit_for_bit_alike(tmp_path: Path) -> None:
    """1, 2 and 4 of them over gloo, noise included."""
    ends = [each for size in (1, 2, 4) for each in values_of(run_ranks(tmp_path / str(size), size, secure_round, 6))]
    assert len(ends) == 7 and all(end == ends[0] for end in ends) and any(ends[0])


def test_the_layout_of_these_tests_exchanges_a_part() -> None:
    assert LAYOUT.size > SIZE
