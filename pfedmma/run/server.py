"""The server of a run, from its settings: rules, noise, and the account of what it tells."""

from __future__ import annotations

from dataclasses import replace

import torch

from pfedmma.config.schema import Config
from pfedmma.engine import participation
from pfedmma.engine.federation import POISSON
from pfedmma.engine.rounds import Engine
from pfedmma.methods.base import Method
from pfedmma.server import accountant
from pfedmma.server.account import Account
from pfedmma.server.mixed_widths import ByThoseWhoHaveIt
from pfedmma.server.privacy import CLIENTS, Asked, Bounded
from pfedmma.server.rules import ServerRules
from pfedmma.server.settings import NO, bounded_from, refuse, rules_from
from pfedmma.stack.widths import Widths
from pfedmma.system.errors import UserError

NOISE = "noise_multiplier"  # entry of the server's state [1]: the noise that epsilon was made with


def plain_rules(method: Method, config: Config) -> ServerRules:
    """FedAvg's, for what the method exchanges."""
    return ServerRules(wire=config.distributed.wire, reads=method.reads)


def bounds(config: Config, participants: int) -> Bounded | None:
    """Clipping and noise, None where the settings ask for none; ``participants``: clients that may take part in a round.

    Raises:
        UserError: settings under which epsilon would not hold; says which to change.
    """
    privacy, federation = config.privacy, config.federation
    if not privacy.clip:
        return None
    if privacy.noisy and federation.first_round == "all":
        raise UserError("federation.first_round: epsilon holds for rounds that are sampled alike; use first_round=participation")
    if privacy.noisy and privacy.noise == CLIENTS and federation.loses_uploads:
        raise UserError("privacy.noise: the noise of clients whose upload is lost would be missing in the sum; use privacy.noise=server")
    multiplier = privacy.noise_multiplier
    if privacy.epsilon:
        multiplier = accountant.multiplier(privacy.epsilon, federation.rounds, privacy.delta, sampling(config))
    return bounded_from(privacy, asked(config, participants), multiplier, config.seed)


def asked(config: Config, participants: int) -> Asked:
    """How many of the ``participants`` are expected to be summed in a round, and how many at most."""
    most = max(participation.wanted(participants, config.federation, round_) for round_ in (1, 2))  # the first may have all
    return Asked(participation.expected(participants, config.federation), most)


def sampling(config: Config) -> float:
    """The probability with which each client takes part in a round, for the account: 1 where they are not drawn each apart."""
    return config.federation.participation if config.federation.sampling == POISSON else 1.0


def server_rules(method: Method, config: Config, bounded: Bounded | None, participants: int, widths: Widths | None = None) -> ServerRules:
    """The server's rules. Raises a `UserError` where settings do not go together; says which to change."""
    if widths is not None:
        return _of_mixed_widths(method, config, widths)
    plain, layout = plain_rules(method, config), method.layout
    refuse(config.server, config.privacy, plain, layout, asked(config, participants))
    rules = rules_from(config.server, config.privacy.secure_sum, bounded, plain, layout.exchanged_size)
    if bounded is None or not config.privacy.epsilon:
        return rules
    return replace(rules, begin={**rules.begin, NOISE: torch.tensor([bounded.multiplier])})


def _of_mixed_widths(method: Method, config: Config, widths: Widths) -> ServerRules:
    """Each number is the mean of those who have it, so what needs all of them to have it is refused."""
    if config.privacy.clip or config.privacy.secure_sum:
        raise UserError("method.dims: clipping, noise and secure sums want the same numbers of all clients; leave privacy.* out, or dims")
    if config.data.new_clients and config.evaluation.new_clients_start == "mean":
        raise UserError("method.dims: the mean of private tensors wants them alike in all; leave dims or evaluation.new_clients_start out")
    if config.server.robust != NO:
        raise UserError(
            f"method.dims: {config.server.robust} wants the same numbers of all clients; use server.robust=no, or leave dims out"
        )
    rules = rules_from(config.server, False, None, plain_rules(method, config), method.layout.exchanged_size)
    return replace(rules, transforms=(ByThoseWhoHaveIt(widths),))


def account_of(engine: Engine, config: Config, bounded: Bounded | None) -> Account | None:
    """What the rounds tell of one client; None where no noise is added, or nothing travels."""
    if bounded is None or not bounded.multiplier or not engine.training.layout.exchanged_size:
        return None
    privacy = config.privacy
    return Account(bounded.multiplier, privacy.delta, sampling(config), privacy.noise, privacy.secure_sum, engine.cohort)


def refuse_other_noise(engine: Engine, run_dir: str) -> None:
    """Raise a `UserError` if the run went on so far with other noise than its epsilon would have from now on."""
    begun, now = (state.get(NOISE) for state in (engine.server.state, engine.server.rules.begin))
    if begun is not None and now is not None and abs(float(begun) / float(now) - 1.0) > 1e-3:
        raise UserError(
            f"federation.rounds: the noise of {run_dir} was made for privacy.epsilon over another number of rounds, and no round more is "
            "covered by it; go on with as many as before, or start a new run"
        )
