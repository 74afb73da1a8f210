"""Controls: each has a figure that is known, and `evaluate` takes all of them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.data.harvest import harvest
from jax_interp.dictionaries.activations import ReLU
from jax_interp.dictionaries.evaluation import controls
from jax_interp.dictionaries.evaluation.evaluate import evaluate, evaluate_rows
from jax_interp.dictionaries.forms import init_sae

RNG = np.random.default_rng(0)
X = RNG.standard_normal((600, 12)) @ np.diag(np.linspace(0.2, 2, 12)) @ RNG.standard_normal((12, 12)) + 5
ROWS = [jnp.asarray(part, jnp.float32) for part in np.array_split(X, 3)]


def figures(dictionary, x=None):
    return evaluate_rows(dictionary, ROWS if x is None else [x]).reconstruction


def test_principal_components_leave_the_smallest_eigenvalues():
    spectrum = np.linalg.eigvalsh(np.cov(X.T))[::-1]
    for k in (3, 12):
        got = figures(controls.principal_components(iter(ROWS), k))
        np.testing.assert_allclose(got.fvu, spectrum[k:].sum() / spectrum.sum(), atol=1e-5)
        assert got.l0 == k
    with pytest.raises(UserError, match="13 principal components of 12"):
        controls.principal_components(ROWS, 13)
    with pytest.raises(UserError, match="no rows"):
        controls.principal_components([], 2)


def test_refit_is_least_squares_with_a_bias():
    random = init_sae(jax.random.key(0), 12, 30, ReLU(), jnp.asarray(X.mean(0), jnp.float32))
    alive = jnp.asarray(np.arange(30) < 28, jnp.float32)
    random = dataclasses.replace(random, W_enc=random.W_enc * alive[None], b_enc=alive - 1)  # two that never fire
    fitted = controls.refit(random, iter(ROWS), ridge=1e-9)
    z = np.asarray(random.encode(jnp.asarray(X, jnp.float32)), np.float64)
    design = np.concatenate([z, np.ones((600, 1))], axis=1)
    W = np.linalg.lstsq(design, X, rcond=None)[0]
    sse = ((X - design @ W) ** 2).sum(1).mean()
    np.testing.assert_allclose(figures(fitted).sse, sse, rtol=1e-3)
    np.testing.assert_array_equal(fitted.W_dec[28:], 0)
    assert figures(fitted).fvu < figures(random).fvu
    np.testing.assert_array_equal(fitted.encode(ROWS[0]), random.encode(ROWS[0]))


def test_random_like_changes_directions_only():
    sae = init_sae(jax.random.key(0), 12, 40, ReLU(), jnp.ones(12))
    sae = dataclasses.replace(sae, W_enc=sae.W_enc * 2, W_dec=sae.W_dec * jnp.linspace(0.5, 2, 40)[:, None])
    other = controls.random_like(jax.random.key(1), sae)
    norm = lambda W: np.linalg.norm(np.asarray(W), axis=1)
    np.testing.assert_allclose(norm(other.W_dec), norm(sae.W_dec), rtol=1e-5)
    np.testing.assert_allclose(norm(other.W_enc.T), norm(sae.W_enc.T), rtol=1e-5)
    tied = np.einsum("fd,df->f", other.W_dec, other.W_enc) / norm(other.W_dec) / norm(other.W_enc.T)
    np.testing.assert_allclose(tied, 1, rtol=1e-5)
    assert np.abs(np.einsum("fd,fd->f", other.W_dec, sae.W_dec)).mean() < 0.5
    np.testing.assert_array_equal(other.b_enc, sae.b_enc)
    transcoder = dataclasses.replace(sae, W_dec=jnp.zeros((40, 7)), b_dec=jnp.zeros(7), centred=False)
    with pytest.raises(UserError, match="a control of its own"):
        controls.random_like(jax.random.key(1), transcoder)


def test_neurons_and_the_oracle_are_exact_where_they_can_be():
    sparse = np.zeros((50, 12))
    for row in sparse:
        row[RNG.choice(12, 3, replace=False)] = RNG.choice([-1, 1], 3) * RNG.uniform(1, 2, 3)
    got = figures(controls.neurons(12, 3), jnp.asarray(sparse, jnp.float32))
    assert (got.fvu, got.l0) == (0, 3)
    directions = np.linalg.qr(RNG.standard_normal((12, 12)))[0][:8] * 2.0
    codes = np.where(RNG.random((50, 8)) < 0.3, RNG.uniform(1, 2, (50, 8)), 0)
    oracle = controls.oracle(jnp.asarray(directions, jnp.float32), jnp.full(12, 3.0), 0.5)
    x = jnp.asarray(codes @ directions + 3, jnp.float32)
    np.testing.assert_allclose(oracle.encode(x), codes, atol=1e-5)
    np.testing.assert_allclose(oracle.decode(oracle.encode(x)), x, atol=1e-5)


def test_evaluate_takes_controls_and_ranks_them():
    model, address = toy(), "blocks.1.resid_post"
    batches = [batch_at(0)]
    tokens, keep = batches[0]
    rows = [harvest(model, address, tokens)[keep.reshape(-1)]]
    frozen = controls.frozen_random_encoder(jax.random.key(0), rows, 64, 4)
    result = evaluate(model, address, frozen, batches)
    assert result.reconstruction.fvu == pytest.approx(figures(frozen, rows[0]).fvu, rel=1e-3)
    assert result.reconstruction.fvu < figures(frozen.encoder, rows[0]).fvu
    assert 0 < result.cross_entropy.kl_score_mean < 1
