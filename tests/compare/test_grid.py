"""Compare files: which runs they ask for, in which settings, and how a bad one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfedmma.compare import grid
from pfedmma.compare.__main__ import main
from pfedmma.compare.grid import Plan
from pfedmma.config import schema as configuration
from pfedmma.system import options
from pfedmma.system.errors import UserError


@pytest.fixture
def plans(tmp_path: Path):
    """Reads a compare file of the given text."""

    def read(text: str, *overrides: str, out: Path | None = None) -> list[Plan]:
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        return grid.read(file, overrides, out)

    return read


# What a file asks for.


def test_lists_are_names_and_everything_is_crossed(plans):
    found = plans("methods: [pfedmma, promptfl]\ndatasets: [shapes, cifar10]\nshots: [1, 16]\nseeds: [3, 5]\n")
    got = [(p.dataset, p.config.data.name, p.config.data.shots, p.method, p.config.method.name, p.config.seed) for p in found]
    wanted = [
        (data, data, shots, method, method, seed)
        for data in ("shapes", "cifar10")
        for shots in (1, 16)
        for method in ("pfedmma", "promptfl")
        for seed in (3, 5)
    ]
    assert got == wanted
    assert found[0].setting == "shapes, 1 shot" and found[-1].setting == "cifar10, 16 shots"
    assert found[0].config.run_dir == "runs/compare/mine/shapes-1-shot-pfedmma-seed3"
    assert found[0].name == "shapes-1-shot-pfedmma-seed3"


def test_what_is_left_out_is_one_run_of_the_defaults(plans):
    (only,) = plans("methods: [pfedmma]\n")
    name = "shapes-pfedmma-seed0"
    assert only == Plan("pfedmma", "shapes", configuration.load(None, [f"run_dir=runs/compare/mine/{name}"]))
    assert only.name == name


def test_all_images_are_a_setting_without_shots(plans):
    (only,) = plans("methods: [pfedmma]\nsettings: {data.shots: 0}\n")
    assert only.setting == "shapes" and only.config.data.shots == 0


def test_a_label_is_the_name_unless_its_settings_give_one(plans):
    found = plans(
        """
        methods:
          pfedmma:
          visual only: {method.towers: visual, method.name: pfedmma}
          all of it: {method: {name: pfedmma, exchange: all}}
          promptfl: {optimizer.lr: 0.5}
        datasets:
          shapes: {}
          few shapes: {data: {name: shapes, clients: 3}}
        """
    )
    first = found[:4]
    assert [p.method for p in first] == ["pfedmma", "visual only", "all of it", "promptfl"]
    assert [p.config.method.name for p in first] == ["pfedmma", "pfedmma", "pfedmma", "promptfl"]
    assert [p.config.method.towers for p in first] == ["both", "visual", "both", "both"]
    assert [p.config.method.exchange for p in first] == [(), (), ("all",), ()]
    assert first[3].config.optimizer.lr == 0.5 != first[0].config.optimizer.lr
    assert [(p.dataset, p.config.data.name, p.config.data.clients) for p in found[4:]] == [("few shapes", "shapes", 3)] * 4
    assert found[5].name == "few-shapes-visual-only-seed0"


def test_dotted_and_nested_settings_are_the_same(plans):
    dotted = plans("methods: [pfedmma]\nsettings: {data.clients: 4, data.shots: 2, optimizer.lr: 0.3}\n")
    nested = plans("methods: [pfedmma]\nsettings: {data: {clients: 4, shots: 2}, optimizer: {lr: 0.3}}\n")
    mixed = plans("methods: [pfedmma]\nsettings: {data: {clients: 4}, data.shots: 2, optimizer: {lr: 0.3}}\n")
    assert dotted == nested == mixed
    assert (dotted[0].config.data.clients, dotted[0].config.data.shots, dotted[0].config.optimizer.lr) == (4, 2, 0.3)


def test_config_is_relative_to_the_compare_file(plans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "base.yaml").write_text("data: {clients: 4, shots: 3}\nfederation: {rounds: 7}\nseed: 9\n")
    (tmp_path / "elsewhere" / "base.yaml").write_text("data: {clients: 5}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    (only,) = plans("config: base.yaml\nmethods: [pfedmma]\n")
    assert (only.config.data.clients, only.config.data.shots, only.config.federation.rounds, only.config.seed) == (4, 3, 7, 9)
    assert only.name == "shapes-3-shot-pfedmma-seed9"


def test_a_label_may_start_from_a_config_file_of_its_own(plans, tmp_path: Path):
    (tmp_path / "few.yaml").write_text("data.clients: 3\ndata.shots: 2\n")
    (tmp_path / "rates.yaml").write_text("optimizer: {lr: 0.3}\n")
    found = plans(
        "settings: {data.clients: 7}\ndatasets: {few: {config: few.yaml, data.name: shapes, data.shots: 4}, shapes: }\n"
        "methods: {local: {config: rates.yaml}, pfedmma: }\n"
    )
    assert [(p.dataset, p.config.data.clients, p.config.data.shots) for p in found[::2]] == [("few", 3, 4), ("shapes", 7, 16)]
    assert [p.config.optimizer.lr for p in found[:2]] == [0.3, 0.001]


# Grids.


def test_a_grid_is_the_product_of_its_lists(plans):
    found = plans("methods: [pfedmma, local]\nseeds: [0, 1]\ngrid: {method.dim: [8, 16], optimizer.lr: [1e-3, 0.1]}\n")
    got = [(p.method, p.config.method.dim, p.config.optimizer.lr, p.config.seed) for p in found]
    wanted = [(m, dim, lr, seed) for m in ("pfedmma", "local") for dim in (8, 16) for lr in (0.001, 0.1) for seed in (0, 1)]
    assert got == wanted
    assert found[0].setting == "shapes, 16 shots, method.dim=8, optimizer.lr=1e-3" and found[0].candidates == 0
    assert found[-1].name == "shapes-local-method.dim-16-optimizer.lr-0.1-seed1"
    assert len({p.setting for p in found}) == 4  # what is compared across methods


def test_values_of_a_grid_may_be_lists_and_texts(plans):
    found = plans("methods: [pfedmma]\ngrid: {method.exchange: [none, [shared, visual.down]], method.rescale: [true, false]}\n")
    assert [(p.config.method.exchange, p.config.method.rescale) for p in found] == [
        (("none",), True),
        (("none",), False),
        (("shared", "visual.down"), True),
        (("shared", "visual.down"), False),
    ]
    assert [p.combination for p in found][2:] == [
        "method.exchange=shared+visual.down, method.rescale=true",
        "method.exchange=shared+visual.down, method.rescale=false",
    ]


def test_a_grid_takes_precedence_over_what_all_runs_have(plans, tmp_path: Path):
    (tmp_path / "base.yaml").write_text("method: {dim: 4}\n")
    found = plans("config: base.yaml\nsettings: {optimizer.lr: 0.5}\nmethods: [pfedmma]\ngrid: {method.dim: [8], optimizer.lr: [0.1]}\n")
    assert [(p.config.method.dim, p.config.optimizer.lr) for p in found] == [(8, 0.1)]


# Choosing.

CHOOSING = "methods: [pfedmma, zeroshot]\nseeds: [0, 1]\ngrid: {optimizer.lr: [0.1, 0.2, 0.3]}\nselect: val\n"


def test_candidates_run_on_the_validation_split_in_a_folder_of_their_own(plans):
    found = plans(CHOOSING)
    candidates, rest = found[:6], found[6:]
    assert [(p.config.optimizer.lr, p.config.seed) for p in candidates] == [(lr, seed) for lr in (0.1, 0.2, 0.3) for seed in (0, 1)]
    assert {(p.config.evaluation.split, p.candidates, p.is_candidate) for p in candidates} == {("val", 3, True)}
    assert candidates[0].config.run_dir == "runs/compare/mine/candidates/shapes-pfedmma-optimizer.lr-0.1-seed0"
    # What trains nothing has nothing to choose.
    assert [(p.method, p.config.evaluation.split, p.is_candidate) for p in rest] == [("zeroshot", "test", False)] * 2
    assert {p.setting for p in found} == {"shapes, 16 shots"}  # methods are compared whatever is chosen for each


def test_the_run_on_the_test_split_differs_in_the_split_alone(plans):
    candidate = plans(CHOOSING)[0]
    tested = candidate.on_test(0)
    assert tested.config.run_dir == "runs/compare/mine/shapes-pfedmma-optimizer.lr-0.1-seed0"
    assert not tested.is_candidate and (tested.setting, tested.combination, tested.candidates) == (
        candidate.setting,
        candidate.combination,
        3,
    )
    one, other = (options.flatten(plan.config) for plan in (candidate, tested))
    assert {name for name in one if one[name] != other[name]} == {"evaluation.split", "run_dir"}


def test_a_method_of_a_plugin_can_be_chosen_for(no_plugins, plans, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from pfedmma.methods.base import Method\nfrom pfedmma.methods import registry\nregistry.register('chosen_for', Method)\n"
    )
    text = f"settings: {{plugins: ['{tmp_path / 'mine.py'}']}}\nmethods: [chosen_for]\ngrid: {{optimizer.lr: [0.1, 0.2]}}\nselect: val\n"
    assert [(p.method, p.config.optimizer.lr, p.is_candidate) for p in plans(text)] == [("chosen_for", lr, True) for lr in (0.1, 0.2)]


LAYERS = ("config", "settings", "dataset", "method", "varied", "command line")


@pytest.mark.parametrize("top", range(len(LAYERS)), ids=LAYERS)
def test_each_layer_takes_precedence_over_those_below(plans, tmp_path: Path, top: int):
    """``data.shots`` is set to 11, 12, ... by the layers up to ``top``; a neighbour that only the lowest sets stays."""
    value = [10 + k if k <= top else None for k in range(len(LAYERS))]
    (tmp_path / "base.yaml").write_text(f"data: {{shots: {value[0]}, clients: 4}}\n")
    lines = [
        "config: base.yaml",
        f"settings: {{data.shots: {value[1]}}}" if value[1] else "",
        f"datasets: {{shapes: {{data.shots: {value[2]}}}}}" if value[2] else "datasets: [shapes]",
        f"shots: [{value[4]}]" if value[4] else "",
    ]
    # A method may change anything but what is varied; the number of clients stands for it.
    clients = 6 if value[3] else 4
    lines.append("methods: {pfedmma: {data.clients: 6}}" if value[3] else "methods: [pfedmma]")
    (only,) = plans("\n".join(lines), *([f"data.shots={value[5]}"] if value[5] else []))
    assert only.config.data.shots == (12 if top == 3 else 10 + top)
    assert only.config.data.clients == clients


def test_a_method_takes_precedence_over_its_dataset_and_the_command_line_over_both(plans):
    text = "methods: {pfedmma: {optimizer.lr: 0.3}, promptfl: {}}\ndatasets: {shapes: {optimizer.lr: 0.2}}\nsettings: {optimizer.lr: 0.1}\n"
    assert [p.config.optimizer.lr for p in plans(text)] == [0.3, 0.2]
    assert [p.config.optimizer.lr for p in plans(text, "optimizer.lr=0.4")] == [0.4, 0.4]


def test_shots_of_a_dataset_are_not_lost_to_those_of_all(plans):
    found = plans("settings: {data.shots: 16}\nmethods: [pfedmma]\ndatasets: {shapes: {data.shots: 4}, other: {data.name: shapes}}\n")
    assert [(p.dataset, p.config.data.shots) for p in found] == [("shapes", 4), ("other", 16)]
    assert [p.name for p in found] == ["shapes-4-shot-pfedmma-seed0", "other-16-shot-pfedmma-seed0"]


def test_the_folder_of_the_runs(plans, tmp_path: Path):
    (only,) = plans("methods: [pfedmma]\n", out=tmp_path / "here")
    assert only.config.run_dir == str(tmp_path / "here" / "shapes-pfedmma-seed0")
    (set_,) = plans("methods: [pfedmma]\nsettings: {run_dir: ignored}\n")
    assert set_.config.run_dir == "runs/compare/mine/shapes-pfedmma-seed0"


@pytest.mark.parametrize(
    ("label", "folder"),
    [
        ("pFedMMA (dim 8)", "shapes-pFedMMA-dim-8-seed0"),
        ("a/../b", "shapes-a-..-b-seed0"),
        ("../..", "shapes--seed0"),
        ("v1.2_x", "shapes-v1.2_x-seed0"),
    ],
)
def test_folders_have_plain_names(plans, label: str, folder: str):
    (only,) = plans(f"methods: {{'{label}': {{method.name: pfedmma}}}}\n")
    assert only.name == folder and Path(only.config.run_dir).parent == Path("runs/compare/mine")
    assert only.method == label


# Methods that want something of their own.


def test_zeroshot_has_one_round_whatever_is_said(plans):
    methods = "methods: {zeroshot: , more: {method.name: zeroshot, data.shots: 4}, pfedmma: }"
    found = plans(f"{methods}\nsettings: {{federation.rounds: 9}}\n", "federation.rounds=8")
    assert [p.config.federation.rounds for p in found] == [1, 1, 8]


def test_a_method_has_its_own_defaults_unless_the_file_says_otherwise(plans):
    found = plans("methods: {pfedmma: , fedclip: , mine: {method.name: fedclip, optimizer.lr: 0.1}}\n")
    assert [p.config.optimizer.name for p in found] == ["sgd", "adam", "adam"]
    assert [p.config.optimizer.lr for p in found][1:] == [5e-5, 0.1]
    told = plans("methods: [pfedmma, fedclip]\nsettings: {optimizer.name: sgd}\n", "optimizer.lr=0.2")
    assert [(p.config.optimizer.name, p.config.optimizer.lr) for p in told] == [("sgd", 0.2)] * 2


# Bad files.


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "method: [pfedmma]",
            "unknown key 'method'; a compare file has config, settings, methods, datasets, shots, grid, select, select_seeds, seeds",
        ),
        ("seeds: [0]", "'methods' must be a list of names, or a mapping of labels to settings"),
        ("methods: []", "'methods' must be a list"),
        ("methods: pfedmma", "'methods' must be a list"),
        ("methods: {}", "'methods' must be a list"),
        ("methods: [pfedmma]\ndatasets: shapes", "'datasets' must be a list"),
        ("methods: {pfedmma: fast}", "'methods.pfedmma' must be a mapping of settings, not 'fast'"),
        ("methods: [pfedmma]\nsettings: [a]", "'settings' must be a mapping of settings"),
        ("methods: [pfedmma]\nsettings: fast", "'settings' must be a mapping of settings, not 'fast'"),
        ("methods: [pfedmma, local]\nbaseline: lokal", "'baseline' must be one of the methods \\(pfedmma, local\\), not 'lokal'"),
        ("methods: [pfedmma]\nbaseline: [a]", "'baseline' must be one of the methods"),
        ("methods: [pfedmma]\nseeds: 3", "'seeds' must be a list of whole numbers, not '3'"),
        ("methods: [pfedmma]\nseeds: []", "'seeds' must be a list of whole numbers"),
        ("methods: [pfedmma]\nseeds: [0.5]", "'seeds' must be a list of whole numbers"),
        ("methods: [pfedmma]\nseeds: [true]", "'seeds' must be a list of whole numbers"),
        ("methods: [pfedmma]\nshots: ['4']", "'shots' must be a list of whole numbers"),
        ("methods: [pfedmma]\nshots: [-1]", "data.shots: must be at least 0, not -1"),
        ("methods: [pfedmma]\nsettings: {data: 3}", "'data' must be a mapping of settings, not '3'"),
        ("methods: [pfedmma]\nsettings: {data.client: 3}", "unknown setting 'data.client'; did you mean 'data.clients'"),
        ("methods: [pfedmma]\nsettings: {data.clients: many}", "data.clients: a whole number is expected, not 'many'"),
        ("methods: {pfedmma: {method: 5}}", "'method' must be a mapping of settings, not '5'"),
        ("methods: {pfedmma: {method: name}}", "'method' must be a mapping of settings"),
        ("methods: [fedmagic]", "method.name: 'fedmagic' is not known"),
        ("methods: [pfedmma]\ndatasets: [mnist]", "data.name: 'mnist' is not known"),
        ("methods: [pfedmma]\nconfig: 5", "'config' must be the path of a config file, not '5'"),
        ("methods: [pfedmma]\nconfig: [a.yaml]", "'config' must be the path of a config file"),
        ("methods: [pfedmma]\nconfig: absent.yaml", "cannot read the config file .*absent.yaml"),
        ("methods: [pfedmma]\nseeds: [1, 1]", "two runs would share the folder shapes-pfedmma-seed1; give their labels other names"),
        ("methods: {a b: {method.name: local}, a-b: {method.name: pfedmma}}", "two runs would share the folder shapes-a-b-seed0"),
        ("methods: [pfedmma]\ngrid: fast", "'grid' must be a mapping of settings to lists, such as .*, not 'fast'"),
        ("methods: [pfedmma]\ngrid: {}", "'grid' must be a mapping of settings to lists"),
        ("methods: [pfedmma]\ngrid: {method.dim: 8}", "grid.method.dim must be a list of values, not '8'"),
        ("methods: [pfedmma]\ngrid: {method.dim: []}", "grid.method.dim must be a list of values"),
        ("methods: [pfedmma]\ngrid: {method.dim: [8, null]}", "grid.method.dim must be a list of values"),
        ("methods: [pfedmma]\ngrid: {method: {dim: [8]}}", "grid.method must be a list of values, .*; write the whole name, such as"),
        ("methods: [pfedmma]\ngrid: {method.dim: [8, 8]}", "grid.method.dim has 8 twice"),
        ("methods: [pfedmma]\ngrid: {optimizer.lr: [0.001, 1e-3]}", "grid.optimizer.lr has 1e-3 twice"),
        ("methods: [pfedmma]\ngrid: {method.dimm: [8]}", "unknown setting 'method.dimm'; did you mean 'method.dim'"),
        ("methods: [pfedmma]\ngrid: {method.dim: [0]}", "method.dim: must be .* 0"),
        ("methods: [pfedmma]\ngrid: {seed: [0, 1]}", "grid.seed: a compare file has a key for it; write 'seeds'"),
        ("methods: [pfedmma]\ngrid: {data.shots: [1]}", "grid.data.shots: .* write 'shots'"),
        ("methods: [pfedmma]\ngrid: {data.name: [dtd]}", "grid.data.name: .* write 'datasets'"),
        ("methods: [pfedmma]\ngrid: {method.name: [local]}", "grid.method.name: .* write 'methods'"),
        ("methods: [pfedmma]\ngrid: {run_dir: [a, b]}", "grid.run_dir: no result depends on it"),
        ("methods: [pfedmma]\ngrid: {data.cache_gb: [1, 2]}", "grid.data.cache_gb: no result depends on it"),
        (
            f"methods: [pfedmma]\ngrid: {{optimizer.lr: {list(range(1, 60))}, method.dim: {list(range(1, 60))}}}",
            "more than 2000 combinations",
        ),
        ("methods: {pfedmma: {method.dim: 4}}\ngrid: {method.dim: [8]}", "'method.dim' is set by 'grid' and by methods.pfedmma; leave it"),
        ("methods: [pfedmma]\ndatasets: {dtd: {data: {beta: 1}}}\ngrid: {data.beta: [1]}", "set by 'grid' and by datasets.dtd"),
        ("methods: [pfedmma]\nselect: test\ngrid: {method.dim: [8]}", "'select' must be val .*, not 'test'"),
        ("methods: [pfedmma]\nselect_seeds: [0]", "'select_seeds' are the seeds of candidates, which 'select: val' makes"),
        ("methods: [pfedmma]\nselect: val\nselect_seeds: []\ngrid: {method.dim: [8]}", "'select_seeds' must be a list of whole numbers"),
        ("methods: [pfedmma]\nselect: val", "'select' chooses among the combinations of a grid; add one"),
        ("methods: [pfedmma]\nselect: val\ngrid: {evaluation.split: [test]}", "'select' sets evaluation.split .* leave it out of grid"),
        ("methods: [pfedmma]\nselect: val\ngrid: {method.dim: [8]}\nsettings: {evaluation.split: val}", "leave it out of settings"),
        ("methods: {a: {method.name: local, evaluation.split: test}}\nselect: val\ngrid: {method.dim: [8]}", "out of methods.a"),
        ("methods: [pfedmma]\nselect: val\ngrid: {method.dim: [8]}\nsettings: {evaluation.every: 0}", "evaluation.every=0 has none"),
        ("methods: {pfedmma: {config: [5]}}", "'methods.pfedmma.config' must be the path of a config file, not "),
        ("- pfedmma", "must hold 'key: value' lines, not a list"),
        ("methods: [", "is not valid YAML"),
    ],
)
def test_a_bad_file_is_named_in_one_sentence(plans, text: str, says: str):
    with pytest.raises(UserError, match=says) as caught:
        plans(text + "\n")
    assert "absent" in says or "mine.yaml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read the config file .*none\.yaml"):
        grid.read(tmp_path / "none.yaml")


def test_a_bad_setting_on_the_command_line(plans):
    with pytest.raises(UserError, match=r"mine\.yaml: unknown setting 'federation\.round'"):
        plans("methods: [pfedmma]\n", "federation.round=3")


@pytest.mark.parametrize("setting", ["method.dim=4", "evaluation.split=test"])
def test_the_command_line_may_not_set_what_the_file_varies(plans, setting: str):
    with pytest.raises(UserError, match=r"leave it out of (the command line|one of them)$"):
        plans("methods: [pfedmma]\ngrid: {method.dim: [8, 16]}\nselect: val\n", setting)


GRID_OF_TWO = "methods: {pfedmma: , wide: {method.name: pfedmma, method.dim: 64}}\ngrid: {method.scale: [0.1, 1]}\nseeds: [7]\n"


def test_several_values_on_the_command_line_are_a_grid(plans):
    found = plans("methods: [pfedmma]\n", "method.dim=8,32", "optimizer.lr=[0.1, 1e-2]", "federation.rounds=3")
    assert [(p.config.method.dim, p.config.optimizer.lr) for p in found] == [(8, 0.1), (8, 0.01), (32, 0.1), (32, 0.01)]
    assert {p.config.federation.rounds for p in found} == {3} and found[0].grid == ("method.dim", "optimizer.lr")
    assert found[3].name == "shapes-pfedmma-method.dim-32-optimizer.lr-1e-2-seed0"
    words = plans("methods: [pfedmma]\n", "optimizer.name=sgd,adam", "method.rescale=true,false")
    assert [(p.config.optimizer.name, p.config.method.rescale) for p in words][::3] == [("sgd", True), ("adam", False)]


def test_they_extend_the_grid_of_the_file_and_take_the_place_of_its_lists(plans):
    found = plans(GRID_OF_TWO, "optimizer.lr=0.1,0.2", "seed=0,1", "data.shots=1,2")
    assert len(found) == 2 * 2 * 2 * 2 * 2 and {p.config.seed for p in found} == {0, 1} and {p.config.data.shots for p in found} == {1, 2}
    assert {p.combination for p in found} >= {"method.scale=0.1, optimizer.lr=0.2"}
    found = plans(GRID_OF_TWO, "method.name=wide,local", "data.name=shapes,dtd", "data.root=x")
    assert [(p.method, p.config.method.name, p.config.method.dim) for p in found[::2]] == [
        ("wide", "pfedmma", 64),
        ("local", "local", 32),
    ] * 2
    assert {p.dataset for p in found} == {"shapes", "dtd"}


def test_candidates_may_come_from_the_command_line(plans):
    found = plans("methods: [pfedmma]\nselect: val\n", "method.dim=8,32")
    assert [(p.config.method.dim, p.is_candidate, p.candidates) for p in found] == [(8, True, 2), (32, True, 2)]


def test_what_is_one_value_stays_one(plans):
    """A list where the setting is one, a text with spaces, what no result depends on."""
    (only,) = plans("methods: [pfedmma]\n", "method.exchange=shared,visual.down", "data.template=a {}, small", "run_dir=a,b")
    assert only.config.method.exchange == ("shared", "visual.down") and only.config.data.template == "a {}, small"


@pytest.mark.parametrize(
    ("text", "given", "says"),
    [
        ("methods: [local]\nseeds: [0, 1]\n", "seed=5", r"seed0 and .*seed1 .* one run .*; write seed=\[5\] to have it .* file's seeds$"),
        ("methods: [local]\nshots: [1, 4]\n", "data.shots=2", r"1-shot-.* and .*4-shot-.* would be one run .*; write data\.shots=\[2\]"),
        ("methods: [local, pfedmma]\n", "method.name=fedclip", r"local.* and .*pfedmma.* would be one .*; write method\.name=\[fedclip\]"),
        ("methods: [local]\ndatasets: [shapes, caltech101]\n", "data.name=shapes", r"would be one run .*; write data\.name=\[shapes\]"),
        (CHOOSING, "seed=5", r"'select' runs with seeds of its own; write seed=\[5\]"),
        (f"{CHOOSING}select_seeds: [0]\n".replace("[0, 1]", "[0]"), "seed=5", r"'select' runs with seeds of its own; write seed=\[5\]"),
    ],
)
def test_one_value_does_not_stand_in_for_several_runs(plans, text: str, given: str, says: str):
    """They would be one run under several names, and count as several in tests over seeds."""
    with pytest.raises(UserError, match=says):
        plans(text, given)
    name, value = given.split("=")
    found = {str(options.flatten(plan.config)[name]) for plan in plans(text, f"{name}=[{value}]") if not plan.is_candidate}
    assert found == {value}


@pytest.mark.parametrize(
    ("text", "given", "says"),
    [
        ("methods: {a: {method.name: local}, b: {method.name: local}}\n", (), "a-.* and .*b-.* two names; leave out one of them$"),
        ("methods: {a: {method.name: local}, b: {method.name: local}}\n", ("seed=5",), r"leave out one of them, or what .* \(seed=5\)$"),
        (
            "methods: {weak: {method.name: local, method.scale: 0.1}, strong: {method.name: local, method.scale: 1}}\n",
            ("method.scale=0.5",),
            r"weak.* and .*strong.* two names; leave out one of them, or what the command line sets for both \(method\.scale=0\.5\)$",
        ),
    ],
)
def test_runs_that_differ_in_their_labels_alone_are_refused(plans, text: str, given: tuple[str, ...], says: str):
    with pytest.raises(UserError, match=says):
        plans(text, *given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("method.scale=1,2", r"mine\.yaml: 'method\.scale' is set by 'grid' and by the command line; leave it out of one"),
        ("method.dim=8,32", r"'method\.dim' is set by 'grid' and by methods\.wide"),
        ("method.dimm=8,32", r"unknown setting 'method\.dimm'; did you mean 'method\.dim'"),
        ("optimizer.lr=1,1.0", r"grid\.optimizer\.lr has 1\.0 twice"),
        ("seed=0,a", "'seeds' must be a list of whole numbers"),
        ("optimizer.lr=[1, [", "is no list of values|a number is expected"),
        ("optimizer.lr=[}]", "is no list of values"),
    ],
)
def test_bad_lists_on_the_command_line(plans, given: str, says: str):
    with pytest.raises(UserError, match=says):
        plans(GRID_OF_TWO, given)


def test_several_files_are_groups_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    for name in ("one", "two", "below/one"):
        (tmp_path / f"{name}.yaml").write_text("methods: [pfedmma]\n")
    for more, root in (([], "runs/compare"), (["--out", "both"], "both")):
        main(["one.yaml", "two.yaml", "--dry-run", *more])
        shown = capsys.readouterr().out
        assert [f"{root}/{name}/plans/shapes-pfedmma-seed0.yaml" in shown for name in ("one", "two")] == [True, True]
        assert len(shown.splitlines()) == 2
        with pytest.raises(UserError, match="two runs would share the folder shapes-pfedmma-seed0"):
            main(["one.yaml", "below/one.yaml", "--dry-run", *more])
        assert capsys.readouterr().out == ""
    first, second = (grid.read(Path(f"{name}.yaml"), group=name)[0] for name in ("one", "two"))
    assert (first.setting, second.setting) == ("one, shapes, 16 shots", "two, shapes, 16 shots")


# The files of this project.

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "compare").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_compare_file_can_be_planned(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    main([str(file), "data.root=DATA", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines and len(set(lines)) == len(lines)
    assert all("pfedmma.train --config runs/compare/" in line for line in lines)


def test_words_that_yaml_takes_for_truth_are_words_where_a_setting_has_words(plans):
    """In settings, in those of a label, and in a grid."""
    found = plans("settings: {backbone: {compile: off}}\nmethods: {pfedmma: , on: {method.name: local, backbone.compile: on}}\n")
    assert [(p.method, p.config.backbone.compile) for p in found] == [("pfedmma", "off"), ("on", "on")]
    found = plans("methods: [pfedmma]\ngrid: {backbone.compile: [on, off], federation.drop_last: [no, yes]}\n")
    assert [(p.config.backbone.compile, p.config.federation.drop_last) for p in found] == [
        ("on", False),
        ("on", True),
        ("off", False),
        ("off", True),
    ]
