"""train-dictionary and evaluate: from a config to a dictionary on disk and its figures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jax_interp.dictionaries.storage import load_dictionary


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
    assert figures["identity_is_exact"] is True
    assert figures["reconstruction"]["l0"] <= 4
    assert figures["density"]["features"] == 32


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
        assert "splicing the identity gives the clean CE to the bit" in out
        again = json.loads((tmp_path / "again.json").read_text())
        expected = json.loads((trained / "evaluation.json").read_text())
        assert {name: again[name] for name in expected} == expected


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
