"""MELBO: closed forms for a linear model, invariants on a transformer, exact resume."""

from __future__ import annotations

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import linear, mapped
from small_models import GPT2_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.probes import LabelledTokens, Last
from jax_interp.steering.elicitation import Between, MelboConfig, melbo
from jax_interp.steering.elicitation.effects import between_on
from jax_interp.steering.elicitation.melbo import effect
from jax_interp.surgery import Add, at, edit, replan, values_at
from jax_interp.training import QUIET, Interrupted, SaveTo
from jax_interp.training.meshes import make_mesh

TO = Between("embed", "target")
CONFIG = dataclasses.replace(GPT2_LIKE, d_model=16, d_mlp=24, vocab_size=31)
INNER = Between("blocks.1.mlp_out", "blocks.2.resid_post", last=2)
PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8]]


@pytest.fixture(scope="module")
def model():
    return peaky(CONFIG)


def test_the_optimum_of_a_linear_model_is_its_top_singular_vector():
    """One prompt of one token, p = 2 and q = 1: R²σ₁². 174.06297 is the value of the reference computation."""
    J = np.random.default_rng(0).standard_normal((12, 16))
    _, sigma, V = np.linalg.svd(J)
    assert 4 * sigma[0] ** 2 == pytest.approx(174.06297, abs=1e-4)
    config = MelboConfig(TO, 2.0, vectors=4, steps=200, null=32)
    found = melbo(config, mapped(linear, J, d=16), [[1]], log=QUIET)
    np.testing.assert_allclose(found.scores, 4 * sigma[0] ** 2, rtol=1e-4)
    np.testing.assert_allclose(np.abs(found.vectors @ V[0]), 2, rtol=1e-4)
    assert (found.null < found.scores[0]).all()
    np.testing.assert_allclose(found.p_values(), 1 / 33)
    assert len(found.distinct()) <= 2  # one vector and its negative


@pytest.mark.parametrize("ascent", ["power", "amsgrad"])
def test_orthogonal_vectors_of_a_linear_model_are_its_singular_vectors_in_order(ascent):
    J = np.random.default_rng(0).standard_normal((12, 16))
    sigma = np.linalg.svd(J)[1]
    config = MelboConfig(TO, 2.0, 3, orthogonal=True, steps=400, ascent=ascent, learning_rate=0.02, null=0)
    found = melbo(config, mapped(linear, J, d=16), [[1]], log=QUIET)
    np.testing.assert_allclose(found.scores, 4 * sigma[:3] ** 2, rtol=2e-3)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, 4 * np.eye(3), atol=1e-4)


def test_the_objective_is_the_formula_on_the_last_tokens(model):
    """Computed from the whole model, prompt by prompt without padding."""
    theta = jnp.asarray(np.random.default_rng(1).standard_normal(16), jnp.float32)
    config, want = MelboConfig(INNER, 1.0, p=3.0, q=2.0), 0.0

    @jax.jit
    def change(tokens):
        of = lambda m: values_at(m, INNER.target)(tokens)[INNER.target][0, -2:]
        return of(edit(model, at(INNER.source, Add(theta)))) - of(model)

    for prompt in PROMPTS:
        want += np.sum(np.linalg.norm(change(jnp.asarray([prompt])), axis=-1) ** 3) ** 0.5
    prompts = between_on(INNER, model, PROMPTS, rows=4)
    np.testing.assert_allclose(jax.jit(effect, static_argnums=0)(config, model, prompts, theta), want, rtol=1e-4)


SEARCH = MelboConfig(INNER, 3.0, vectors=3, steps=4, null=16)


@pytest.fixture(scope="module")
def found(model):
    return melbo(SEARCH, model, PROMPTS, log=QUIET)


def test_vectors_have_more_effect_than_random_ones_and_are_steerings(model, found):
    np.testing.assert_allclose(jnp.linalg.norm(found.vectors, axis=1), 3, rtol=1e-5)
    assert (np.diff(found.scores) <= 0).all()
    assert (np.asarray(found.scores) > found.null.max()).all()
    (steer,) = found[0].edits()
    np.testing.assert_array_equal(steer.fn.vector, found.vectors[0])
    assert steer.address == INNER.source
    assert "16 random vectors" in str(found)


@pytest.mark.slow
def test_vectors_do_not_depend_on_how_many_are_run_at_once_nor_on_the_layout(model, found):
    apart = melbo(dataclasses.replace(SEARCH, at_once=1), replan(model, "*"), PROMPTS, log=QUIET)
    np.testing.assert_allclose(apart.scores, found.scores, rtol=1e-3)
    np.testing.assert_allclose(apart.null, found.null, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"data": 2}, {"fsdp": 2}, {"tensor": 2}], ids=str)
@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "automatic"])
def test_a_mesh_finds_what_one_device_finds(model, found, axes, explicit):
    """Three prompts on two rows: one row is filling."""
    on_mesh = melbo(SEARCH, model, PROMPTS, place=make_mesh(**axes, explicit=explicit), log=QUIET)
    np.testing.assert_allclose(on_mesh.scores, found.scores, rtol=1e-3)
    np.testing.assert_allclose(on_mesh.null, found.null, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("orthogonal", [True, False])
def test_a_run_is_resumed_bit_for_bit(model, tmp_path, orthogonal):
    config = dataclasses.replace(SEARCH, orthogonal=orthogonal, ascent="amsgrad")
    whole = melbo(config, model, PROMPTS, log=QUIET)

    def stop(record):
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    log = dataclasses.replace(QUIET, every=1, on_record=stop)
    with pytest.raises(Interrupted):
        melbo(config, model, PROMPTS, run=SaveTo(tmp_path, every=1), log=log)
    again = melbo(config, model, PROMPTS, run=SaveTo(tmp_path, every=1), log=QUIET)
    np.testing.assert_array_equal(again.vectors, whole.vectors)
    np.testing.assert_array_equal(again.scores, whole.scores)


@pytest.mark.slow
def test_padding_on_the_left_and_half_precision_find_the_same(model, found):
    """Rules of tokens and `last` read the same tokens; in bfloat16 scores agree as far as its rounding allows."""
    width = 6
    tokens = np.asarray([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS], np.int32)
    mask = np.arange(width)[None] >= width - np.asarray([[len(prompt)] for prompt in PROMPTS])
    data = LabelledTokens("left", tokens, mask, mask, np.zeros(3, np.int32), ("none", "some"))
    left = melbo(SEARCH, model, data, Last(2), log=QUIET)
    np.testing.assert_allclose(left.scores, found.scores, rtol=1e-3)
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention has no backward pass under strict promotion
        half = melbo(SEARCH, peaky(CONFIG, dtype=jnp.bfloat16), PROMPTS, log=QUIET)
    assert half.vectors.dtype == np.float32
    np.testing.assert_allclose(half.scores, found.scores, rtol=0.05)


def test_what_cannot_be_searched_is_refused(model):
    with pytest.raises(UserError, match="does not depend on"):
        melbo(MelboConfig(Between(INNER.target, INNER.source), 1.0), model, PROMPTS, log=QUIET)
    with pytest.raises(UserError, match="cannot be orthogonal"):
        melbo(MelboConfig(INNER, 1.0, vectors=17, orthogonal=True), model, PROMPTS, log=QUIET)
    with pytest.raises(UserError, match="names several layers"):
        Between("blocks.*.mlp_out", "blocks.2.resid_post")
    with pytest.raises(UserError, match=r"\[batch, pos, d\]"):
        melbo(MelboConfig(Between("blocks.0.attn.z", INNER.target), 1.0), model, PROMPTS, log=QUIET)
    with pytest.raises(UserError, match="no prompt"):
        melbo(MelboConfig(INNER, 1.0), model, [], log=QUIET)
    with pytest.raises(UserError, match="radius"):
        MelboConfig(INNER, float("nan"))
