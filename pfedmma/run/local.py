"""Local training of a run beyond the plain one: what goes with what, and the control variates of its server."""

from __future__ import annotations

from dataclasses import replace

import torch

from pfedmma.config.schema import Config
from pfedmma.engine.local_settings import PRIVATE_FIRST, SCAFFOLD, refuse_tensors
from pfedmma.methods.base import Method
from pfedmma.records.selected import LAST
from pfedmma.server.controls import MeanControl
from pfedmma.server.rules import ServerRules
from pfedmma.server.settings import NO
from pfedmma.stack.rules import CONTROL
from pfedmma.system.errors import UserError


def with_controls(rules: ServerRules, control: MeanControl) -> ServerRules:
    """The ``rules``, and control variates beside what they sum."""
    return replace(rules, controlled=control, begin={**rules.begin, CONTROL: torch.zeros(len(control.of_all))})


def refuse_local(method: Method, config: Config) -> None:
    """Raise a `UserError` where settings do not go together; says which to change."""
    local, epochs = config.local, config.federation.local_epochs
    refuse_tensors(local, method.layout, method.answers)
    if local.trains == PRIVATE_FIRST and local.private_epochs >= epochs:
        raise UserError(
            f"local.private_epochs: {local.private_epochs} of federation.local_epochs={epochs} leave none for what is exchanged; use "
            "fewer, or more local epochs"
        )
    if local.trains == PRIVATE_FIRST and config.optimizer.state == "persist":
        raise UserError("optimizer.state: persist goes with local.trains=together; under private_first every phase has a fresh optimizer")
    if local.fine_tune_epochs and config.evaluation.select != LAST:
        raise UserError("evaluation.select: clients are fine-tuned after the last round alone, so no other can be compared; use last")
    if local.rule == SCAFFOLD:
        _refuse_scaffold(config)


def _refuse_scaffold(config: Config) -> None:
    optimizer, federation = config.optimizer, config.federation
    if optimizer.name != "sgd" or optimizer.momentum or optimizer.clip or not optimizer.lr:
        raise UserError(
            "local.rule: scaffold's control variates are mean gradients of plain SGD; set optimizer.name=sgd optimizer.momentum=0 "
            "optimizer.clip=0, and optimizer.lr above 0"
        )
    if optimizer.cosine_rounds:
        raise UserError("optimizer.cosine_rounds: scaffold takes every round's rate for optimizer.lr; use optimizer.cosine_rounds=0")
    if config.privacy.clip or config.privacy.secure_sum:
        raise UserError(
            "local.rule: scaffold's control variates travel without privacy.clip, its noise and its masks; use another rule, or no privacy"
        )
    if config.server.robust != NO:
        raise UserError(f"server.robust: under {config.server.robust} scaffold's c is not the mean of the clients'; use server.robust=no")
    if federation.loses_uploads:
        raise UserError(
            "local.rule: a scaffold client whose upload is lost would have a control variate that the server has not; use no "
            "federation.dropout, deadline or over_selection"
        )
    if config.backbone.precision == "fp16":
        raise UserError("local.rule: scaffold counts every local step, and fp16 skips some; use backbone.precision=bf16 or fp32")
