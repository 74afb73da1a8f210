"""Spectral clusters, F ratios, kappa and mutual information against scikit-learn."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from oracle import run_oracle

from jax_interp.dashboards.interpretation import cohens_kappa
from jax_interp.dictionaries.evaluation import controls
from jax_interp.dictionaries.evaluation.evolution import co_activation
from jax_interp.dictionaries.evaluation.ravel import separation
from jax_interp.dictionaries.geometry import spectral_clusters

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(the arrays, what scikit-learn computes from them)"""
    folder, rng = tmp_path_factory.mktemp("sklearn"), np.random.default_rng(0)
    centres = rng.normal(size=(8, 32))
    W = centres[rng.integers(0, 8, 200)] + 0.8 * rng.normal(size=(200, 32))  # cosines of about .6 within a group
    z, classes = rng.normal(size=(80, 6)), rng.integers(0, 4, 80)
    a = rng.random(300) < 0.4
    b = np.where(rng.random(300) < 0.3, rng.random(300) < 0.5, a)
    given = {"W": W.astype(np.float32), "n": 8, "z": z + classes[:, None] * [0, 0.2, 0, 1, 0, 3], "classes": classes}
    given |= {"a": a, "b": b}
    np.savez(folder / "in.npz", **given)
    run_oracle("sae_probes", "sklearn_figures.py", folder / "in.npz", folder / "out.npz")
    return given, np.load(folder / "out.npz")


def test_spectral_clusters_are_the_same_partition(both):
    given, wanted = both
    found = spectral_clusters(jnp.asarray(given["W"]), given["n"])
    same = found[:, None] == found[None]
    np.testing.assert_array_equal(same, wanted["clusters"][:, None] == wanted["clusters"][None])


def test_figures_are_the_same(both):
    given, wanted = both
    np.testing.assert_allclose(separation(given["z"], given["classes"]), wanted["F"], rtol=1e-9)
    assert cohens_kappa(given["a"], given["b"]) == pytest.approx(float(wanted["kappa"]))
    one = controls.Basis(jnp.eye(1), jnp.zeros(1))
    rows = tuple(jnp.asarray(given[name], jnp.float32)[:, None] for name in "ab")
    information = co_activation(one, one, [rows]).mutual_information()[0, 0]
    assert information == pytest.approx(float(wanted["information"]))
