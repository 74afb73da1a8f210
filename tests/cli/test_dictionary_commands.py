"""train-dictionary and evaluate: from a config to a dictionary on disk and its figures."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from jax_interp.core import config_json as configs
from jax_interp.dictionaries.storage import load_dictionary
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


def test_evaluate_gives_the_figures_of_the_run(trained, command, tmp_path):
    for source in (trained, trained / "dictionary"):
        code, out, _ = command("evaluate", source, "--json", tmp_path / "again.json")
        assert code == 0
        assert "splicing the identity gives exactly the clean CE" in out
        again = json.loads((tmp_path / "again.json").read_text())
        expected = json.loads((trained / "evaluation.json").read_text())
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
    assert page.count("<svg") == 2
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
