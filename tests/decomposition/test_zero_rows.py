"""Importances that are computed once for all rows of zeros are those of every row, and so are gradients."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.decomposition import DecompositionConfig, decompose
from jax_interp.decomposition.importance import GlobalMLP, ScalarMLP, SharedMLP, VectorMLP, read_inputs
from jax_interp.decomposition.importance.zero_rows import (
    FEWEST_ROWS,
    NonzeroRows,
    nonzero_rows,
    on_nonzero_rows,
    places_for,
    places_for_batches,
)
from jax_interp.decomposition.train import init_state, train_instances, train_step
from jax_interp.toys.resid_mlp import ResidMLPConfig, init_resid_mlp
from jax_interp.toys.tms import TIED, TMSConfig, init_tms
from jax_interp.toys.toy_training import sparse_features

TMS_CONFIG = DecompositionConfig(("linear1",), C=4, tied=TIED, batch=40, steps=10, warm_up=None)


def _tms():
    return init_tms(jax.random.key(0), TMSConfig())


def _resid():
    return init_resid_mlp(jax.random.key(0), ResidMLPConfig(n_features=5, d_embed=7, n_layers=2, d_mlp=3))


@pytest.mark.parametrize(
    ("importance", "model", "matrices"),
    [
        (ScalarMLP(3), _tms, "linear1"),
        (VectorMLP(3), _resid, "blocks.*.mlp"),
        pytest.param(ScalarMLP(3), _resid, "blocks.*.mlp", marks=pytest.mark.slow),
        pytest.param(SharedMLP((4,)), _tms, "linear1", marks=pytest.mark.slow),
        pytest.param(GlobalMLP((4,)), _resid, "blocks.*.mlp", marks=pytest.mark.slow),
    ],
)
def test_importances_and_gradients_are_those_of_every_row(importance, model, matrices):
    parts = decompose(model(), matrices, C=4, key=jax.random.key(1), tied=TIED if matrices == "linear1" else ())
    x = sparse_features(jax.random.key(1), 40, 5, 0.1)
    ci_fn = importance.init(jax.random.key(2), parts)
    with jax.enable_x64():
        parts, ci_fn, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (parts, ci_fn, x))
        inputs = read_inputs(parts, x)[1]
        on = nonzero_rows(inputs)
        assert 5 < int(jnp.sum(on)) < 30

        def weighted_sum(components, ci_fn, rows):
            model = dataclasses.replace(parts, components=components)
            values = ci_fn(model, inputs) if rows is None else rows.spread(ci_fn(model, rows.take(inputs)))
            return sum(jnp.sum(g * jnp.sin(jnp.arange(g.size).reshape(g.shape))) for g in values.values())

        of = jax.jit(jax.value_and_grad(weighted_sum, argnums=(0, 1)))
        want = of(parts.components, ci_fn, None)
        got = of(parts.components, ci_fn, NonzeroRows.of(on, 31))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), got, want)


def test_a_batch_with_too_many_rows_computes_all():
    inputs = {"linear1": jnp.eye(4)}
    kind = lambda places: on_nonzero_rows(lambda rows: jnp.float32(rows is None), inputs, places)
    assert [float(kind(places)) for places in (None, 3, 4, 5)] == [1, 1, 0, 0]


@pytest.mark.slow
def test_a_step_does_not_depend_on_the_places():
    model, x = _tms(), sparse_features(jax.random.key(1), 40, 5, 0.1)
    state = init_state(TMS_CONFIG, model, x)
    step = jax.jit(partial(train_step, TMS_CONFIG), static_argnames="places")
    want, places = step(state, x, model), int(jnp.sum(jnp.any(x != 0, axis=1)))
    got = step(state, x, model, places=places)
    for one, other in zip(jax.tree.leaves(_numbers(got)), jax.tree.leaves(_numbers(want)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def _numbers(tree):
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def test_rows_are_taken_in_order_and_put_back():
    x = jnp.asarray([[0, 0], [1, 0], [0, 0], [0, 2]], jnp.float32)
    rows = NonzeroRows.of(nonzero_rows({"linear1": x}), 3)
    taken = rows.take({"linear1": x})
    assert taken["linear1"].tolist() == [[1, 0], [0, 2], [0, 0], [0, 0]]
    assert np.array_equal(rows.spread(taken)["linear1"], x)
    weights = jnp.arange(8.0).reshape(4, 2)
    sums = jax.grad(lambda values: jnp.sum(rows.spread({"linear1": values})["linear1"] * weights))(taken["linear1"])
    assert sums.tolist() == [[2, 3], [6, 7], [0, 0], [4, 6]]  # the last row stands for rows 0 and 2


def test_a_row_counts_if_any_matrix_reads_it():
    inputs = {"linear1": jnp.zeros((3, 2)), "blocks.*.mlp.up": jnp.zeros((2, 3, 4)).at[1, 2, 0].set(1.0)}
    assert nonzero_rows(inputs).tolist() == [False, False, True]


def test_places_are_chosen_from_a_batch():
    sparse = lambda p, rows=2 * FEWEST_ROWS: {"linear1": sparse_features(jax.random.key(0), rows, 5, p)}
    found = places_for_batches(lambda x: x, lambda: sparse(0.05))
    assert found is not None
    assert 0.25 < found / (2 * FEWEST_ROWS) < 0.32
    assert places_for_batches(lambda x: x, lambda: sparse(0.5)) is None
    assert places_for_batches(lambda x: x, lambda: sparse(0.05, FEWEST_ROWS - 1)) is None
    assert places_for_batches(lambda x: {"linear1": x["linear1"][:, None]}, lambda: sparse(0.05)) is None
    assert places_for(0, 1024) == 32
    counts = np.random.default_rng(0).binomial(4096, 0.2262, 1000)
    assert all(int(count) <= places_for(int(counts[0]), 4096) for count in counts)


@pytest.mark.slow
def test_instances_are_separate_runs():
    """Both take the branch with few rows."""
    batch = FEWEST_ROWS
    config = dataclasses.replace(TMS_CONFIG, batch=batch, importance=ScalarMLP(3), steps=3)
    sample = partial(sparse_features, batch=batch, n=5, probability=0.05)
    both = train_instances(config, _tms(), seeds=(0, 1), sample=sample)
    together = train_instances(config, _tms(), seeds=(0, 1), sample=sample, at_once=2)
    for one, other in zip(jax.tree.leaves(both), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6)
