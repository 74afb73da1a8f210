"""Latent scaling: one least squares per latent and target, the answers of the two-model world, both norm formulas."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.diffing import classify, latent_scaling, norm_difference, relative_norms, truly_exclusive
from jax_interp.toys.synthetic.shrinkage import shrunk, two_models

RNG = np.random.default_rng(0)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Crosscoder:
    W_enc: jax.Array  # [site, d, feature]
    W_dec: jax.Array  # [feature, site, d]
    b_dec: jax.Array  # [site, d]

    def encode(self, h):
        return jax.nn.relu(jnp.einsum("nsd,sdf->nf", h, self.W_enc))

    def decode(self, f):
        return jnp.einsum("nf,fsd->nsd", f, self.W_dec) + self.b_dec[None]


@pytest.mark.parametrize("reference", [0, 1])
def test_beta_equals_least_squares(reference):
    arrays = (RNG.standard_normal(shape) for shape in ((2, 6, 5), (5, 2, 6), (2, 6)))
    crosscoder = Crosscoder(*(jnp.asarray(a, jnp.float32) for a in arrays))
    h = RNG.standard_normal((90, 2, 6))
    parts = (jnp.asarray(part, jnp.float32) for part in np.array_split(h, 3))
    scaling = latent_scaling(crosscoder, parts, reference)
    f = np.asarray(crosscoder.encode(jnp.asarray(h, jnp.float32)), np.float64)
    W, b = np.asarray(crosscoder.W_dec, np.float64), np.asarray(crosscoder.b_dec, np.float64)
    x_hat = np.einsum("nf,fsd->nsd", f, W) + b
    for j in range(5):
        design = np.outer(f[:, j], W[j, reference]).reshape(-1, 1)
        for site in range(2):
            without = x_hat[:, site] - np.outer(f[:, j], W[j, site])
            fit = lambda Y, design=design: np.linalg.lstsq(design, Y.reshape(-1), rcond=None)[0][0]
            np.testing.assert_allclose(scaling.beta_reconstruction[site, j], fit(x_hat[:, site]), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(scaling.beta_error[site, j], fit(h[:, site] - without), rtol=1e-4, atol=1e-5)
    other = 1 - reference
    positive = np.where(scaling.beta_error[reference] > 0, scaling.beta_error[reference], np.nan)
    np.testing.assert_allclose(scaling.nu_error, scaling.beta_error[other] / positive)
    assert not truly_exclusive(scaling)[np.isnan(positive)].any()


def test_complete_shrinkage_is_seen_through():
    """Trained with L1 of norms at λ = .8, a crosscoder has no model-1 decoder for a feature of strength (1, .3): by its
    norms exclusive to model 0, by ν^ε still there at about .3. The really exclusive feature has ν^ε = 0."""
    contributions = [(1, 1), (1, 0.3), (1, 0)]
    world = two_models(jax.random.key(0), contributions, d=8)
    u = np.asarray(world.directions[:, :8])  # the unit directions: every contribution to model 0 is 1
    learned = shrunk(contributions, 0.8, "l1")
    W_dec = jnp.asarray(learned[:, :, None] * u[:, None, :], jnp.float32)
    W_enc = jnp.stack([jnp.asarray(u.T), jnp.zeros((8, 3))])
    crosscoder = Crosscoder(W_enc, W_dec, jnp.zeros((2, 8)))
    position = relative_norms(W_dec)
    np.testing.assert_allclose(position, [0.5, 0, 0])
    np.testing.assert_array_equal(classify(position).only_0, [False, True, True])
    np.testing.assert_array_equal(classify(position).shared, [True, False, False])
    pairs = world.sample(jax.random.key(1), 500)[0].reshape(500, 2, 8)
    scaling = latent_scaling(crosscoder, [pairs], reference=0)
    np.testing.assert_allclose(scaling.nu_error, [1, 0.3, 0], atol=1e-5)
    np.testing.assert_allclose(scaling.nu_reconstruction, [1, 0, 0], atol=1e-5)
    np.testing.assert_array_equal(truly_exclusive(scaling), [False, False, True])
    # NaN for a latent that never fires, which is in no class
    silent = latent_scaling(crosscoder, [jnp.zeros((4, 2, 8))], reference=0)
    assert np.isnan(silent.nu_error).all()


def test_the_two_published_norm_formulas_are_not_the_same():
    norms = np.array([[1, 9], [1, 5], [1, 1], [5, 1], [2, 0], [0, 2]])
    W_dec = jnp.asarray(norms[:, :, None] * np.array([0.6, 0.8]), jnp.float32)
    np.testing.assert_allclose(relative_norms(W_dec), [0.9, 5 / 6, 0.5, 1 / 6, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(norm_difference(W_dec), [1 - 1 / 18, 0.9, 0.5, 0.1, 0, 1], rtol=1e-6)
    np.testing.assert_array_equal(relative_norms(W_dec.reshape(6, 4)), relative_norms(W_dec))  # side by side
    with pytest.raises(UserError, match=r"\[row, 2, d\]"):
        relative_norms(W_dec[:, :1])
