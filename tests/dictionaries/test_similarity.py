"""Similarity of directions: by hand on a few rows, at chance level, and the exact assignment by trying all of them."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation.similarity import (
    cosines,
    fraction_found,
    match,
    max_cosine,
    mcc,
    mmcs,
    stability,
    uniqueness,
)

RNG = np.random.default_rng(0)


def unit(a):
    a = np.asarray(a, np.float64).reshape(len(a), -1)
    return a / np.linalg.norm(a, axis=1, keepdims=True)


def test_largest_cosines_in_blocks_equal_the_whole_table():
    a, b = RNG.standard_normal((23, 5, 2)), RNG.standard_normal((17, 5, 2))  # two sites, flattened
    table = unit(a) @ unit(b).T
    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    np.testing.assert_allclose(cosines(a, b), table, atol=1e-6)
    for absolute in (False, True):
        of = np.abs(table) if absolute else table
        values, indices = max_cosine(a, b, absolute=absolute, rows=7)
        np.testing.assert_allclose(values, of.max(1), atol=1e-6)
        np.testing.assert_array_equal(indices, of.argmax(1))
    values, indices = max_cosine(a, a, exclude_self=True, rows=7)
    other = unit(a) @ unit(a).T - 2 * np.eye(23)
    np.testing.assert_allclose(values, other.max(1), atol=1e-6)
    np.testing.assert_array_equal(indices, other.argmax(1))
    assert not np.isnan(np.asarray(cosines(a.at[0].set(0), b))).any()


def test_mmcs_is_not_symmetric():
    b = jnp.asarray(RNG.standard_normal((40, 8)), jnp.float32)
    assert mmcs(b[:10] * 3.0, b) == pytest.approx(1, abs=1e-6)
    table = unit(b) @ unit(b[:10]).T
    assert mmcs(b, b[:10]) == pytest.approx(table.max(1).mean(), abs=1e-6)
    assert mmcs(b, b[:10]) < 0.9


def test_the_assignment_is_the_best_of_all_permutations():
    a, b = RNG.standard_normal((5, 4)), RNG.standard_normal((6, 4))
    table = np.abs(unit(a) @ unit(b).T)
    best = max(np.mean([table[i, j] for i, j in enumerate(chosen)]) for chosen in itertools.permutations(range(6), 5))
    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    assert mcc(a, b) == pytest.approx(best, abs=1e-6) == mcc(b, a)
    order = RNG.permutation(6)
    signs = jnp.asarray(RNG.choice([-2.0, 1.0], (6, 1)), jnp.float32)
    pairs = match(b[order] * signs, b)
    np.testing.assert_array_equal(pairs.columns, order)
    np.testing.assert_allclose(pairs.cosines, np.sign(np.asarray(signs)[:, 0]), atol=1e-6)
    assert mcc(b[order] * signs, b, absolute=False) < 1


def test_uniqueness_and_what_is_found():
    truth = jnp.eye(4)
    tilted = jnp.asarray([[1.0, 0, 0, 0], [0.9, 0.1, 0, 0], [0, 0, -1.0, 0], [0, 0.6, 0, 0.8]])
    assert uniqueness(tilted, truth) == 3 / 4  # features 0, 0, 2 and 3
    assert fraction_found(tilted, truth, 0.9) == 1 / 4  # feature 2 points the other way, 3 only to .8
    assert fraction_found(tilted, truth, 0.79) == 2 / 4
    assert mmcs(truth, tilted) == pytest.approx((1 + 0.6 + 0 + 0.8) / 4, abs=1e-6)


def test_chance_level_of_random_directions():
    a, b = (jnp.asarray(RNG.standard_normal((512, 64)), jnp.float32) for _ in range(2))
    chance = np.sqrt(2 * np.log(512) / 64)  # the leading term, from above
    assert 0.8 * chance < mmcs(a, b) < chance
    assert 0.7 * chance < mcc(a, b) < chance


def test_stability_counts_what_other_runs_have_too():
    a, other = (jnp.asarray(RNG.standard_normal((10, 64)), jnp.float32) for _ in range(2))
    b = jnp.concatenate([a[5:][::-1], other[5:]])  # half of it the same, in another order
    same = stability(a, a[::-1], a)
    np.testing.assert_allclose([same.shared, same.mmcs, same.mcc], 1, atol=1e-6)
    assert same.pairs == 6
    half = stability(a, b)
    assert half.shared == 0.5
    assert half.mcc == pytest.approx((5 + match(a[:5], other[5:], absolute=False).cosines.sum()) / 10, abs=1e-6)
    with pytest.raises(UserError, match="two or more"):
        stability(a)
