"""Settings of how clients train in a round besides the optimizer, and of what is a client's own in the end."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pfedmma.engine.corrections import Controls, Correction, Pull
from pfedmma.engine.local import LocalTraining, Phase
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import OWN, PERSONAL, POOL
from pfedmma.system import checks
from pfedmma.system.errors import UserError
from pfedmma.system.options import setting

PLAIN, FEDPROX, SCAFFOLD, DITTO = RULES = ("plain", "fedprox", "scaffold", "ditto")
TOGETHER, PRIVATE_FIRST, EXCHANGED = ORDERS = ("together", "private_first", "exchanged")
ALL, PRIVATE = FINE_TUNED = ("all", "private")


@dataclass(frozen=True)
class LocalConfig:
    """What a client does in a round, and by itself when the rounds are over."""

    rule: str = setting(
        PLAIN,
        "how clients train: plain (as FedAvg), fedprox (pulled to what was received), scaffold (control variates), ditto (and a personal "
        "model, which answers)",
    )
    pull: float = setting(0.1, "how strongly fedprox (its mu) and ditto (its lambda) pull the exchanged tensors to what was received")
    trains: str = setting(
        TOGETHER,
        "in a round: together (all tensors), private_first (private ones, then the exchanged ones, as FedRep), exchanged (these alone, as "
        "FedBABU)",
    )
    private_epochs: int = setting(1, "epochs of federation.local_epochs that private_first trains private tensors, fewer than all of them")
    fine_tune_epochs: int = setting(
        0, "epochs that every client trains alone after the last round, before it is tested; it answers with what it is left with; 0: none"
    )
    fine_tune: str = setting(ALL, "what is trained then: all (all tensors), or private (what was exchanged stays as received)")

    def __post_init__(self) -> None:
        checks.one_of("rule", self.rule, RULES)
        checks.at_least("pull", self.pull, 0)
        checks.one_of("trains", self.trains, ORDERS)
        checks.between("private_epochs", self.private_epochs, 1, 10_000)
        checks.between("fine_tune_epochs", self.fine_tune_epochs, 0, 10_000)
        checks.one_of("fine_tune", self.fine_tune, FINE_TUNED)
        if self.rule == DITTO and self.fine_tune_epochs:
            raise UserError("fine_tune_epochs: ditto's clients answer with a personal model already; use one of the two")
        if self.rule == DITTO and self.trains != TOGETHER:
            raise UserError(f"trains: ditto trains whole models, not {self.trains}; use trains=together")

    @property
    def controls(self) -> bool:
        """Whether clients and the server keep control variates."""
        return self.rule == SCAFFOLD

    def answers(self, usual: str) -> str:
        """What clients answer with, where it is ``usual`` without any of this."""
        return PERSONAL if self.rule == DITTO or self.fine_tune_epochs else usual

    def applied(self, plain: LocalTraining) -> LocalTraining:
        """The ``plain`` training as these settings want it in rounds."""
        known: dict[str, Correction] = {FEDPROX: Pull(self.pull), SCAFFOLD: Controls()}
        personal = Pull(self.pull) if self.rule == DITTO else None
        phases = self.phases(plain.layout, plain.batches.work.epochs)
        return replace(plain, correction=known.get(self.rule), personal=personal, phases=phases)

    def phases(self, layout: Layout, epochs: int) -> tuple[Phase, ...]:
        """Of a round of so many ``epochs``; empty where all is trained together."""
        exchanged = slice(0, layout.exchanged_size)
        if self.trains == TOGETHER:
            return ()
        if self.trains == EXCHANGED:
            return (Phase(exchanged, range(epochs)),)
        return Phase(layout.private, range(self.private_epochs)), Phase(exchanged, range(self.private_epochs, epochs))

    def fine_tuning(self, plain: LocalTraining) -> LocalTraining | None:
        """What clients do when the rounds are over; None where that is nothing."""
        if not self.fine_tune_epochs:
            return None
        layout = plain.layout
        columns = layout.private if self.fine_tune == PRIVATE else slice(0, layout.trained_size)
        return replace(plain.alone(columns, self.fine_tune_epochs), answers_only=True)


def refuse_tensors(config: LocalConfig, layout: Layout, usual: str) -> None:
    """Raise a `UserError` where a method has not the tensors that the settings need. ``usual``: what its clients answer with."""
    private, exchanged = layout.private.stop - layout.private.start, layout.exchanged_size
    if config.rule != PLAIN and not exchanged:
        raise UserError(f"local.rule: {config.rule} needs exchanged tensors, and this method has none; use local.rule=plain")
    if layout.picked and (config.rule != PLAIN or config.trains != TOGETHER):
        what = f"rule: {config.rule}" if config.rule != PLAIN else f"trains: {config.trains}"
        raise UserError(f"local.{what} acts on exchanged tensors in training, and this method picks them afterwards; use another method")
    if config.trains != TOGETHER and not (private and exchanged):
        missing = "private" if exchanged else "exchanged"
        raise UserError(
            f"local.trains: {config.trains} parts private and exchanged tensors; this method has no {missing} ones: use together"
        )
    if config.fine_tune_epochs and not (private if config.fine_tune == PRIVATE else layout.trained_size):
        kind = "private" if config.fine_tune == PRIVATE else "trained"
        raise UserError(f"local.fine_tune_epochs: this method has no {kind} tensors to train; use local.fine_tune_epochs=0")
    if config.answers(usual) != usual and usual == OWN:
        what = "rule: ditto" if config.rule == DITTO else "fine_tune_epochs: fine-tuning"
        raise UserError(f"local.{what} gives clients an answer of their own, and those of this method have one; use another method")
    if POOL in layout.columns and config.rule in (SCAFFOLD, DITTO):
        raise UserError(f"local.rule: {config.rule} does not go with a method whose clients read each other's tensors; use another method")
