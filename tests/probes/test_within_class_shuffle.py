"""The within-class shuffle keeps what it promises, and removes what it promises."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.probes import shuffle_within_classes

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    y = rng.integers(-1, 2, 900)
    x = rng.normal(size=(900, 5)) @ rng.normal(size=(5, 5)) + y[:, None] * np.arange(5)
    return x.astype(np.float32), y


def test_each_column_of_each_class_holds_the_same_numbers(rows):
    x, y = rows
    shuffled = np.asarray(shuffle_within_classes(KEY, jnp.asarray(x), jnp.asarray(y)))
    for label in np.unique(y):
        np.testing.assert_array_equal(np.sort(shuffled[y == label], axis=0), np.sort(x[y == label], axis=0))
    assert (shuffled != x).mean() > 0.95
    assert len(np.unique(np.argsort(shuffled, axis=0), axis=1).T) == 5  # columns are permuted independently


def test_correlations_within_a_class_are_gone(rows):
    x, y = rows
    shuffled = np.asarray(shuffle_within_classes(KEY, jnp.asarray(x), jnp.asarray(y)))
    off = lambda a: np.abs(np.corrcoef(a.T) - np.eye(5)).max()
    for label in np.unique(y):
        count = (y == label).sum()
        assert off(shuffled[y == label]) < 5 / count**0.5 < off(x[y == label])


def test_the_basis_is_the_one_that_was_asked_for(rows):
    x, y = rows
    Q = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0].astype(np.float32)
    shuffled = shuffle_within_classes(KEY, jnp.asarray(x), jnp.asarray(y), jnp.asarray(Q)) @ Q
    for label in np.unique(y):
        np.testing.assert_allclose(
            np.sort(shuffled[y == label], axis=0), np.sort(x[y == label] @ Q, axis=0), rtol=1e-4, atol=1e-4
        )
    with pytest.raises(UserError, match="not orthogonal"):
        shuffle_within_classes(KEY, jnp.asarray(x), jnp.asarray(y), 2 * jnp.eye(5))
    with pytest.raises(UserError, match="class of each row"):
        shuffle_within_classes(KEY, jnp.asarray(x), jnp.asarray(y[:5]))


def test_it_is_uniform_over_permutations():
    x = jnp.arange(3.0)[:, None]
    draw = jax.vmap(lambda key: shuffle_within_classes(key, x, jnp.zeros(3, jnp.int32))[:, 0])
    drawn = np.asarray(draw(jax.random.split(KEY, 3000)), int)
    counts = np.unique(drawn @ np.array([9, 3, 1]), return_counts=True)[1]
    assert counts.shape == (6,)
    assert np.abs(counts - 500).max() < 5 * (500 * 5 / 6) ** 0.5
