"""dashboard, and the page that train-dictionary and evaluate leave: what is on it is what the model computes."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core import config_json as configs
from jax_interp.dashboards.feature_data import FeatureData
from jax_interp.dashboards.neuronpedia_files import read_neuronpedia
from jax_interp.data.harvest import harvest
from jax_interp.data.text import text_for
from jax_interp.dictionaries import Adam, variants
from jax_interp.dictionaries.loading import load_dictionary
from jax_interp.models.hf import load
from jax_interp.recipes.feature_page import FeaturePageConfig, choose
from jax_interp.views.feature_page import Prompt

BLOCK = re.compile(r'<script type="application/octet-stream" id="([^"]+)">([^<]*)</script>')


class Page:
    """The content of a page, read from its file without a browser."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8")
        blocks = {name: zlib.decompress(base64.b64decode(packed)) for name, packed in BLOCK.findall(self.text)}
        self.header: dict[str, Any] = json.loads(blocks.pop("header"))
        self._blocks = blocks

    def array(self, name: str) -> np.ndarray:
        about = self.header["arrays"][name]
        dtype = np.dtype(about["dtype"])
        parts = [self._blocks[f"{name}/{i}"] for i in range(about["blocks"])]
        numbers = [np.frombuffer(p, np.uint8).reshape(dtype.itemsize, -1).T.tobytes() for p in parts]
        return np.frombuffer(b"".join(numbers), dtype).reshape(about["shape"])

    def tokens(self, name: str) -> list[str]:
        return [self.header["strings"][i] for i in self.array(name).reshape(-1)]


@pytest.fixture(scope="module")
def run_config(run_config):
    """The tiny run, with a page."""
    return dataclasses.replace(run_config, page=FeaturePageConfig())


@pytest.fixture(scope="module")
def run_json(run_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny.json"
    path.write_text(configs.dumps(run_config))
    return path


@pytest.fixture(scope="module")
def trained(run_json, tmp_path_factory):
    from jax_interp.cli.main import main

    directory = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train-dictionary", str(run_json), "--run-dir", str(directory), "--quiet"]) == 0
    return directory


def test_a_run_leaves_the_page_of_all_its_features(trained, run_config):
    page, data = Page(trained / "features.html"), FeatureData.read(trained / "features")
    assert page.array("features").tolist() == data.units.tolist() == list(range(32))
    np.testing.assert_allclose(page.array("density"), data.density.astype(np.float32))
    assert page.header["prompts"] == run_config.page.passages
    assert 'href="features.html"' in (trained / "report.html").read_text()
    assert not (trained / "features" / "pass").exists(), "a finished pass leaves no state"


def test_density_and_prompts_are_what_the_dictionary_computes(trained, run_config, command, tmp_path):
    prompts = ("class Queue:", "def push")
    export = ("--neuronpedia", tmp_path / "export", "--source-set", "mine")
    shown = ("--features", 3, 17, 4, "--tokens", 256, "--prompts", *prompts, *export)
    shown += ("--loss-examples", 1, "--token-examples", 1)
    code, out, err = command("dashboard", trained, *shown, "--quiet")
    assert code == 0, err
    assert "3 features, " in out
    model, tokenizer = load(run_config.model)
    sae = load_dictionary(trained / "dictionary").dictionary
    encoded = lambda tokens: np.asarray(sae.encode(harvest(model, "blocks.1.resid_pre", jnp.asarray(tokens))))
    page = Page(trained / "features.html")
    batches = text_for(run_config.text, tokenizer).validation_batches(2, 32, 8)
    kept = np.concatenate([np.asarray(encoded(t))[np.asarray(k).reshape(-1)] for t, k in batches])
    assert page.array("features").tolist() == [3, 17, 4]
    np.testing.assert_allclose(page.array("density"), (kept[:, [3, 17, 4]] > 0).mean(0), rtol=1e-6)
    exported = read_neuronpedia(tmp_path / "export")
    assert sorted(exported.data.units) == [3, 4, 17]
    names = ["activation", "effect of the token on the feature", "effect on the loss"]
    assert page.header["examples"][0]["values"] == names
    assert np.isfinite(page.array("example0.values1")[:, 0].astype(float)).all(), "the first example is measured"
    assert page.header["prompts"] == 2 + 3, "two prompts, three held-out texts"
    for i, text in enumerate(prompts):
        ids = tokenizer.encode(text, bos=tokenizer.bos_id is not None)
        latents = encoded([ids])
        assert page.tokens(f"prompt{i}.tokens") == tokenizer.strings(ids)
        ends = page.array(f"prompt{i}.ends")
        units, scores = page.array(f"prompt{i}.features"), page.array(f"prompt{i}.scores")
        for place, row in enumerate(latents):
            span = slice(ends[place - 1] if place else 0, ends[place])
            assert units[span].tolist() == np.flatnonzero(row).tolist()
            np.testing.assert_allclose(scores[span], row[row > 0], rtol=1e-4)


def test_evaluate_writes_the_page_again_and_can_leave_it_out(trained, command):
    (trained / "features.html").unlink(missing_ok=True)
    assert command("evaluate", trained, "--features", 0)[0] == 0
    assert not (trained / "features.html").exists()
    code, out, err = command("evaluate", trained, "--features", 5)
    assert code == 0, err
    assert str(trained / "features.html") in out
    assert len(Page(trained / "features.html").array("features")) == 5


def test_a_run_without_a_page(run_json, command, tmp_path):
    where = ("--run-dir", tmp_path / "run")
    code, out, err = command("train-dictionary", run_json, *where, "--page.features", 0, "--quiet")
    assert code == 0, err
    assert "features.html" not in out + (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / "features.html").exists()


@pytest.mark.slow
def test_a_cross_layer_dictionary_names_the_source_of_each_latent(run_config, command, tmp_path):
    reads, writes = ("blocks.0.ln2.normalized", "blocks.1.ln2.normalized"), ("blocks.0.mlp_out", "blocks.1.mlp_out")
    small = {"k": 4, "n_features": 32, "steps": 4, "optimizer": Adam(warmup=2), "buffer": 256, "dead_after": 400}
    config = dataclasses.replace(run_config, dictionary=variants.batch_topk_cross_layer(reads, writes, **small))
    (tmp_path / "clt.json").write_text(configs.dumps(config))
    code, _, err = command("train-dictionary", tmp_path / "clt.json", "--run-dir", tmp_path / "run", "--quiet")
    assert code == 0, err
    page = Page(tmp_path / "run" / "features.html")
    assert page.array("features").tolist() == list(range(64))
    assert page.header["names"]["33"] == "blocks.1.ln2.normalized 1"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--features", 32], "give units from 0 to 31"),
        (["--features", 3, 3], "different indices"),
        (["--prompts", ""], "a prompt is empty"),
        (["--count", 0], "shows nothing"),
        (["--examples", 1, "--token-examples", 2], "at most this number of examples"),
        (["--tokens", 0], "tokens=0 must be at least 1"),
    ],
)
def test_what_cannot_be_shown_is_refused(trained, command, arguments, says):
    code, _, err = command("dashboard", trained, *arguments, "--quiet")
    assert code == 2
    assert says in err


def test_a_source_without_a_directory_needs_one(command):
    for source in (["gemma-scope-2b-pt-res", "layer_5/width_16k/average_l0_68"], ["hf:owner/repository"]):
        code, _, err = command("dashboard", *source)
        assert code == 2
        assert "--out" in err


def test_a_mistyped_source_is_named(command, tmp_path):
    for source in (str(tmp_path / "nowhere"), "some-release"):
        code, _, err = command("dashboard", source)
        assert code == 2
        assert f"there is no file or folder {source!r}" in err


def test_half_of_a_page_is_chosen_by_the_prompts():
    prompt = Prompt(np.arange(2), [np.array([90, 91]), np.array([92])], [np.array([1.0, -5.0]), np.array([3.0])])
    chosen = choose(100, 4, [prompt])
    assert {91, 92} <= set(chosen)
    assert len(set(chosen)) == 4
    assert choose(100, 10, [])[0] == 0
    assert np.ptp(np.diff(choose(100, 10, []))) == 0, "evenly spaced"
    assert choose(3, 10, [prompt]) == (0, 1, 2)
    with pytest.raises(Exception, match="at least 0"):
        FeaturePageConfig(features=-1)
