"""Configs as JSON: what comes back is what went in, and a wrong file says where and what."""

from __future__ import annotations

import dataclasses
import enum
import json
from pathlib import Path
from typing import Literal

import pytest

from jax_interp.core import config_json as configs
from jax_interp.core.config_json import differences, dumps, from_json, load, to_json
from jax_interp.core.errors import UserError
from jax_interp.training import open_run


class Kind(enum.Enum):
    RELU = 1
    TOPK = 2


@dataclasses.dataclass(frozen=True)
class Cosine:
    warmup: int = 10


@dataclasses.dataclass(frozen=True)
class Constant:
    warmup: int = 0


@dataclasses.dataclass(frozen=True)
class Data:
    path: Path
    fraction: float = 1.0


@dataclasses.dataclass(frozen=True)
class Config:
    data: Data
    schedule: Cosine | Constant = Cosine()
    kind: Kind = Kind.TOPK
    dtype: Literal["float32", "bfloat16"] = "float32"
    layers: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "a")
    limit: int | None = None
    rate: int | float = 1
    names: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    by_layer: dict[int, str] = dataclasses.field(default_factory=dict)
    verbose: bool = False


CONFIG = Config(
    Data(Path("x/y"), 0.5),
    Constant(3),
    Kind.RELU,
    "bfloat16",
    (1, 2),
    (2, "b"),
    7,
    0.25,
    {"a": [1.0, 2.5]},
    {3: "c"},
    True,
)


@pytest.mark.parametrize("config", [CONFIG, Config(Data(Path("z")))])
def test_there_and_back(config, tmp_path):
    (tmp_path / "config.json").write_text(dumps(config))
    assert load(Config, tmp_path) == load(Config, tmp_path / "config.json") == config


def test_defaults_fill_what_is_left_out():
    assert from_json(Config, {"data": {"path": "p", "fraction": 1}}) == Config(Data(Path("p")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": [1]}, "config has no 'layer'; did you mean 'layers'?"),
        ({"data": {"path": "p", "fractoin": 1.0}}, r"config\.data has no 'fractoin'; did you mean 'fraction'\?"),
        ({"data": {}}, r"config\.data lacks path of Data"),
        ({"data": {"path": 3}}, r"config\.data\.path is 3, which is not Path"),
        ({"data": {"path": "p", "fraction": "0.5"}}, r'config\.data\.fraction is "0\.5", which is not float'),
        ({"layers": [1, 2.0]}, r"config\.layers\[1\] is 2\.0, which is not int"),
        ({"layers": 3}, r"config\.layers is 3, which is not tuple\[int, \.\.\.\]"),
        ({"pair": [1]}, r"config\.pair has 1 entries, it needs 2"),
        ({"limit": "no"}, r'config\.limit is "no", which is not int \| None'),
        ({"verbose": 1}, r"config\.verbose is 1, which is not bool"),
        ({"dtype": "float23"}, r'it can be "float32", "bfloat16"\. Did you mean "float32"'),
        ({"kind": "TOPKK"}, "it can be RELU, TOPK"),
        ({"type": "OtherConfig"}, "config is a OtherConfig, not a Config"),
        ({"schedule": {"type": "Linear"}}, r"config\.schedule is .*, which is not"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(UserError, match=message):
        from_json(Config, to_json(CONFIG) | change)


def test_files_that_are_not_configs(tmp_path):
    with pytest.raises(UserError, match="no config at"):
        load(Config, tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"data"')
    with pytest.raises(UserError, match="is not JSON"):
        load(Config, tmp_path / "half.json")
    (tmp_path / "wrong.json").write_text(json.dumps({"data": {"path": 1}}))
    with pytest.raises(UserError, match=r"wrong\.json: config\.data\.path"):
        load(Config, tmp_path / "wrong.json")


def test_what_cannot_be_stored():
    with pytest.raises(UserError, match="cannot hold a object"):
        to_json({"x": object()})


def test_differences_name_the_keys():
    new = dataclasses.replace(CONFIG, data=Data(Path("x/y"), 0.75), limit=None)
    assert differences(to_json(CONFIG), to_json(new)) == ["data.fraction: 0.5 -> 0.75", "limit: 7 -> null"]
    assert differences({"a": 1}, {"b": 1}) == ['b: "(absent)" -> 1', 'a: 1 -> "(absent)"']
    assert differences({"a": 1}, {"a": True}) == ["a: 1 -> true"]


@configs.reads_older_files(renamed={"lr": "rate"}, removed={"nesterov": False}, called=("Momentum",))
@dataclasses.dataclass(frozen=True)
class Steps:
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Whole:
    steps: Steps = dataclasses.field(default_factory=Steps)


def test_a_file_of_an_earlier_version_is_read_as_what_it_is_called_now():
    stored = {"type": "Whole", "steps": {"type": "Momentum", "lr": 0.5, "nesterov": False}}
    assert configs.from_json(Whole, stored) == Whole(Steps(0.5))
    assert configs.upgrade(stored) == configs.to_json(Whole(Steps(0.5)))
    with pytest.raises(UserError, match="has no 'nesterov' any more"):
        configs.from_json(Whole, {"type": "Whole", "steps": {"type": "Steps", "nesterov": True}})


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    with open_run(tmp_path / "run", Whole(Steps(0.5))) as run:
        pass
    run.config.write_text('{"type": "Whole", "steps": {"type": "Momentum", "lr": 0.5, "nesterov": false}}')
    with open_run(tmp_path / "run", Whole(Steps(0.5))):
        pass
    with pytest.raises(UserError, match=r"steps.rate: 0.5 -> 0.25"), open_run(tmp_path / "run", Whole(Steps(0.25))):
        pass


def test_a_name_belongs_to_the_files_of_one_class():
    with pytest.raises(TypeError, match="files of Steps have the name 'Momentum', which Other claims"):
        configs.reads_older_files(called=("Momentum",))(type("Other", (), {}))
