"""Rescaling latents: the closed forms against least squares on the written-out design matrix."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations import ReLU
from jax_interp.dictionaries.evaluation.controls import refit
from jax_interp.dictionaries.evaluation.evaluate import evaluate_rows
from jax_interp.dictionaries.forms import Dictionary
from jax_interp.dictionaries.training.rescaling import global_scale, latent_scales, rescaled

RNG = np.random.default_rng(0)
D = RNG.standard_normal((9, 6))
B = RNG.standard_normal(6)
CODES = np.where(RNG.random((400, 9)) < 0.3, RNG.uniform(0.5, 2, (400, 9)), 0)
CODES[:, 8] = 0  # never fires
X = CODES @ D + B + 0.1 * RNG.standard_normal((400, 6))
ROWS = [jnp.asarray(part, jnp.float32) for part in np.array_split(X, 4)]


def shrunk_dictionary(factor=1.0):
    """A ReLU dictionary with a threshold: latents that fire come out too small."""
    W_enc = np.linalg.pinv(D)
    b_enc = -(B @ W_enc) - 0.2
    arrays = (jnp.asarray(a, jnp.float32) for a in (W_enc * factor, b_enc * factor, D, B))
    return Dictionary(*arrays, activation=ReLU(), centred=False)


def figures(dictionary, rows=ROWS):
    return evaluate_rows(dictionary, rows).reconstruction


def test_scales_equal_least_squares_on_the_design():
    sae = shrunk_dictionary()
    z = np.asarray(sae.encode(jnp.asarray(X, jnp.float32)), np.float64)
    design = np.einsum("nf,fd->ndf", z, D).reshape(-1, 9)
    want = np.linalg.lstsq(design, (X - B).reshape(-1), rcond=None)[0]
    scale = latent_scales(sae, iter(ROWS), ridge=1e-10, nonnegative=False)
    fires = (z > 0).any(0)
    np.testing.assert_allclose(scale[fires], want[fires], rtol=1e-3, atol=1e-4)
    before, after = figures(sae), figures(rescaled(sae, scale))
    assert before.l0 == after.l0
    residual = X - B - np.einsum("nf,fd->nd", z * np.where(fires, want, 1), D)
    np.testing.assert_allclose(after.sse, (residual**2).sum(1).mean(), rtol=1e-4)
    assert after.sse < before.sse
    constrained = latent_scales(sae, ROWS, ridge=1e-10)
    np.testing.assert_allclose(constrained[fires], nnls(design, (X - B).reshape(-1))[0][fires], rtol=1e-3, atol=1e-4)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class HalfOfTheTruth:
    """Rows carry x, then the codes: encode reads off half of those."""

    W_dec: jax.Array
    b_dec: jax.Array

    def encode(self, rows):
        return 0.5 * rows[:, 6:]


def test_a_halved_code_is_doubled_and_a_dead_latent_left_alone():
    rows = jnp.asarray(np.concatenate([CODES @ D + B, CODES], axis=1), jnp.float32)
    padded = np.pad(D, ((0, 0), (0, 9))), np.concatenate([B, np.zeros(9)])
    halved = HalfOfTheTruth(*(jnp.asarray(a, jnp.float32) for a in padded))
    # the last nine columns are no part of what is reconstructed: their directions are 0
    scale = latent_scales(halved, [rows[:200], rows[200:]])
    np.testing.assert_allclose(scale[:8], 2, rtol=1e-3)
    assert scale[8] == pytest.approx(1)
    assert global_scale(halved, [rows]) == pytest.approx(2, rel=1e-4)


def test_the_global_scale_is_one_over_gamma():
    sae = shrunk_dictionary()
    centred = dataclasses.replace(sae, b_enc=sae.b_enc + sae.b_dec @ sae.W_enc, b_dec=jnp.zeros(6))
    rows = [r - jnp.asarray(B, jnp.float32)[None] for r in ROWS]
    gamma = figures(centred, rows).gamma
    assert gamma < 0.95
    assert global_scale(centred, rows) == pytest.approx(1 / gamma, rel=1e-5)
    assert global_scale(sae, ROWS) == pytest.approx(1 / gamma, rel=1e-4)
    assert figures(rescaled(centred, global_scale(centred, rows)), rows).gamma == pytest.approx(1, rel=1e-5)


def test_a_skip_stays_and_is_nothing_to_fit_scales_to():
    skip = dataclasses.replace(shrunk_dictionary(), W_skip=jnp.eye(6))
    z = skip.encode(ROWS[0])
    np.testing.assert_allclose(rescaled(skip, 1.0).output(ROWS[0], z), skip(ROWS[0]), rtol=1e-5)
    for fit in (global_scale, latent_scales):
        with pytest.raises(UserError, match="writes another value"):
            fit(skip, ROWS)
    with pytest.raises(UserError, match=r"a decoder can be fitted for an SAE.* writes another value"):
        refit(skip, ROWS)
