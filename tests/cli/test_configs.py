"""Configs by name, by module, and back from a run's JSON, with typed overrides."""

from __future__ import annotations

import dataclasses

import pytest

from jax_interp.cli.arguments import parse
from jax_interp.cli.config_source import take_source
from jax_interp.cli.train_dictionary import TrainDictionary
from jax_interp.core import config_json as configs
from jax_interp.core.errors import UserError
from jax_interp.dictionaries import variants
from jax_interp.dictionaries.activations import TopK
from jax_interp.recipes.configs import directories, find_config, known_names
from jax_interp.recipes.decomposition import DecompositionRunConfig
from jax_interp.recipes.demo.config import DemoConfig
from jax_interp.recipes.dictionary import DictionaryRunConfig
from jax_interp.recipes.find_circuit import FindCircuitConfig
from jax_interp.recipes.probes.monitor import MonitorConfig
from jax_interp.recipes.probes.train_probes import TrainProbesConfig
from jax_interp.recipes.steering.steer import SteerConfig
from jax_interp.recipes.train_lm import LanguageModelConfig

KINDS = (
    LanguageModelConfig, DictionaryRunConfig, DecompositionRunConfig, DemoConfig, FindCircuitConfig, MonitorConfig,
    TrainProbesConfig,
    SteerConfig,
)  # fmt: skip
NAMED = [(kind, name) for kind in KINDS for name in known_names(kind)]


@pytest.mark.parametrize(("kind", "name"), NAMED, ids=[name for _, name in NAMED])
def test_every_named_config_survives_json(kind, name, tmp_path):
    found = find_config(kind, name)
    (tmp_path / "config.json").write_text(configs.dumps(found.config))
    again = find_config(kind, str(tmp_path))
    assert again.config == found.config
    assert again.run_dir == tmp_path
    assert find_config(kind, str(tmp_path / "config.json")).config == found.config


def test_every_file_of_configs_is_found_under_its_name():
    files = {path.stem for directory in directories() for path in directory.glob("*.py")}
    assert files == {name for _, name in NAMED}


PUBLIC = {name: value for name, value in vars(variants).items() if not name.startswith("_") and callable(value)}
VARIANTS = [name for name, value in PUBLIC.items() if getattr(value, "__module__", "") == variants.__name__]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_a_config(name):
    """Its config has the activation, the losses and the optimizer of the variant."""
    found = find_config(DictionaryRunConfig, f"stdlib_small_{name}").config.dictionary
    if name == "transcoder":
        made = variants.transcoder(found.address, found.writes)
    elif name == "jumprelu":
        made = variants.jumprelu(found.address, target=32)
    elif "cross_layer" in name:
        made = getattr(variants, name)(found.address, found.writes)
    else:
        made = getattr(variants, name)(found.address)

    def recipe(config):
        chosen = config.activation
        resampled, centred = getattr(config, "resampling", None) is not None, getattr(config, "centred", False)
        weights = [getattr(term, "weight", None) for term in config.loss]
        return (
            (type(config), type(chosen), getattr(chosen, "weighted", None), getattr(chosen, "bandwidth", None)),
            ([type(term) for term in config.loss], weights, config.decoder, centred, resampled),
            (config.optimizer.b1, config.optimizer.clip),
        )

    assert recipe(found) == recipe(made)


def test_names_may_be_written_with_hyphens():
    assert find_config(LanguageModelConfig, "stdlib-tiny").name == "stdlib_tiny"


def test_a_folder_called_as_a_config_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    found = find_config(DemoConfig, "demo")
    assert (found.name, found.run_dir) == ("demo", None)
    with pytest.raises(UserError, match=r"no config at other/config\.json"):
        find_config(DemoConfig, "other")


def test_a_json_of_the_users_own_gives_its_run_its_name(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(configs.dumps(DictionaryRunConfig(batch=3)))
        found = find_config(DictionaryRunConfig, str(tmp_path / f"{name}.json"))
        assert (found.config.batch, found.name, found.run_dir) == (3, name, None)


def test_a_module_that_exits_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("import sys\nsys.exit('bye')\n")
    with pytest.raises(UserError, match=r"mine\.py does not run: SystemExit: bye"):
        find_config(DictionaryRunConfig, str(tmp_path / "mine.py"))


def test_a_module_of_the_users_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from jax_interp.recipes.dictionary import DictionaryRunConfig\nCONFIG = DictionaryRunConfig(batch=3)\n"
    )
    found = find_config(DictionaryRunConfig, str(path))
    assert (found.config.batch, found.name, found.run_dir) == (3, "mine", None)


def test_overrides_are_typed_and_reach_nested_fields(run_config):
    argv = [
        "--dictionary.activation.k",
        "3",
        "--dictionary.optimizer.learning-rate",
        "0.5",
        "--context=16",
        "--run-dir",
        "x",
    ]
    asked = parse(TrainDictionary, argv, command="train-dictionary", default=TrainDictionary(config=run_config))
    changed = dataclasses.replace(
        run_config.dictionary,
        activation=TopK(3),
        optimizer=dataclasses.replace(run_config.dictionary.optimizer, learning_rate=0.5),
    )
    assert asked.config == dataclasses.replace(run_config, dictionary=changed, context=16)
    assert str(asked.run_dir) == "x"


def test_no_override_changes_nothing(run_config):
    assert parse(TrainDictionary, [], command="x", default=TrainDictionary(config=run_config)).config == run_config


def test_where_the_config_is_taken_from():
    assert take_source(["name", "--steps", "3"]) == ("name", ["--steps", "3"])
    assert take_source(["--steps", "3", "--config", "runs/x"]) == ("runs/x", ["--steps", "3"])
    assert take_source(["--config=runs/x", "--quiet"]) == ("runs/x", ["--quiet"])
    assert take_source(["--steps", "3"]) == (None, ["--steps", "3"])


def test_a_demo_needs_prompts_to_patch():
    with pytest.raises(UserError, match="at least one pair"):
        DemoConfig()
