"""Class prompts that are encoded once: ``evaluation.text_features=first``, as the released code of pFedMMA does.

There the model computes them when it is tested for the first time and never again, so that all clients are tested in all rounds with those
of the first client. They are made of that client's own tensors: in a federation nobody else would have them. The released scripts test Base
and Novel in processes of their own, from the best checkpoint, where the first client encodes the prompts anew: ``python -m pfedmma.evaluate
RUN evaluation.text_features=first`` of a run that was made without does just that.

Shape legend: K classes, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pfedmma.accuracy.evaluator import Evaluator
from pfedmma.comm.assignment import Assignment
from pfedmma.data.partition.federated import Client
from pfedmma.methods.base import Method
from pfedmma.methods.forward import Forward
from pfedmma.stack.answers import Answers
from pfedmma.system.errors import UserError

PURPOSE = "text_features"  # in the ledger: K x D numbers (more for methods with several prompts) of each test set, once a run


@dataclass
class FirstTexts:
    """Text features by test set, the same on every rank, from the first evaluation on.

    ``kept``: [1,K,...], or flat, as a checkpoint has them, until they are used.
    """

    kept: dict[str, Tensor] = field(default_factory=dict)

    def flat(self) -> dict[str, Tensor]:
        """As a checkpoint keeps them."""
        return {name: features.flatten() for name, features in self.kept.items()}

    @torch.no_grad()
    def get(self, evaluator: Evaluator, method: Method, answers: Answers, first: Client, assignment: Assignment) -> Mapping[str, Tensor]:
        """Those of all test sets; where there are none yet, those that the client ``first`` has now. All ranks enter.

        Raises:
            UserError: what a checkpoint kept is of another size.
        """
        for name, images in evaluator.federated.sets().items():
            if name in self.kept and self.kept[name].dim() > 1:
                continue
            forward = Forward.from_prompts(method, evaluator.federated.template, images.classes)
            own = forward.text_features(evaluator.state(forward, answers, [first])).float()
            if name not in self.kept:  # of the rank that keeps the client; the others have its shape
                mine = own.flatten() if assignment.keeps(first.id) else torch.zeros_like(own.flatten())
                self.kept[name] = assignment.world.sum(mine, PURPOSE)
            if len(self.kept[name]) != own.numel():
                raise UserError(f"the checkpoint keeps text features of another size for the {name} test set; start a new run")
            self.kept[name] = self.kept[name].to(own.device).view(own.shape)
        return self.kept
