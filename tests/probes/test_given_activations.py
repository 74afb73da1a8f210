"""Arrays of activations as examples: each row alone, labels and groups as in texts, wrong shapes refused."""

from __future__ import annotations

import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.probes import MassMean, fit_probes, from_activations


def test_arrays_become_examples():
    x = np.random.default_rng(0).normal(size=(6, 4))
    vectors = from_activations({"a": x, "b": 2 * x}, [True, False] * 3, groups=["p", "p", "q", "q", "r", "r"])
    assert vectors.sites == ("a", "b")
    assert vectors.data.classes == ("False", "True")
    assert vectors.data.repeated == 0
    np.testing.assert_array_equal(vectors.data.groups, [0, 0, 1, 1, 2, 2])
    fitted = fit_probes(MassMean(), vectors)
    expected = x[::2].mean(0) - x[1::2].mean(0)
    for site, factor in (("a", 1), ("b", 2)):
        np.testing.assert_allclose(fitted.probe(site=site).direction(), factor * expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused():
    x = np.zeros((3, 2))
    for bad in (
        lambda: from_activations(x, [0, 1]),
        lambda: from_activations(x[0], [0, 1]),
        lambda: from_activations(x, [0, 1, None]),
        lambda: from_activations(x, [0, 1, 1], groups=["a"]),
        lambda: from_activations(x, [0, 1, 1], pairs=np.array([[0, 7]])),
    ):
        with pytest.raises(UserError):
            bad()
