"""train-dictionary and evaluate: from a config to a dictionary on disk and its figures."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jax_interp.core import config_json as configs
from jax_interp.core.json_files import read_json
from jax_interp.dictionaries.loading import load_dictionary
from jax_interp.dictionaries.losses import AuxK, Reconstruction
from jax_interp.dictionaries.training.sweep import Sweep
from jax_interp.recipes.dictionary import DictionaryRunConfig


@pytest.fixture(scope="module")
def trained(run_json, tmp_path_factory):
    from jax_interp.cli.main import main

    directory = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train-dictionary", str(run_json), "--run-dir", str(directory), "--quiet"]) == 0
    return directory


def test_what_a_run_leaves(trained, run_config):
    saved = load_dictionary(trained / "dictionary")
    assert saved.address == "blocks.1.resid_pre"
    assert saved.model == run_config.model
    assert saved.dictionary.W_dec.shape == (32, 16)
    np.testing.assert_allclose(np.linalg.norm(saved.dictionary.W_dec, axis=1), 1, rtol=1e-5)
    figures = json.loads((trained / "evaluation.json").read_text())
    assert figures["reconstruction"]["l0"] <= 4
    assert figures["density"]["features"] == 32
    assert (trained / "report.html").read_text().count("<svg") == 3


def test_the_run_directory_is_a_config(trained, command):
    """Finished already: the same figures again, without a step."""
    before = (trained / "evaluation.json").read_text()
    code, out, _ = command("train-dictionary", trained, "--quiet")
    assert code == 0
    assert "FVU" in out
    assert (trained / "evaluation.json").read_text() == before


@pytest.mark.slow
def test_a_mesh_gives_the_figures_of_one_device(trained, run_json, command, tmp_path):
    code, out, err = command("train-dictionary", run_json, "--run-dir", tmp_path, "--mesh", "data=2", "--quiet")
    assert code == 0, err
    assert "FVU" in out
    alone, there = (json.loads((path / "evaluation.json").read_text()) for path in (trained, tmp_path))
    assert there["reconstruction"]["fvu"] == pytest.approx(alone["reconstruction"]["fvu"], rel=1e-2)
    code, out, err = command("train-dictionary", tmp_path, "--mesh", "tensor=2", "--quiet")  # finished: nothing to do
    assert code == 0, err


@pytest.mark.parametrize(
    ("mesh", "message"),
    [("data=64", "does not fit"), ("rows=2", "no axis 'rows'"), ("data=4", "a batch of 2 cannot be split equally")],
)
def test_a_mesh_that_cannot_be(mesh, message, run_json, command, tmp_path):
    code, _, err = command("train-dictionary", run_json, "--run-dir", tmp_path / "run", "--mesh", mesh)
    assert code == 2
    assert message in err
    assert not (tmp_path / "run").exists()


def test_evaluate_gives_the_figures_of_the_run(trained, command, tmp_path):
    for source in (trained, trained / "dictionary"):
        code, out, _ = command("evaluate", source, "--json", tmp_path / "again.json")
        assert code == 0
        assert "splicing the identity gives exactly the clean CE" in out
        again = read_json(tmp_path / "again.json")
        expected = read_json(trained / "evaluation.json")
        assert {name: again[name] for name in expected} == expected


def test_figures_of_another_text_do_not_replace_the_runs_own(trained, command, tmp_path):
    (tmp_path / "other.py").write_text("def mean(values):\n    return sum(values) / len(values)\n" * 400)
    before = (trained / "evaluation.json").read_text()
    code, out, _ = command("evaluate", trained, "--text", tmp_path / "other.py")
    assert code == 0
    assert "written to" not in out
    assert (trained / "evaluation.json").read_text() == before
    code, _, err = command("evaluate", trained, "--json", tmp_path / "no" / "x.json")
    assert code == 2
    assert "there is no directory" in err


def test_evaluate_on_more_text_than_there_is_takes_all(trained, command, tmp_path):
    code, _, _ = command("evaluate", trained, "--sequences", 10_000, "--json", tmp_path / "all.json")
    assert code == 0
    figures = json.loads((tmp_path / "all.json").read_text())
    less = json.loads((trained / "evaluation.json").read_text())
    assert figures["reconstruction"]["tokens"] > less["reconstruction"]["tokens"]


def test_other_weights_or_text_are_refused(trained, command, run_config, tmp_path, text):
    """A run goes on with the weights and the text that it began with."""
    (text / "later.py").write_text("x = 1\n" * 50)
    try:
        code, _, err = command("train-dictionary", trained, "--quiet")
    finally:
        (text / "later.py").unlink()
    assert code == 2
    assert "was begun with other text" in err


def test_a_run_says_how_often_the_text_was_seen(trained, run_config, command):
    _, out, _ = command("train-dictionary", trained, "--quiet")
    figures = json.loads((trained / "evaluation.json").read_text())
    assert figures["data"]["tokens"] == run_config.tokens == 12 * 2 * 32
    times = run_config.tokens / figures["data"]["text_tokens"]
    assert f"trained on 768 tokens, {times:.3g}"[:26] in out
    assert "times the" in (trained / "report.html").read_text()


def test_what_a_step_would_refuse_is_refused_before_anything_is_written(run_config, model, command, tmp_path):
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in tensors if "layers.1.mlp.down" in name)
    shutil.copytree(model, tmp_path / "nan")
    (tmp_path / "nan" / "digests.json").unlink()
    save_file(tensors | {name: np.full_like(tensors[name], np.nan)}, tmp_path / "nan" / "model.safetensors")
    base = run_config.dictionary
    for message, config in {
        "AuxK(k=99) of n_features=32": dataclasses.replace(
            run_config, dictionary=base.with_fields(loss=(Reconstruction(), AuxK(k=99)))
        ),
        "skip_first=32 leaves nothing": dataclasses.replace(run_config, dictionary=base.with_fields(skip_first=32)),
        "NaN or infinite values in": dataclasses.replace(run_config, model=str(tmp_path / "nan")),
        "member 0 of the sweep cannot be trained": dataclasses.replace(run_config, sweep=Sweep(learning_rates=(0.0,))),
    }.items():
        (tmp_path / "config.json").write_text(configs.dumps(config))
        code, _, err = command("train-dictionary", tmp_path / "config.json", "--run-dir", tmp_path / "run", "--quiet")
        assert code == 2
        assert message in err
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_grid_leaves_its_members_and_a_report(run_config, command, tmp_path):
    config = dataclasses.replace(run_config, sweep=Sweep(k=(2, 4)))
    (tmp_path / "grid.json").write_text(configs.dumps(config))
    run = tmp_path / "run"
    code, out, _ = command("train-dictionary", tmp_path / "grid.json", "--run-dir", run, "--quiet")
    assert code == 0
    assert "2 dictionaries" in out
    rows = json.loads((run / "sweep.json").read_text())
    assert [(row["label"], row["name"]) for row in rows] == [("k 2", "00"), ("k 4", "01")]
    assert rows[0]["l0"] <= 2
    assert load_dictionary(run / "members" / "01" / "dictionary").dictionary.activation.k == 4
    page = (run / "report.html").read_text()
    assert page.count("<svg") == 3, "the grid, each member's training, and the mean"
    assert "k 4" in page
    code, _, err = command(
        "train-dictionary", tmp_path / "grid.json", "--run-dir", tmp_path / "x", "--sweep.k", "2", "9"
    )
    assert code == 2
    assert "from 1 to its own k" in err
    assert not (tmp_path / "x").exists()
    kept = load_dictionary(run / "members" / "00" / "dictionary").config
    assert configs.from_json(DictionaryRunConfig, kept).dictionary.activation.k == 2
    code, _, err = command("evaluate", run)
    assert code == 2
    assert "is a sweep: give one of its dictionaries" in err
    code, out, _ = command("evaluate", run / "members" / "00")
    assert code == 0
