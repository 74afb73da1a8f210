"""decomposition-report: the page of a finished run of decompose again, and what it says of one that is none."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import pytest

from jax_interp.core import config_json as configs
from jax_interp.core.errors import UserError
from jax_interp.dashboards.feature_data import FeatureData
from jax_interp.data.text import text_for
from jax_interp.decomposition import DecompositionConfig, Trained
from jax_interp.decomposition.importance import ScalarMLP
from jax_interp.decomposition.storage import save_decomposition
from jax_interp.decomposition.train import initial_decomposition
from jax_interp.models import load, save
from jax_interp.recipes.decomposition import DecompositionRunConfig
from jax_interp.recipes.feature_page import FeaturePageConfig
from jax_interp.recipes.run_inputs import fingerprint, same_inputs

ERROR = {"stochastic": 0.2, "ci": 0.3, "unmasked": 0.1, "zero": 1.0}
EVALUATION = {
    "target": "tiny", "source": "", "relative_faithfulness": 0.1, "error": ERROR, "error_unrecovered": ERROR,
    "pgd": {"5": 0.5}, "spectrum": {"blocks.*.mlp.up": [[0.5, 0.1]]}, "l0": {}, "alive": {}, "linearity": [],
}  # fmt: skip


@pytest.fixture
def finished(tmp_path, model, text):
    """The directory of a run, its decomposition as it was drawn."""
    settings = DecompositionConfig(("blocks.*.mlp.up",), C=6, importance=ScalarMLP(2), batch=2, steps=1)
    config = DecompositionRunConfig(settings, target=str(model), text=str(text), context=16, evaluate_rows=4)

    @jax.jit
    def drawn(target):
        parts = initial_decomposition(settings, target)
        return Trained(parts, settings.importance.init(jax.random.key(0), parts), settings.sigmoid)

    run = tmp_path / "run"
    run.mkdir()
    save_decomposition(run / "decomposition.safetensors", drawn(load(str(model))[0]), settings)
    (run / "config.json").write_text(configs.dumps(config))
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    return run


def test_the_page_of_components_shows_those_with_the_largest_importance(finished, command):
    code, _, err = command("decomposition-report", finished)
    assert (code, err) == (0, "")
    assert 'href="components.html"' in (finished / "report.html").read_text()
    page, data = (finished / "components.html").read_text(), FeatureData.read(finished / "components")
    assert "Components of" in page
    assert data.name == "component"
    assert 1 <= len(data.units) <= 2 * 6, "two matrices of six components"
    assert (data.max_activation[data.firings > 0] > 0.1).all(), "an importance above the threshold"
    config = configs.load(DecompositionRunConfig, finished)
    smaller = dataclasses.replace(config, page=FeaturePageConfig(features=0))
    (finished / "components.html").unlink()
    (finished / "config.json").write_text(configs.dumps(smaller))
    assert command("decomposition-report", finished)[0] == 0
    assert "components.html" not in (finished / "report.html").read_text()
    assert not (finished / "components.html").exists()


def test_a_finished_run(finished, command):
    code, out, err = command("decomposition-report", finished, "--components", 2, "--windows", 3, "--sequences", 4)
    assert (code, err) == (0, "")
    assert out == f"written to {finished / 'report.html'}\n"
    page = (finished / "report.html").read_text()
    cards = re.findall(r'id="blocks\.(\d)\.mlp\.up\.(\d)"', page)
    assert [layer for layer, _ in cards] == ["0", "0", "1", "1"]
    assert len(set(cards)) == 4
    assert 0 < page.count('class="t peak"') <= 4 * 3
    assert 50 < int(re.search(r"on (\d+) tokens of held-out text", page)[1]) <= 4 * 16, "special ones do not count"


def test_other_weights_and_text_are_another_run(finished, command, model, text, tmp_path):
    """V and U fit any target of the same shapes; a run says which it is of, and its page is of that."""
    loaded, tokenizer = load(str(model))
    other = jax.tree.map(lambda leaf: leaf + 1 if leaf.ndim > 1 else leaf, loaded)
    words = text_for(str(text), tokenizer)
    same_inputs(finished, fingerprint(loaded, words))
    same_inputs(finished, fingerprint(loaded, words))
    with pytest.raises(UserError, match="begun with other weights"):
        same_inputs(finished, fingerprint(other, words))
    elsewhere = save(other, tmp_path / "other", tokenizer=tokenizer)
    config = dataclasses.replace(configs.load(DecompositionRunConfig, finished), target=str(elsewhere))
    (finished / "config.json").write_text(configs.dumps(config))
    code, out, err = command("decomposition-report", finished)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "was begun with other weights (" in err
    code, out, err = command("decompose", finished, "--quiet")
    assert code == 2
    assert "was begun with other weights (" in err


def test_what_is_no_finished_run(finished, command, tmp_path):
    def refused(*argv):
        code, out, err = command("decomposition-report", *argv)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err

    assert f"no directory {tmp_path / 'none'}" in refused(tmp_path / "none")
    assert "holds no run" in refused(tmp_path)
    assert "windows must be at least 1, not 0" in refused(finished, "--windows", "0")
    (finished / "evaluation.json").write_text("{")
    assert "evaluation.json is not JSON" in refused(finished)
    (finished / "evaluation.json").write_text('{"target": "tms:5-2", "source": ""}')
    assert "evaluation.json has no " in (err := refused(finished))
    assert "relative_faithfulness, error, " in err
    (finished / "evaluation.json").unlink()
    err = refused(finished)
    assert "has not finished: it has no evaluation.json" in err
    assert f"`jax-interp decompose {finished}` resumes it" in err
    (finished / "config.json").write_text('{"type": "DictionaryRunConfig"}')
    assert "config is a DictionaryRunConfig, not a DecompositionRunConfig" in refused(finished)
