"""Orthogonalised weights are ablation at every write, in float64, for the families; the stream has no such part."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import config_of
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.models import load, save
from jax_interp.models.sharding import rules
from jax_interp.steering.applying import orthogonalised, writes_of
from jax_interp.surgery import ProjectOut, at, call, edit, read, replan
from jax_interp.training.sharding import make_mesh, shard, shard_batch

TOKENS = np.random.default_rng(0).integers(0, 61, (3, 6)).astype(np.int32)
STREAM = ("blocks.*.resid_pre", "blocks.*.resid_post")
slow = lambda *cases: [pytest.param(case, marks=pytest.mark.slow) for case in cases]


def compared(config, directions: np.ndarray) -> None:
    """The two models in float64, and the parts of the stream."""
    with jax.enable_x64():
        model = peaky(config, dtype=jnp.float64)
        before = jax.tree.map(np.asarray, model)
        r = jnp.asarray(directions, jnp.float64)
        new = orthogonalised(model, r)
        logits, acts = jax.jit(read(new, *STREAM))(TOKENS)
        expected = jax.jit(edit(model, at(writes_of(model), ProjectOut(r))))(TOKENS)
        changed = jax.jit(model)(TOKENS)
        size = float(jnp.max(jnp.abs(expected)))
        np.testing.assert_allclose(logits, expected, atol=2e-12 * size)
        assert float(jnp.max(jnp.abs(changed - expected))) > 1e-3 * size
        for name in STREAM:
            part = np.asarray(acts[name]) @ (directions / np.linalg.norm(directions, axis=-1, keepdims=True)).T
            assert np.abs(part).max() < 1e-13 * np.abs(np.asarray(acts[name])).max() * config.d_model
        assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), before, model))


@pytest.mark.parametrize(
    "case",
    ["GPT-2", *slow("GPT-J", "Mixtral", "GPT-Neo", "GPT-NeoX, Pythia", "GPT-NeoX, sequential, tied", "OPT", "Llama",
     "Llama, multi-query, tied", "Llama, linear, biases, odd heads", "Qwen 2", "Qwen 3", "Phi-2", "Phi-3", "Gemma",
     "StableLM, parallel", "TransformerLens, attention only", "TransformerLens, SoLU")],
)  # fmt: skip
def test_it_is_ablation_at_every_write(case):
    config = config_of(case)
    compared(config, np.random.default_rng(1).standard_normal(config.d_model))


@pytest.mark.slow
def test_several_directions_that_are_not_orthogonal():
    compared(dataclasses.replace(LLAMA_LIKE, n_layers=2), np.random.default_rng(2).standard_normal((3, 32)))


@pytest.mark.parametrize("case", ["Gemma 2", "Gemma 3", "OLMo 2"])
def test_norms_after_a_write_are_refused(case):
    config = config_of(case)
    with pytest.raises(UserError, match="norms after attention and MLP"):
        orthogonalised(jax.eval_shape(lambda: peaky(config)), jnp.ones(config.d_model))


@pytest.fixture(scope="module")
def model():
    return peaky(GPT2_LIKE)


R = jnp.asarray(np.random.default_rng(3).standard_normal(32), jnp.float32)


@pytest.mark.slow
def test_a_file_keeps_every_bit(model, tmp_path):
    expected = call(orthogonalised(model, R), TOKENS)
    save(orthogonalised(model, R), tmp_path / "m")  # untied
    np.testing.assert_array_equal(call(load(tmp_path / "m")[0], TOKENS), expected)


@pytest.mark.slow
def test_layouts_and_meshes_change_nothing(model):
    expected = call(orthogonalised(model, R), TOKENS)
    np.testing.assert_allclose(call(orthogonalised(replan(model, "*"), R), TOKENS), expected, atol=1e-4)
    mesh = make_mesh(data=2, tensor=2, explicit=True)
    with jax.set_mesh(mesh):
        there = orthogonalised(shard(model, rules(model.config), mesh), R)
        found = call(there, shard_batch(TOKENS[:2], mesh))
    np.testing.assert_allclose(jax.device_get(found), expected[:2], atol=1e-4)


def test_half_precision_is_rounded_once(model):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), model)
    new, wide = orthogonalised(half, R), orthogonalised(jax.tree.map(lambda a: a.astype(jnp.float32), half), R)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(wide), strict=True):
        np.testing.assert_array_equal(a, b.astype(jnp.bfloat16))


def test_directions_that_are_none_are_refused(model):
    for wrong in (jnp.zeros(32), jnp.full(32, jnp.nan), jnp.ones(31), jnp.ones((2, 32)), jnp.ones((2, 2, 32))):
        with pytest.raises(UserError, match="direction"):
            orthogonalised(model, wrong)
    with pytest.raises(UserError, match="takes a Decoder"):
        orthogonalised(edit(model, at("embed", ProjectOut(R))), R)
