"""Settings of the rounds: how many there are, who takes part and arrives, what participants do, and how clients share a rank's memory."""

from __future__ import annotations

from dataclasses import dataclass

from pfedmma.engine import graphs
from pfedmma.system import checks
from pfedmma.system.errors import UserError
from pfedmma.system.options import GOES_ON, SAME_RESULT, setting

FIXED, POISSON = "fixed", "poisson"


@dataclass(frozen=True)
class FederationConfig:
    """Rounds of the federation, and how the clients of a rank share its memory."""

    rounds: int = setting(50, "communication rounds of the whole run", GOES_ON)
    local_epochs: int = setting(2, "epochs over its own images that a participant trains in a round, at most 10,000")
    participation: float = setting(1.0, "share p of the K clients that train in a round, 0 < p <= 1: max(1, round(p K)) of them")
    sampling: str = setting(
        FIXED,
        "how participants are drawn: fixed (as many in every round), or poisson (each apart, with probability participation; there may be "
        "none)",
    )
    first_round: str = setting(
        "participation", "who trains in round 1: participation (drawn as in every round), or all clients, as in the released code"
    )
    over_selection: float = setting(
        1.0, "so many times the wanted participants are drawn, rounded up, and the first wanted ones to finish count, at least 1"
    )
    dropout: float = setting(
        0.0, "probability that a participant fails after its local training and its upload is lost, at least 0 and less than 1"
    )
    speeds: float = setting(
        0.0, "how unlike clients are in speed: each takes exp(s N(0, 1)) times as long as others, in simulated seconds; 0: all alike"
    )
    step_seconds: float = setting(1.0, "simulated seconds that a client of the middle speed takes for a local step")
    deadline: float = setting(0.0, "simulated seconds after which a round takes no more uploads; 0: it waits for all")
    batch_size: int = setting(32, "images of one client in a training step")
    drop_last: bool = setting(
        False, "leave out an epoch's last batch if it is not full, as in the released code; who has less than one batch trains on it"
    )
    clients_per_pass: str = setting(
        "auto",
        "clients of a rank that share one pass; auto: those with 320 images in a step on a GPU, halved while memory runs out, 10 on a CPU; "
        "in fedmgp fewer",
        SAME_RESULT,
    )
    graphs: str = setting(
        "auto", "local steps of at most 6 clients as CUDA graphs: auto (on GPUs, where that can be done) or off", SAME_RESULT
    )
    stems_gb: str = setting(
        "auto",
        "memory in GB for what the frozen blocks give of images that come again unchanged; 0 keeps nothing; auto: 2 on a CPU, a quarter of "
        "what is free on a GPU",
        SAME_RESULT,
    )
    device_gb: float = setting(8.0, "GB of the clients' own state that rest on a GPU; the rest lies in host memory", SAME_RESULT)
    host_gb: float = setting(
        16.0,
        "GB of the clients' own state that rest in host memory; the rest lies in a temporary file, as all does that ranks of a node share",
        SAME_RESULT,
    )

    def __post_init__(self) -> None:
        checks.between("rounds", self.rounds, 1, 10_000_000)
        checks.between("local_epochs", self.local_epochs, 1, 10_000)  # their batches are drawn at the start of a round
        checks.between("batch_size", self.batch_size, 1, 1_000_000)
        for name in ("device_gb", "host_gb"):
            checks.at_least(name, getattr(self, name), 0)
        checks.at_least_or_auto("stems_gb", self.stems_gb, 0)
        if self.clients_per_pass != "auto" and not (self.clients_per_pass.isdecimal() and int(self.clients_per_pass) >= 1):
            raise UserError(f"clients_per_pass: must be a whole number from 1 on, or auto, not '{self.clients_per_pass}'")
        checks.one_of("graphs", self.graphs, graphs.CHOICES)
        self._check_participants()

    def _check_participants(self) -> None:
        checks.in_unit_interval("participation", self.participation)
        checks.one_of("sampling", self.sampling, (FIXED, POISSON))
        checks.one_of("first_round", self.first_round, ("participation", "all"))
        checks.between("over_selection", self.over_selection, 1, 1000)
        checks.below_one("dropout", self.dropout)
        checks.between("speeds", self.speeds, 0, 10)
        checks.positive("step_seconds", self.step_seconds)
        checks.at_least("deadline", self.deadline, 0)
        if self.sampling == POISSON and self.first_round == "all":
            raise UserError(
                "first_round: all goes with sampling=fixed; under poisson every round is drawn alike: first_round=participation"
            )
        if self.sampling == POISSON and self.over_selection > 1:
            raise UserError(
                "over_selection: goes with sampling=fixed; poisson wants no number of participants that more could be drawn for"
            )
        if self.over_selection > 1 and self.participation == 1:
            raise UserError("over_selection: with participation=1 all clients are drawn already; set a participation below 1")

    @property
    def loses_uploads(self) -> bool:
        """Whether a participant's upload may be lost."""
        return self.dropout > 0 or self.deadline > 0 or self.over_selection > 1

    @property
    def simulates_time(self) -> bool:
        """Whether a round has simulated seconds."""
        return self.speeds > 0 or self.deadline > 0 or self.over_selection > 1
