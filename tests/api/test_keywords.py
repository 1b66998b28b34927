"""Settings as keywords, and tables as columns."""

from __future__ import annotations

import builtins
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfedmma.api.keywords import as_settings
from pfedmma.api.table import Table
from pfedmma.config import schema
from pfedmma.system.errors import UserError


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"rounds": 5}, ["federation.rounds=5"]),
        ({"data__clients": 4, "data.beta": 0.3}, ["data.clients=4", "data.beta=0.3"]),
        ({"method": "local", "data": "dtd"}, ["method.name=local", "data.name=dtd"]),
        ({"optimizer": {"lr": 1e-5, "state": "persist"}}, ["optimizer.lr=1e-05", "optimizer.state=persist"]),
        ({"method": {"name": "promptfl", "promptfl": {"context": 4}}}, ["method.name=promptfl", "method.promptfl.context=4"]),
        ({"seed": 3, "run_dir": Path("a b")}, ["seed=3", "run_dir=a b"]),
        ({"rescale": False, "template": None}, ["method.rescale=false", "data.template="]),
        ({"exchange": ["shared", "visual.down"]}, ['method.exchange=["shared", "visual.down"]']),
    ],
)
def test_a_keyword_is_a_setting(keywords: dict[str, Any], said: list[str]) -> None:
    assert as_settings(keywords) == said


def test_what_is_said_is_read() -> None:
    keywords = {"rounds": 5, "optimizer": {"lr": 1e-5}, "exchange": ["shared", "visual.down"], "rescale": False, "trackers": ["mlflow"]}
    config = schema.load(None, as_settings(keywords))
    assert (config.federation.rounds, config.optimizer.lr, config.method.rescale) == (5, 1e-5, False)
    assert config.method.exchange == ("shared", "visual.down") and config.trackers == ("mlflow",)
    with pytest.raises(UserError, match=r"unknown setting 'federation\.round'"):
        schema.load(None, as_settings({"federation": {"round": 5}}))


@pytest.mark.parametrize(("word", "says"), [("roundz", "did you mean rounds"), ("zzzzzz", "write section__name=value")])
def test_a_word_that_is_no_setting_names_the_nearest(word: str, says: str) -> None:
    with pytest.raises(UserError, match=f"no setting ends in '{word}'; {says}"):
        as_settings({word: 5})


def test_a_word_of_several_sections_names_them() -> None:
    with pytest.raises(UserError, match="'every' is a setting of several sections; write one of evaluation__every, checkpoint__every"):
        as_settings({"every": 1})


def test_columns_keep_their_kind() -> None:
    table = Table.from_lines([["n", "x", "text", "mixed"], [1, 0.5, "a", None], [2, None, "b", (1, 2)]])
    assert table["n"].dtype == np.int64 and table["x"].dtype == np.float64 and math.isnan(table["x"][1])
    assert table["text"].tolist() == ["a", "b"] and table["mixed"].tolist() == [None, (1, 2)]
    assert (list(table), len(table), table.rows) == (["n", "x", "text", "mixed"], 4, 2)
    assert np.isnan(Table({"none": [None, None]})["none"]).all()
    assert repr(table) == "<2 rows of n, x, text, mixed>" and Table({}).rows == 0


def test_a_frame_is_that_of_pandas() -> None:
    import pandas

    frame = Table({"n": [1, 2], "x": [0.5, None]}).frame()
    assert isinstance(frame, pandas.DataFrame) and frame["n"].tolist() == [1, 2] and frame["x"].isna().tolist() == [False, True]


def test_without_pandas_a_frame_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r'frame\(\) needs pandas; pip install "pfedmma\[pandas\]", or take the columns'):
        Table({"n": [1]}).frame()
