"""Kinds with a closed form, against the formula in float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.probes import LAT, LDA, PCA, MassMean
from jax_interp.probes.kind import PairRows, Rows

KEY = jax.random.key(0)


def planted(n: int, d: int, seed: int = 0, offset: float = 3.0):
    """Two classes of unequal size with correlated columns of very different scales, and weights 0, 1 and 2."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.35).astype(np.int32)
    mix = rng.normal(size=(d, d)) / d**0.5 + np.eye(d)
    x = rng.normal(size=(n, d)) @ mix * np.geomspace(0.1, 30, d) + y[:, None] * rng.normal(size=d) + offset
    weight = rng.integers(0, 3, n).astype(np.float32)
    return x.astype(np.float32), y, weight


def copies(x, y, weight):
    """The rows in float64, each as often as its weight says."""
    again = np.repeat(np.arange(len(y)), weight.astype(int))
    return x[again].astype(np.float64), y[again]


def cosine(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def within(x, y):
    """(class means, the covariance around them)"""
    means = np.stack([x[y == c].mean(0) for c in (0, 1)])
    centred = x - means[y]
    return means, centred.T @ centred / len(x)


def test_mass_mean_is_the_difference_of_the_class_means():
    x, y, weight = planted(300, 12)
    probe = MassMean().fit(Rows(jnp.asarray(x), jnp.asarray(y), jnp.asarray(weight)), None, KEY)
    means, _ = within(*copies(x, y, weight))
    np.testing.assert_allclose(probe.weight, means[1] - means[0], rtol=1e-4, atol=1e-4)
    at_the_middle = probe.score(jnp.asarray(means.mean(0), jnp.float32))
    np.testing.assert_allclose(at_the_middle, 0.0, atol=1e-3)


@pytest.mark.parametrize("n", [400, 20])
def test_mass_mean_with_the_covariance_is_its_inverse_times_the_difference(n):
    d = 24
    x, y, weight = planted(n, d)
    probe = MassMean(covariance=True).fit(Rows(jnp.asarray(x), jnp.asarray(y), jnp.asarray(weight)), None, KEY)
    means, covariance = within(*copies(x, y, weight))
    sd = np.sqrt(np.diag(covariance))  # where rows are few, "the" pseudo-inverse is that of columns of variance 1
    inverse = np.linalg.pinv(covariance / np.outer(sd, sd), hermitian=True, rcond=1e-5) / np.outer(sd, sd)
    expected = inverse @ (means[1] - means[0])
    np.testing.assert_allclose(probe.weight, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    assert probe.log_odds


def test_lda_is_the_log_odds_of_two_normal_distributions():
    x, y, weight = planted(300, 10)
    data = Rows(jnp.asarray(x), jnp.asarray(y), jnp.asarray(weight))
    rows, labels = copies(x, y, weight)
    means, S = within(rows, labels)
    for s in (0.01, 0.3, 1.0):
        probe = LDA((s,)).fit(data, jnp.asarray(s, jnp.float32), KEY)
        inverse = np.linalg.inv((1 - s) * S + s * np.trace(S) / len(S) * np.eye(len(S)))
        quadratic = [np.einsum("nd,de,ne->n", x - mean, inverse, x - mean) for mean in means]
        prior = np.log(labels.mean() / (1 - labels.mean()))
        np.testing.assert_allclose(probe.score(jnp.asarray(x)), (quadratic[0] - quadratic[1]) / 2 + prior, atol=2e-3)


@pytest.mark.parametrize(("n", "d"), [(200, 8), (12, 40)])
def test_pca_and_lat_are_the_first_singular_vectors(n, d):
    x, y, weight = planted(n, d, offset=0.5)
    probe = PCA().fit(Rows(jnp.asarray(x), jnp.asarray(y), jnp.asarray(weight)), None, KEY)
    rows, labels = copies(x, y, weight)
    expected = np.linalg.svd(rows - rows.mean(0))[2][0]
    assert abs(cosine(probe.weight, expected)) > 1 - 1e-5
    means = within(rows, labels)[0]
    assert (means[1] - means[0]) @ np.asarray(probe.weight) >= 0
    other = planted(n, d, seed=1)[0]
    pairs = PairRows(jnp.asarray(x), jnp.asarray(other), jnp.asarray(y), jnp.asarray(weight))
    lat = LAT().fit(pairs, None, KEY)
    differences = copies(x - other, y, weight)[0]
    assert abs(cosine(lat.weight, np.linalg.svd(differences)[2][0])) > 1 - 1e-5
    np.testing.assert_allclose(jnp.linalg.norm(lat.weight), 1.0, rtol=1e-5)


def test_a_constant_column_and_a_column_of_a_huge_scale_do_no_harm():
    x, y, weight = planted(300, 6)
    more = np.concatenate([x, np.full((300, 1), 1e4, np.float32), 1e6 * x[:, :1] ** 2], axis=1).astype(np.float32)
    fit = lambda x: MassMean(covariance=True).fit(Rows(jnp.asarray(x), jnp.asarray(y), jnp.asarray(weight)), None, KEY)
    constant, none = np.asarray(fit(more).weight), np.asarray(fit(np.delete(more, 6, axis=1)).weight)
    assert constant[6] == 0
    np.testing.assert_allclose(np.delete(constant, 6), none, rtol=1e-3)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="MassMean"):
        LDA((0.0, 0.5))
    with pytest.raises(UserError, match="tolerance"):
        MassMean(tolerance=0.0)
