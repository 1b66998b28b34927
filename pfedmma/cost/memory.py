"""What the tensors of one client take, from their shapes: while it trains, and from one of its rounds to the next.

Personal models (`local.rule=ditto`, and after `local.fine_tune_epochs`) and control variates (`scaffold`) are counted. Where clients differ
in width, it is as for the widest: all are kept as wide.
"""

from __future__ import annotations

import torch

from pfedmma.config.schema import Config
from pfedmma.cost.step import META
from pfedmma.engine.local_settings import DITTO
from pfedmma.methods.base import Method
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.optim import initial_state
from pfedmma.stack.start import Start

NUMBER = 4  # bytes of a weight, a gradient and an entry of an optimizer's state, which are fp32


def while_training(method: Method, config: Config) -> int:
    """Bytes of a client's weights, their gradients and the optimizer's state; of its personal model; of c - c_i."""
    layout, local = method.layout, config.local
    state = initial_state(config.optimizer, 1, layout.trained_size, META)
    numbers = layout.size + layout.trained_size + sum(tensor.numel() for name, tensor in state.items() if name != "step")
    numbers += layout.size if local.rule == DITTO else 0
    numbers += layout.exchanged_size if local.controls else 0
    return NUMBER * numbers


def between_rounds(method: Method, config: Config) -> int:
    """Bytes of what is kept of a client that has trained: what is its own, its optimizer where that persists, and what its rule keeps."""
    answers, start = config.local.answers(method.answers), Start(torch.empty(method.layout.size, device=META))
    states = ClientStates(method.layout, start, config.optimizer, META, answers=answers, controls=config.local.controls)
    return NUMBER * sum(states.widths().values())
