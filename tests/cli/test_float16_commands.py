"""Every command runs a model whose files are float16, as many published ones are, on a CPU too."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jax_interp.core import config_json as configs
from jax_interp.decomposition import DecompositionConfig
from jax_interp.decomposition.importance import GlobalTransformer
from jax_interp.models import load, save
from jax_interp.recipes.decomposition import DecompositionRunConfig


@pytest.fixture(scope="module")
def float16(model, tmp_path_factory):
    """The tiny model, saved as float16."""
    loaded, tokenizer = load(model)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), loaded)
    return save(narrow, tmp_path_factory.mktemp("models") / "float16", tokenizer=tokenizer)


def test_the_file_keeps_its_dtype(float16):
    assert {leaf.dtype for leaf in jax.tree.leaves(load(float16)[0])} == {jnp.dtype(jnp.float16)}


def test_generate(command, float16):
    code, out, err = command("generate", "def push(", "--model", float16, "--dtype", "float16", "--max-tokens", 4)
    assert (code, err) == (0, "")
    assert out.startswith("def push(")


def test_train_dictionary_and_evaluate(command, float16, run_config, tmp_path):
    config = dataclasses.replace(run_config, model=str(float16), dtype="float16")
    (tmp_path / "run.json").write_text(configs.dumps(config))
    code, _, err = command("train-dictionary", tmp_path / "run.json", "--run-dir", tmp_path / "run", "--quiet")
    assert code == 0, err
    code, out, err = command("evaluate", tmp_path / "run")
    assert code == 0, err
    assert "FVU" in out


@pytest.mark.slow
def test_decompose(command, float16, text, tmp_path):
    importance = GlobalTransformer(d_model=16, blocks=1, heads=2, d_mlp=32)
    settings = DecompositionConfig(("blocks.*.mlp.up",), C=4, importance=importance, batch=4, steps=2)
    config = DecompositionRunConfig(
        settings, target=str(float16), text=str(text), context=16, evaluate_rows=8, linearity_rows=4
    )
    (tmp_path / "run.json").write_text(configs.dumps(config))
    code, _, err = command("decompose", tmp_path / "run.json", "--run-dir", tmp_path / "run", "--quiet")
    assert code == 0, err
