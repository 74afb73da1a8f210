"""decompose: what it measures of toys, and what it refuses before it trains."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import jax_interp.recipes.decomposition.spd as module
from jax_interp.core import config_json as configs
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.decomposition import DecompositionConfig, Trained
from jax_interp.decomposition.importance import ScalarMLP
from jax_interp.decomposition.linearity import LinearitySettings, oracle_decomposition
from jax_interp.decomposition.losses import ImportanceMinimality
from jax_interp.decomposition.train import initial_decomposition
from jax_interp.models import load
from jax_interp.recipes.decomposition import DecompositionRunConfig, inputs_for, opened, train
from jax_interp.recipes.decomposition.inputs import next_tokens
from jax_interp.recipes.decomposition.method import HeldOut, Inputs
from jax_interp.recipes.decomposition.spd import SPD, measure_known_features
from jax_interp.toys.resid_mlp import ResidMLPConfig, init_resid_mlp
from jax_interp.toys.tms import TMSConfig, init_tms, insert_identity
from jax_interp.toys.toy import known_features
from jax_interp.training import QUIET


def drawn(settings: DecompositionConfig, target) -> Trained:
    """A decomposition as it is drawn, before any step."""
    parts = initial_decomposition(settings, target)
    return Trained(parts, settings.importance.init(jax.random.key(0), parts), settings.sigmoid)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("adversary_steps", (), "adversary_steps=\\(\\): give one number or more"),
        ("adversary_steps", (5, 0), "each at least 1"),
        ("evaluate_rows", 0, "evaluate_rows=0 must be at least 1"),
        ("linearity_rows", 0, "linearity_rows=0 must be at least 1"),
        ("log_every", 0, "log_every=0 must be at least 1"),
        ("checkpoint_every", -1, "checkpoint_every=-1 must be at least 1"),
        ("context", 1, "context=1 leaves nothing to predict"),
        ("threshold", 1.0, "threshold=1.0 must be at least 0 and below 1"),
        ("threshold", -0.1, "threshold=-0.1 must be at least 0 and below 1"),
    ],
)
def test_what_a_run_cannot_be(field, value, said):
    with pytest.raises(UserError, match=said):
        DecompositionRunConfig(**{field: value})


@pytest.mark.parametrize(
    ("matrix", "rows", "said"),
    [
        ("blocks.*.mlp.up", 10_000, "rows of 16, less than one batch of 10000"),
        ("linear1", 2, "no matrix matches 'linear1'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_there_is_a_directory(command, model, text, tmp_path, matrix, rows, said):
    settings = DecompositionConfig((matrix,), C=2, importance=ScalarMLP(2), batch=2, steps=1)
    config = DecompositionRunConfig(settings, target=str(model), text=str(text), context=16, evaluate_rows=rows)
    path = tmp_path / "run.json"
    path.write_text(configs.dumps(config))
    code, _, err = command("decompose", path, "--run-dir", tmp_path / "run", "--quiet")
    assert code == 2
    assert said in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("target", ["tms:5-2-apd", "tms:intro"])
def test_instances_are_refused_before_they_are_trained(target, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_INTERP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=f"target '{target}' is several .*: tms:5-2, tms:5-2-id, "):
        inputs_for(DecompositionRunConfig(target=target))
    assert not (tmp_path / "cache").exists()


def test_special_tokens_are_neither_read_nor_predicted():
    """Cross-entropy is of the predictions between two kept tokens: of 5 0 6 7, with 0 special, of 7 from 6 alone."""
    labels = next_tokens(np.array([[5, 0, 6, 7], [1, 2, 3, 4]]), np.array([[1, 0, 1, 1], [1, 1, 1, 1]], bool))
    np.testing.assert_array_equal(labels, [[-1, -1, 7, -1], [2, 3, 4, -1]])


def test_labels_of_held_out_text_leave_special_tokens_out(model, text):
    config = DecompositionRunConfig(target=str(model), text=str(text), context=16, evaluate_rows=8)
    x, labels = inputs_for(config).held_out(8)
    special = np.isin(x, sorted(load(str(model))[1].special_ids))
    assert special.any()
    np.testing.assert_array_equal(labels[:, -1], -1)
    np.testing.assert_array_equal(labels[:, :-1] >= 0, ~special[:, :-1] & ~special[:, 1:])


@pytest.mark.parametrize("toy", ["identity", "residual MLP"])
def test_toys_are_measured_whatever_is_decomposed(toy):
    """Only an inserted identity of TMS; both matrices of a residual MLP."""
    if toy == "identity":
        settings = DecompositionConfig(("hidden_layers.0",), C=3, importance=ScalarMLP(2))
        target = insert_identity(init_tms(jax.random.key(0), TMSConfig(3, 2)))
        probed, expected = {"hidden_layers.0"}, {"hidden_layers.0": "dense, 2 components"}
    else:
        settings = DecompositionConfig(("blocks.*.mlp",), C=3, importance=ScalarMLP(2))
        target = init_resid_mlp(jax.random.key(0), ResidMLPConfig(3, 3, n_layers=1, d_mlp=2, identity=True))
        probed = {"blocks.0.mlp.up", "blocks.0.mlp.down"}
        expected = {"blocks.*.mlp.up": "identity", "blocks.*.mlp.down": "dense, 2 components"}
    trained = drawn(settings, target)
    known = known_features(target)
    assert known is not None
    found = measure_known_features(known, settings, trained, oracle_decomposition(trained.model, known.parts))
    assert set(found["probe"]) == probed
    assert {name: one["pattern"] for name, one in found["pattern_errors"].items()} == expected
    assert [row["name"] for row in found["composites"]][::4] == ["1 on, needed parts alone", "2 on, needed parts alone"]
    assert (found["composites"][0]["excess"] is not None) == (toy == "residual MLP")
    assert "mmcs" not in found


def test_one_threshold_is_of_every_figure(monkeypatch):
    """Whatever counts importances gets the config's; a run of before there was one has 0."""
    settings = DecompositionConfig(("linear1",), C=3, importance=ScalarMLP(2))
    target, seen = init_tms(jax.random.key(0), TMSConfig(3, 2)), {}
    for name in ("evaluate", "linearity_of", "composites_of"):
        real, few = getattr(module, name), {"linearity_of": {"settings": LinearitySettings(1, (1,), (1,))}}

        def noted(*args, name=name, real=real, few=few, **options):
            seen[name] = options["threshold"]
            return real(*args, **options | few.get(name, {}))

        monkeypatch.setattr(module, name, noted)
    config = DecompositionRunConfig(settings, evaluate_rows=4, linearity_rows=4, adversary_steps=(1,), threshold=0.3)
    SPD().measure(settings, config, drawn(settings, target), inputs_of(target))
    assert seen == dict.fromkeys(("evaluate", "linearity_of", "composites_of"), 0.3)
    old = json.loads(configs.dumps(config))
    del old["threshold"]
    assert configs.from_json(DecompositionRunConfig, old).threshold == 0


def test_a_run_goes_on_with_another_threshold(tmp_path):
    settings = DecompositionConfig(
        ("linear1",), C=3, importance=ScalarMLP(2), warm_up=None, losses=(ImportanceMinimality(),), steps=1, batch=4
    )
    config, inputs = DecompositionRunConfig(settings), inputs_of(init_tms(jax.random.key(0), TMSConfig(3, 2)))
    with opened(config, tmp_path) as run:
        train(config, inputs, run, log=QUIET)
    old = read_json(tmp_path / "config.json")
    del old["threshold"]  # of a run from before there was one
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = dataclasses.replace(config, threshold=0.2)
    with opened(config, tmp_path) as run:
        train(config, inputs, run, log=QUIET)
    assert read_json(tmp_path / "config.json")["threshold"] == 0.2


def test_a_finished_decomposition_is_extended(tmp_path):
    settings = DecompositionConfig(
        ("linear1",), C=3, importance=ScalarMLP(2), warm_up=None, losses=(ImportanceMinimality(),), steps=2, batch=4
    )
    inputs = inputs_of(init_tms(jax.random.key(0), TMSConfig(3, 2)))
    more = DecompositionRunConfig(dataclasses.replace(settings, steps=4))
    with opened(DecompositionRunConfig(settings), tmp_path / "a") as run:
        train(DecompositionRunConfig(settings), inputs, run, log=QUIET)
    with opened(more, tmp_path / "b", parent=tmp_path / "a") as run:
        train(more, inputs, run, log=QUIET)
        assert run.parent is not None
        assert run.parent.step == 2
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4]


def inputs_of(target) -> Inputs:
    """A toy of three features at hand, instead of one that is trained."""
    rows = lambda key, count: jax.random.uniform(key, (count, 3))
    held_out = lambda count: (rows(jax.random.key(9), count), None)
    return Inputs(target, held_out, lambda n: HeldOut([]), {}, sample=lambda key: rows(key, 4))
