"""Checkpoints of other tools: a stored head beside a flag, stale copies, weights that are not finite, wrong names."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CASES, config_of, family_of_case
from safetensors.numpy import load_file, save_file
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import flatten
from jax_interp.models import load
from jax_interp.models import save as save_with_digests
from jax_interp.models.hf.digests import DIGESTS
from jax_interp.surgery import read


def save(*arguments, **options):
    """A directory like one of another program, without digests."""
    directory = save_with_digests(*arguments, **options)
    (directory / DIGESTS).unlink()
    return directory


TIED = [case for case in CASES if config_of(case).tied_embedding]


def rewritten(directory, change, file="model.safetensors"):
    """Change the tensors of a file."""
    tensors = load_file(directory / file)
    change(tensors)
    save_file(tensors, directory / file, metadata={"format": "pt"})


def final(model, values):
    """The input of the unembedding, from the normalized stream."""
    norm, config = model.ln_final, model.config
    values = values * (norm.weight[...] + (1 if config.norm_offset else 0))[None, None]
    return values if config.norm == "rmsnorm" else values + norm.bias[...][None, None]


@pytest.mark.parametrize("case", ["GPT-2", "GPT-Neo", "OPT", "Gemma 2"])
def test_a_stored_head_is_used_whatever_the_flag_says(case, tmp_path, call):
    config, family = config_of(case), family_of_case(case)
    directory = save(peaky(config), tmp_path / "m", family=family.model_type)
    head = np.random.default_rng(1).standard_normal((config.vocab_size, config.d_model)).astype(np.float32)
    rewritten(directory, lambda tensors: tensors.update({f"{family.head}.weight": head}))
    model, _ = load(directory)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (2, 9)))
    logits, acts = call(read(model, "ln_final.normalized"), tokens)
    expected = final(model, acts["ln_final.normalized"]) @ head.T
    if cap := config.logit_softcap:
        expected = cap * jnp.tanh(expected / cap)
    np.testing.assert_allclose(logits, expected, atol=2e-4)
    back, _ = load(save(model, tmp_path / "again", family=family.model_type))
    np.testing.assert_array_equal(back.unembed.weight[...], head.T)


@pytest.mark.parametrize("case", TIED)
def test_every_family_that_ties_sees_whether_the_stored_head_is_another(case, tmp_path):
    config, family = config_of(case), family_of_case(case)
    directory = save(peaky(config), tmp_path / "m", family=family.model_type)
    embed = family.stored_name(family.tensors(config)["embed.weight"].name)
    rewritten(directory, lambda tensors: tensors.update({f"{family.head}.weight": tensors[embed].copy()}))
    assert load(directory)[0].config == config
    rewritten(directory, lambda tensors: tensors[f"{family.head}.weight"].__setitem__((3, 5), 0.25))
    assert not load(directory)[0].config.tied_embedding
    rewritten(directory, lambda tensors: tensors.update({f"{family.head}.weight": np.ones((3, 5), np.float32)}))
    with pytest.raises(UserError, match=r"is \[3, 5\] and should be"):
        load(directory)


def shards(tmp_path):
    directory = save(peaky(LLAMA_LIKE), tmp_path / "m", max_file_bytes=20_000)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    return directory, index["weight_map"]


def test_a_tensor_comes_from_the_file_that_the_index_names(tmp_path):
    directory, where = shards(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    for other in set(where.values()) - {where[name]}:
        rewritten(directory, lambda tensors: tensors.update({name: np.zeros((48, 32), np.float32)}), other)
    found, expected = flatten(load(directory)[0]), flatten(peaky(LLAMA_LIKE))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_tensors_that_no_index_names_are_refused(tmp_path):
    directory, where = shards(tmp_path)
    one = sorted(set(where.values()))[0]
    rewritten(directory, lambda tensors: tensors.update({"lm_head.bias": np.zeros(3, np.float32)}), one)
    with pytest.raises(UserError, match=r"has the tensor 'lm_head\.bias', which .* does not name"):
        load(directory)


def test_one_file_beside_an_index_of_others_is_refused(tmp_path):
    directory, _ = shards(tmp_path)
    save(peaky(LLAMA_LIKE, 1), tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(directory / "model.safetensors")
    with pytest.raises(UserError, match="one of the two is left over"):
        load(directory)


def test_one_tensor_under_two_names_is_refused(tmp_path):
    directory = save(peaky(GPT2_LIKE), tmp_path / "m")
    rewritten(directory, lambda tensors: tensors.update({"wte.weight": tensors["transformer.wte.weight"] + 1}))
    with pytest.raises(UserError, match=r"both '.*wte\.weight' and '.*wte\.weight'"):
        load(directory)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_that_are_not_finite_are_refused(tmp_path, value, dtype):
    directory = save(jax.tree.map(lambda leaf: leaf.astype(dtype), peaky(LLAMA_LIKE)), tmp_path / "m")
    rewritten(directory, lambda t: t["model.layers.1.mlp.down_proj.weight"].__setitem__((0, 0), value))
    with pytest.raises(UserError, match=r"NaN or infinite values in layers\.\{\}\.mlp\.down_proj\.weight"):
        load(directory)


def test_a_dtype_that_is_too_narrow_for_the_weights_is_refused(tmp_path):
    directory = save(jax.tree.map(lambda leaf: leaf * 1e6, peaky(LLAMA_LIKE)), tmp_path / "m")
    with pytest.raises(UserError, match="as float16"):
        load(directory, dtype="float16")


def test_names_with_typos(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="did you mean 'stdlib-small'"):
        load("stdlib-smal")
    directory = save(peaky(LLAMA_LIKE), tmp_path / "exported")
    with pytest.raises(UserError, match=r"there is no directory .*did you mean '.*exported'"):
        load(tmp_path / "exprted")
    with pytest.raises(UserError, match="is a file: load takes the directory"):
        load(directory / "config.json")
    for odd in ("\0", "x" * 5000, "a/b/c", "~nobody-has-this-name/model", ""):
        with pytest.raises(UserError):
            load(odd)
