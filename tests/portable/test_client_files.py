"""One client's model leaves the run as a file and becomes a classifier on a fresh open_clip model; other files are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as trials
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

import pfedmma
from pfedmma import train
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.comm.world import World
from pfedmma.config import schema as configuration
from pfedmma.export import main as export
from pfedmma.portable import personal_clip
from pfedmma.portable.client_file import load_client
from pfedmma.records.checkpoint import manifest
from pfedmma.records.folder import RunFolder
from pfedmma.run.assembly import assemble
from pfedmma.run.resume import restore
from pfedmma.stack.rules import Given
from pfedmma.system import tensor_files
from pfedmma.system.errors import UserError
from tests.support import small

ALONE = World(0, 1, torch.device("cpu"))
METHODS = ("promptfl", "pfedmoap", "pfedmma")
CLIENT = 2
NAMES = ("red circle", "blue_star", "a thing of several words")
TEMPLATE = "this is {}, drawn."
PIXELS = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of each method in ``<method>``, and its client 2 in ``<method>.safetensors``."""
    root = tmp_path_factory.mktemp("personal")
    with pytest.MonkeyPatch.context() as patch:
        small.few_images(patch)
        for method in METHODS:
            more = [f"method.name={method}", "data.clients=4", "federation.participation=1.0", f"data.template={TEMPLATE}"]
            # Experts are to weigh in, and prompts to differ.
            train.main(small.settings(root / method, *more, "method.pfedmoap.experts=3", "optimizer.lr=0.5"))
            export([str(root / method), "--client", str(CLIENT), "--out", str(root / f"{method}.safetensors")])
    return root


def fresh_clip() -> nn.Module:
    """The backbone of the run once more, as a user's program would make it."""
    return create_model(BackboneConfig("tiny", "none"), seed=0)


def engine_logits(run_dir: Path, client: int) -> Tensor:
    """Logits of `PIXELS` over `NAMES` by the run's own parts."""
    with pytest.MonkeyPatch.context() as patch:
        small.few_images(patch)
        run = assemble(configuration.load(run_dir / "config.yaml"), ALONE)
        restore(run, RunFolder(run_dir))
    method, answers = run.engine.training.method, run.engine.members.answers()
    state = answers.tensors([client])
    stem = method.text_stem(run.backbone.prompts(TEMPLATE, NAMES))
    with torch.no_grad():
        state = state | method.fixed(state, Given(answers.others([client])), stem)
        return method.logits(state, method.image_features(state, method.image_stem(PIXELS)), method.text_features(state, stem))[0]


# A file that fits.


@pytest.mark.parametrize("method", METHODS)
def test_the_logits_of_the_file_are_those_of_the_run(folder: Path, method: str):
    model = load_client(fresh_clip(), folder / f"{method}.safetensors")
    assert model.template == TEMPLATE
    logits = model.classifier(NAMES)(PIXELS)
    wanted = engine_logits(folder / method, CLIENT)
    assert logits.shape == (5, 3) and not logits.requires_grad
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    # Equality means something: neither another client's nor the frozen model's are the same.
    if method != "promptfl":  # whose clients all have one prompt
        assert not torch.allclose(logits, engine_logits(folder / method, 1), atol=1e-3)
    frozen = Backbone.freeze(fresh_clip())
    images, texts = PIXELS, frozen.prompts(TEMPLATE, NAMES).tokens
    plain = frozen.logit_scale * fresh_clip().encode_image(images, normalize=True) @ fresh_clip().encode_text(texts, normalize=True).T
    assert not torch.allclose(logits, plain, atol=1e-3)


def test_experts_come_along_and_weigh_in(folder: Path):
    tensors = load_file(folder / "pfedmoap.safetensors")
    others = tensors["others.prompt"]
    assert others.shape == (2, *tensors["prompt"].shape) and not torch.equal(others[0], others[1])
    assert not any(torch.equal(other, tensors["prompt"]) for other in others)
    model = load_client(fresh_clip(), folder / "pfedmoap.safetensors")
    alone = personal_clip.PersonalCLIP(model.method, model.state, None, model.template)
    assert not torch.allclose(model.classifier(NAMES)(PIXELS), alone.classifier(NAMES)(PIXELS), atol=1e-3)


def test_an_adapter_file_gives_the_features_of_load_adapter(folder: Path):
    path = folder / "pfedmma.safetensors"
    adapted = pfedmma.load_adapter(fresh_clip(), path)
    model = load_client(fresh_clip(), path, TEMPLATE)
    tokens = model.method.backbone.prompts(TEMPLATE, NAMES).tokens
    with torch.no_grad():
        images, texts, scale = adapted(PIXELS, tokens)
    torch.testing.assert_close(model.classifier(NAMES)(PIXELS), scale * images @ texts.T)
    other = load_client(fresh_clip(), path, "an image of {}.")
    assert not torch.allclose(other.classifier(NAMES)(PIXELS), scale * images @ texts.T, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_one_classifier_for_many_images_and_many_for_one_client(folder: Path, method: str):
    model = load_client(fresh_clip(), folder / f"{method}.safetensors")
    classify = model.classifier(NAMES)
    torch.testing.assert_close(torch.cat([classify(PIXELS[:2]), classify(PIXELS[2:])]), classify(PIXELS))
    torch.testing.assert_close(model.classifier(NAMES[1:])(PIXELS), classify(PIXELS)[:, 1:], rtol=1e-4, atol=1e-4)


# Files that are refused.


def one_line(clip: nn.Module, path: Path, *template: str) -> str:
    with pytest.raises(UserError) as caught:
        load_client(clip, path, *template)
    message = str(caught.value)
    assert "\n" not in message and message
    return message


Change = Callable[[dict[str, Tensor], dict[str, str]], Any]


def changed(folder: Path, method: str, path: Path, change: Change) -> Path:
    """The method's client file with ``change`` made to its tensors and metadata."""
    tensors, metadata = tensor_files.open_tensors(folder / f"{method}.safetensors")
    change(tensors, metadata)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def reset(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors, metadata: tensors.update({name: change(tensors[name])})


BAD: dict[str, tuple[str, Change, str]] = {
    "no format": ("promptfl", lambda t, m: m.pop("format"), "has format 'None', .*, not 'pfedmma-client/1'"),
    "another format": ("promptfl", lambda t, m: m.update(format="pfedmma-client/2"), "has format 'pfedmma-client/2'"),
    "a later version's": (
        "promptfl",
        lambda t, m: m.update(format="pfedmma-client/2", version="9.9"),
        "has format 'pfedmma-client/2', written by pfedmma 9.9, not 'pfedmma-client/1'",
    ),
    "no method": ("promptfl", lambda t, m: m.pop("method"), "does not say its method's settings"),
    "broken JSON": ("promptfl", lambda t, m: m.update(method='{"name": '), "does not say its method's settings"),
    "no mapping": ("promptfl", lambda t, m: m.update(method="[1]"), r"does not say its method's settings \(no mapping\)"),
    "deep JSON": ("promptfl", lambda t, m: m.update(method="[" * 100_000), "does not say its method's settings"),
    "unknown method": ("promptfl", lambda t, m: m.update(method='{"name": "fedmagic"}'), r"method\.name: 'fedmagic' is not known"),
    "unknown setting": (
        "promptfl",
        lambda t, m: m.update(method='{"promptfl": {"contex": 3}}'),
        r"unknown setting 'method\.promptfl\.contex'",
    ),
    "bad setting": (
        "promptfl",
        lambda t, m: m.update(method='{"promptfl": {"context": -1}}'),
        r"method\.promptfl\.context: must be at least 0",
    ),
    "huge number": ("promptfl", lambda t, m: m.update(method='{"scale": 1' + "0" * 400 + "}"), "safetensors"),
    "half a character": (
        "promptfl",
        lambda t, m: m.update(method='{"name": "promptfl", "promptfl": {"words": "\\ud800"}}'),
        "does not say its method's settings",
    ),
    "long context": ("promptfl", lambda t, m: m.update(method='{"name": "promptfl", "promptfl": {"context": 99}}'), "leave no room"),
    "other context": (
        "promptfl",
        lambda t, m: m.update(method='{"name": "promptfl", "promptfl": {"context": 2}}'),
        "does not fit tiny: tensor prompt",
    ),
    "another method's": ("promptfl", lambda t, m: m.update(method='{"name": "pfedmoap"}'), "does not fit tiny: tensor gating"),
    "wrong shape": ("promptfl", reset("prompt", lambda x: x[:, 1:]), "does not fit tiny: tensor prompt is not of the shape"),
    "no tensor": ("promptfl", lambda t, m: t.pop("prompt"), "does not fit tiny: tensor prompt"),
    "a tensor too many": ("promptfl", lambda t, m: t.update(more=torch.zeros(1)), "does not fit tiny: tensor more"),
    "others for who reads none": (
        "promptfl",
        lambda t, m: t.update({"others.prompt": t["prompt"][None] + 1}),
        "does not fit tiny: tensor others.prompt",
    ),
    "others of another shape": ("pfedmoap", reset("others.prompt", lambda x: x[:, :, 1:]), "does not fit tiny: tensor others.prompt"),
    "others without shape": ("pfedmoap", reset("others.prompt", lambda x: x[0, 0, 0]), "does not fit tiny: tensor others.prompt"),
    "no others": ("pfedmoap", reset("others.prompt", lambda x: x[:0]), "does not fit tiny: tensor others.prompt"),
    "too many others": ("pfedmoap", reset("others.prompt", lambda x: torch.cat([x, x])), "does not fit tiny: tensor others.prompt"),
    "others of a private tensor": (
        "pfedmoap",
        lambda t, m: t.update({"others.gating.q.bias": t["gating.q.bias"].expand(2, -1)}),
        "does not fit tiny: tensor others.gating.q.bias",
    ),
    "adapters without S": ("pfedmma", lambda t, m: t.pop("shared.4.bias"), "no whole adapter"),
    "adapters on nothing": ("pfedmma", lambda t, m: [t.pop(n) for n in list(t) if not n.startswith("shared.")], "no whole adapter"),
    "no place for names": ("promptfl", lambda t, m: m.update(template="a photo."), "has no place for the name"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_does_not_fit_is_refused_in_a_line(folder: Path, tmp_path: Path, case: str, tiny_clip: nn.Module):
    method, change, says = BAD[case]
    path = changed(folder, method, tmp_path / "changed.safetensors", change)
    message = one_line(tiny_clip, path)
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(message)


def test_no_others_at_all_are_no_mistake(folder: Path, tmp_path: Path, tiny_clip: nn.Module):
    """As of a client that could not read any yet."""
    path = changed(folder, "pfedmoap", tmp_path / "alone.safetensors", lambda t, m: t.pop("others.prompt"))
    assert load_client(tiny_clip, path).others is None


def test_other_files_are_refused(tmp_path: Path, tiny_clip: nn.Module):
    assert one_line(tiny_clip, tmp_path / "none") == f"there is no client file {tmp_path / 'none'}"
    (tmp_path / "text").write_text("no tensors")
    assert "text is not a safetensors file" in one_line(tiny_clip, tmp_path / "text")
    assert "is not a safetensors file" in one_line(tiny_clip, tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "bare")
    assert "has format 'None'" in one_line(tiny_clip, tmp_path / "bare")


def test_a_model_of_another_size_is_refused(folder: Path):
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 4}
    text = {"context_length": 20, "width": 24, "heads": 2, "layers": 3}
    other = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
    for method in ("promptfl", "pfedmoap"):
        message = one_line(other, folder / f"{method}.safetensors")
        assert "does not fit tiny: tensor" in message or "heads" in message
    assert "is made for tiny with a visual tower of width 128 and 6 blocks" in one_line(other, folder / "pfedmma.safetensors")


@pytest.mark.parametrize(
    "template", ["a photo", "{name}", "{1}", "{", "}", "{} {}", "{.x}", "{[x]}", "{:d}", "{{}}", "{0.__class__}", "\ud800{}"]
)
def test_a_template_is_one_place_for_the_name(folder: Path, template: str, tiny_clip: nn.Module):
    message = one_line(tiny_clip, folder / "promptfl.safetensors", template)
    assert "the class prompt" in message and "write one with {} for the name" in message


@pytest.mark.parametrize("template", ["{}", "a {0}.", "{!s:>20}", "{{{}}}"])
def test_what_can_be_filled_in_is_a_template(folder: Path, template: str, tiny_clip: nn.Module):
    assert load_client(tiny_clip, folder / "promptfl.safetensors", template).template == template


@pytest.mark.parametrize("method", METHODS)
def test_all_clients_are_files_as_each_alone(folder: Path, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "clients"
    export([str(folder / method), "--client", "all", "--out", str(out)])
    assert f"4 clients after round 2: {out / 'client0.safetensors'} .. client3.safetensors" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [f"client{client}.safetensors" for client in range(4)]
    (tensors, said), (alone, said_alone) = map(
        tensor_files.open_tensors, (out / f"client{CLIENT}.safetensors", folder / f"{method}.safetensors")
    )
    assert said == said_alone and tensors.keys() == alone.keys() and all(torch.equal(tensors[name], alone[name]) for name in alone)
    another, _ = tensor_files.open_tensors(out / "client0.safetensors")
    apart = any(not torch.equal(tensors[name], another[name]) for name in alone)
    assert apart == (method != "promptfl")  # whose clients all answer with the server's prompt


@pytest.mark.parametrize(
    ("client", "out", "says"),
    [
        ("all", "taken", "--out: cannot make the folder .*taken: File exists; choose another one"),
        ("all", "none/there", "--out: cannot make the folder .*: No such file or directory"),
        ("some", "x", "'some' is neither a client's id nor all"),
        ("4", "x", r"--client: .* has clients 0 \.\. 3, not 4"),
        ("-1", "x", r"--client: .* has clients 0 \.\. 3, not -1"),
    ],
)
def test_what_cannot_be_exported(folder: Path, client: str, out: str, says: str, tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=says):
        export([str(folder / "promptfl"), f"--client={client}", "--out", str(tmp_path / out)])
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_zeroshot_has_nothing_to_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small.few_images(monkeypatch)
    train.main(small.settings(tmp_path / "run", "method.name=zeroshot", "federation.rounds=1"))
    with pytest.raises(UserError, match="is zeroshot, which trains nothing; export a run of another method"):
        export([str(tmp_path / "run"), "--client", "0", "--out", str(tmp_path / "x.safetensors")])
    assert not (tmp_path / "x.safetensors").exists()
    assert manifest.rounds(tmp_path / "run" / "checkpoints") == [1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
SETTING = st.dictionaries(
    st.sampled_from(["name", "dim", "scale", "blocks", "towers", "exchange", "promptfl", "pfedmoap", "fedlora", "fedotp"]),
    st.sampled_from(["promptfl", "pfedmoap", "pfedmma", "zeroshot", "fedclip", "fedlora", "fedotp", "fedpgp", "fedmaple"])
    | st.dictionaries(st.sampled_from(["context", "words", "experts", "heads", "mix"]), JSON, max_size=2)
    | JSON,
    max_size=3,
)
TENSORS = ["prompt", "others.prompt", "gating.q.weight", "shared.4.weight", "visual.4.down.weight", "nothing", "others.", ""]


@pytest.mark.parametrize("method", METHODS)
@trials(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_file_says_is_used_or_refused(folder: Path, method: str, tmp_path: Path, tiny_clip: nn.Module, data: st.DataObject):
    tensors, metadata = tensor_files.open_tensors(folder / f"{method}.safetensors")
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    says = {
        "method": text | SETTING.map(json.dumps),
        "template": text | text.map(lambda t: t + "{}") | st.from_regex(r"\{[0a.\[\]!:rs]{0,4}\}", fullmatch=True),
        "backbone": text,
        "format": st.sampled_from(["pfedmma-client/1", "pfedmma-adapter/1"]) | text,
        "scale": text | st.floats().map(str),
        "activation": text,
    }
    for name in data.draw(st.lists(st.sampled_from(list(says)), max_size=2)):
        metadata[name] = data.draw(says[name])
    for name in data.draw(st.lists(st.sampled_from(TENSORS) | text, max_size=2)):
        if name != "__metadata__":
            tensors[name] = torch.zeros(data.draw(st.lists(st.integers(0, 3), max_size=3)))
    (tmp_path / "any.safetensors").write_bytes(save(tensors, metadata))
    try:
        classify = load_client(tiny_clip, tmp_path / "any.safetensors").classifier(("cat", "dog"))
    except UserError as error:
        assert str(error)
    else:
        assert classify(PIXELS[:1]).shape == (1, 2)
