"""LDA and the whitened mass-mean probe beside scikit-learn's `LinearDiscriminantAnalysis`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.probes import LDA, PCA, MassMean
from jax_interp.probes.kind import Rows

pytestmark = pytest.mark.parity
KEY = jax.random.key(0)


def planted(n: int, d: int, seed: int):
    """Classes of unequal size; the last column is constant."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(np.int32)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * np.geomspace(0.2, 5, d) + y[:, None] * rng.normal(size=d)
    x[:, -1] = 2.5
    return x.astype(np.float32), y


@pytest.mark.parametrize(("n", "d"), [(500, 12), (60, 90)])
@pytest.mark.parametrize("shrinkage", ["auto", 0.05, 0.5, 1.0])
@pytest.mark.parametrize("solver", ["lsqr", "eigen"])
def test_lda(n, d, shrinkage, solver):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, y = planted(n, d, seed=d)
    theirs = LinearDiscriminantAnalysis(solver=solver, shrinkage=shrinkage).fit(x.astype(np.float64), y)
    strength = None if shrinkage == "auto" else jnp.asarray(shrinkage, jnp.float32)
    kind = LDA() if shrinkage == "auto" else LDA((shrinkage,))
    probe = kind.fit(Rows(jnp.asarray(x), jnp.asarray(y), jnp.ones(n)), strength, KEY)
    coef = theirs.coef_[0]
    np.testing.assert_allclose(probe.weight, coef, rtol=1e-3, atol=1e-3 * np.abs(coef).max())
    expected = theirs.decision_function(x)
    np.testing.assert_allclose(probe.score(jnp.asarray(x)), expected, atol=2e-3 * np.abs(expected).max())


def test_mass_mean_with_covariance_is_lda_without_shrinkage_and_with_equal_priors():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, y = planted(500, 12, seed=0)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.5, 0.5]).fit(x[:, :-1].astype(np.float64), y)
    weights = np.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean()))  # the covariance of equal priors
    data = Rows(jnp.asarray(x), jnp.asarray(y), jnp.asarray(weights, jnp.float32))
    probe = MassMean(covariance=True).fit(data, None, KEY)
    np.testing.assert_allclose(probe.score(jnp.asarray(x)), theirs.decision_function(x[:, :-1]), rtol=2e-3, atol=2e-3)


def test_pca():
    from sklearn.decomposition import PCA as Theirs

    x, y = planted(400, 20, seed=1)
    component = Theirs(1, svd_solver="full").fit(x.astype(np.float64)).components_[0]
    probe = PCA().fit(Rows(jnp.asarray(x), jnp.asarray(y), jnp.ones(400)), None, KEY)
    assert abs(float(probe.weight @ component.astype(np.float32))) > 1 - 1e-5
