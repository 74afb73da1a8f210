"""Selection against sorting in NumPy, and what it may cost beside the product whose results are selected from."""

from __future__ import annotations

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jax_interp.dictionaries.activations.select import batch_top_k, first_true_positions

KINDS = {
    "any": lambda x: x,
    "one loud row": lambda x: np.where(np.arange(len(x))[:, None] == 3, 10 + x, x),
    "negative": lambda x: -abs(x),
    "ties": lambda x: x.round(),
    "all equal": lambda x: 0 * x,
}


# Groups or not, whole groups or not, whole words of bits or not; a single feature.
@pytest.mark.parametrize("features", [1, 31, 96, 337])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_top_k_is_the_largest_of_all_and_of_equal_ones_the_first(kind, features):
    x = KINDS[kind](np.random.default_rng(1).standard_normal((37, features)).astype(np.float32))
    for k in {1, min(5, features)}:
        first = np.sort(np.argsort(-x.ravel(), kind="stable")[: 37 * k])
        values, rows, features_ = jax.jit(batch_top_k, static_argnums=1)(jnp.asarray(x), k)
        np.testing.assert_array_equal(rows, first // features)
        np.testing.assert_array_equal(features_, first % features)
        np.testing.assert_array_equal(values, x.ravel()[first])


def test_scores_that_are_computed_twice_put_no_other_entry_into_the_list():
    """Sums of products, which XLA rounds in two ways in one program."""

    @jax.jit
    def chosen(x, W, b, norms):
        values, _, features = batch_top_k(x @ (W * norms[None, :]) + (b * norms)[None, :], 4)
        return jnp.sort(jnp.where(features < 32, values, jnp.inf))

    for seed in range(100):
        rng = np.random.default_rng(seed)
        x, W, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 16), (16, 32), 32))
        norms = rng.uniform(size=32).astype(np.float32)
        wanted = np.sort(((x.astype(np.float64) @ W + b) * norms).ravel())[-256:]
        found = np.asarray(chosen(x, W, b, norms))
        real = np.isfinite(found).sum()
        assert real >= 255
        np.testing.assert_allclose(found[:real], wanted[256 - real :], rtol=1e-4, err_msg=str(seed))


def test_a_limit_keeps_the_largest_and_leaves_places_over():
    x = np.random.default_rng(2).standard_normal((37, 337)).astype(np.float32).round(1)
    first = np.sort(np.argsort(-x.ravel(), kind="stable")[: 37 * 2])
    values, rows, features = jax.jit(batch_top_k, static_argnums=1)(jnp.asarray(x), 4, jnp.float32(2))
    np.testing.assert_array_equal(rows, [*(first // 337), *[37] * 74])
    np.testing.assert_array_equal(features, [*(first % 337), *[337] * 74])
    np.testing.assert_array_equal(values, [*x.ravel()[first], *[0] * 74])


@hypothesis.given(
    st.integers(0, 2**32 - 1), st.sampled_from([1, 16, 50, 337]), st.floats(0, 0.5), st.sampled_from([1, 40, 400])
)
@hypothesis.settings(max_examples=25, deadline=None)
def test_first_places(seed, columns, share, n):
    mask = np.random.default_rng(seed).random((9, columns)) < share
    rows, features = jax.jit(first_true_positions, static_argnums=1)(jnp.asarray(mask), n)
    want = np.argwhere(mask)[:n]
    np.testing.assert_array_equal(np.stack([rows, features], 1)[: len(want)], want)
    assert (np.asarray(rows)[len(want) :] == 9).all()
    assert (np.asarray(features)[len(want) :] == columns).all()


@pytest.mark.parametrize("features", [2048, 4000, 4008, 4093])
@pytest.mark.parametrize("of", ["batch_top_k", "first_true_positions"])
def test_selection_costs_far_less_than_the_encoder(of, features):
    """Whatever the number of features divides by, and on either side of where groups serve."""
    rows, d, k = 64, 512, 64
    select = {
        "batch_top_k": lambda x: batch_top_k(x, k),
        "first_true_positions": lambda x: first_true_positions(x > 1, rows * k),
    }[of]
    cost = jax.jit(select).lower(jnp.zeros((rows, features))).compile().cost_analysis() or {}
    assert cost["flops"] < 0.05 * 2 * rows * d * features
