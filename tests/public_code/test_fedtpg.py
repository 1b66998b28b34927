"""FedTPG beside boschresearch/FedTPG: `model/FedTPG.py` with its `model/prompt_net.py` and `clip/model.py`.

Nothing differs in a step but precision: they make the network fp16, and here it is set back to fp32. `federated/client.py` asks the model
with the client's own class names and takes the cross-entropy of what it answers; it needs data loaders, so that line is written out below.
Text width and embedding are 512, which theirs has written down. Biases of keys have no gradient but rounding: attention does not see them.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from pfedmma.methods.base import Method
from pfedmma.methods.fedtpg import FedTPGConfig
from pfedmma.stack.rules import Given
from tests.support.public_code import (
    NAMES,
    Batch,
    Step,
    assert_same_step,
    drawn_batch,
    drawn_tensors,
    load,
    our_method,
    our_step,
    repository,
    small_clip,
    their_clip,
    their_step,
)
from tests.support.public_trainers import Answering, einops, without_gpu

WIDTH = 512
SILENT = ("k.bias",)
BLOCKS = "prompt_learner.meta_net.encoder.cross_attend_blocks"
LAYERS = {"query_norm": "0.norm", "name_norm": "0.norm_context", "o": "0.fn.out_proj", "context_norm": "1.net.0"}
LAYERS |= {"expand": "1.net.1", "contract": "1.net.3"}
PLACES: dict = {f"{ours}.{kind}": f"{BLOCKS}.{their}.{kind}" for ours, their in LAYERS.items() for kind in ("weight", "bias")}
for _number, _part in enumerate("qkv"):
    for _kind in ("weight", "bias"):
        PLACES[f"{_part}.{_kind}"] = (f"{BLOCKS}.0.fn.in_proj_{_kind}", slice(WIDTH * _number, WIDTH * (_number + 1)))
PLACES["queries"] = "prompt_learner.meta_net.soft_prompt"


def their_step_with(clip: torch.nn.Module, tensors: dict[str, Tensor], batch: Batch, names: tuple[str, ...]) -> Step:
    """Theirs of a client that holds the classes ``names``; labels count those."""
    folder = repository("boschresearch/FedTPG")
    module = load(folder, "model.FedTPG", einops())
    settings = SimpleNamespace(MODEL=SimpleNamespace(N_CTX=4, D_CTX=1, DEPTH=0))  # their defaults
    model = module.FedTPG(settings, their_clip(load(folder, "clip.model"), clip), device="cpu").float()

    forward = model.forward
    trainer = Answering(model, lambda images: forward(images, names, "a data set")[0])
    with without_gpu():
        return their_step(trainer, batch, tensors, PLACES)


def new_method(clip: torch.nn.Module, **settings: str) -> Method:
    return our_method(clip, name="fedtpg", own=FedTPGConfig(**settings))


def drawn_network(method: Method) -> dict[str, Tensor]:
    """Wide enough that names matter; norms around one."""
    return {name: tensor + float("norm.weight" in name) for name, tensor in drawn_tensors(method).items()}


def test_a_step_of_a_client_that_holds_all_classes_is_theirs() -> None:
    clip, batch = small_clip(text={"width": WIDTH, "heads": 8}, embedding=WIDTH), drawn_batch()
    method = new_method(clip, names="all")
    tensors = drawn_network(method)
    assert_same_step(our_step(method, tensors, batch), their_step_with(clip, tensors, batch, NAMES), zero=SILENT)


def test_a_step_of_a_client_that_holds_some_classes_is_theirs() -> None:
    clip, batch = small_clip(text={"width": WIDTH, "heads": 8}, embedding=WIDTH), drawn_batch()
    method, held = new_method(clip), [0, 2, 3]
    own = torch.tensor(held)[batch.labels % len(held)]  # of all classes; theirs count those that are held
    given = Given(held=torch.tensor([[number in held for number in range(len(NAMES))]]))
    tensors = drawn_network(method)
    ours = our_step(method, tensors, Batch(batch.images, own), given=given)
    theirs = their_step_with(clip, tensors, Batch(batch.images, batch.labels % len(held)), tuple(NAMES[number] for number in held))
    assert_same_step(Step(ours.logits[:, held], ours.gradients), theirs, zero=SILENT)
