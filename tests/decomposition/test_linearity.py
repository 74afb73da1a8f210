"""The counter-example of 5 I₂ in closed form, the pentagon's table, and the two ablation findings."""

from __future__ import annotations

import dataclasses
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tms import TIED, pentagon

from jax_interp.decomposition import Components, WeightParts, decomposition_linearity, weight_linearity
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.linearity import LinearitySettings, composite_grid, mask_decomposition, mask_weights
from jax_interp.decomposition.linearity.measure import _pairs

V3 = np.array([[1, 0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]])
OUTER = np.einsum("ci,cj->cij", V3, V3)
EYE = np.eye(2)
THIRD = np.eye(3)
SPLITS = {  # parts, importances on v1, v2, v3
    "a": (5 * OUTER, THIRD),
    "b": (10 / 3 * OUTER, THIRD),
    "c": (5 * EYE[None], np.ones((3, 1))),
    "d": (5 * np.array([[[1, 0], [0, 0]], [[0, 0], [0, 1]]]), np.array([[1, 0], [1, 1], [1, 1]])),
    "e": (np.concatenate([5 * OUTER, -2.5 * EYE[None]]), np.pad(THIRD, ((0, 0), (0, 1)))),
    "f": (np.concatenate([5 * OUTER, -2.5 * EYE[None]]), np.pad(THIRD, ((0, 0), (0, 1)), constant_values=1)),
}
TABLE = {  # faithfulness, strict, all on, stochastic, adversarial (all as norms over ‖f(x)‖), mean L0, sum of ranks
    "a": (0.5, 0, 0.5, (2.604 / 25) ** 0.5, 0.5, 1, 3),
    "b": (0, 1 / 3, 0, (1.157 / 25) ** 0.5, 1 / 3, 1, 3),
    "c": (0, 0, 0, 0, 0, 1, 2),
    "d": (0, 0, 0, 0, 0, 5 / 3, 2),
    "e": (0, 0, 0, 0.251, 0.5, 1, 5),
    "f": (0, 0.5, 0, 0.325, 0.5, 2, 5),
}
f = lambda theta, x: x @ theta.T


def four(name):
    """Four parts and importances each, those that a split lacks zero: one compiled program serves all."""
    parts, importance = SPLITS[name]
    missing = 4 - len(parts)
    padded = np.pad(parts, ((0, missing), (0, 0), (0, 0))), np.pad(importance, ((0, 0), (0, missing)))
    weights, importance = (jnp.asarray(a, jnp.float32) for a in padded)
    return WeightParts(jnp.asarray(5 * EYE, jnp.float32), weights), importance


DATA = jnp.asarray(V3, jnp.float32)
FEW = LinearitySettings(samples=4, ks=(1, 2), adversary_steps=(20,))


def report(name, oracle=None):
    # for the stochastic figure the same three rows many times over: the mean of many draws
    parts, importance = four(name)
    return weight_linearity(f, parts, jnp.tile(importance, (4000, 1)), jnp.tile(DATA, (4000, 1)), oracle, settings=FEW)


@pytest.mark.parametrize("name", list(TABLE))
def test_the_counter_example_in_closed_form(name):
    got = report(name)
    faithful, strict, all_on, stochastic, adversarial, l0, ranks = TABLE[name]
    near = lambda value, want, by=2e-3: np.testing.assert_allclose(value, want, atol=by)
    near(got.faithfulness["theta"], faithful, 1e-6)
    near(got.strict.relative, strict)
    near(got.all_on.relative, all_on)
    near(got.stochastic.relative, stochastic, 5e-3)
    assert got.exact is not None
    near(got.exact.relative, adversarial)
    assert got.adversarial["unique_per_datapoint"][20].normalised <= got.exact.normalised + 1e-4
    near(got.l0, l0, 1e-6)
    assert got.rank == ranks
    assert str(got).count("\n") > 15


def test_the_delta_hides_what_the_adversary_exposes():
    """Adding Δ = θ - Σθ_c, inactive, makes faithfulness, strict and all-on errors zero; the worst mask is as bad as
    before, and worse than the oracle's."""
    parts, importance = four("c")
    single = (parts, jnp.tile(importance, (4000, 1)))
    before, after = report("a"), report("e", single)
    assert before.faithfulness["theta"] > 0.4
    assert after.faithfulness["theta"] < 1e-6
    assert after.strict.normalised < 1e-10
    assert after.all_on.normalised < 1e-10
    assert after.exact is not None
    assert after.exact.relative > 0.49
    assert after.exact.excess == pytest.approx(0.25, abs=1e-3)


def oracle_and_svd():
    """Ways to take the pentagon's W apart, as decomposed models: one part a feature; the two singular parts."""
    model = pentagon()
    W = np.asarray(model.linear1.weight, float)
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    make = lambda V, U: Decomposed(
        model, {"linear1": Components(jnp.asarray(V, jnp.float32), jnp.asarray(U, jnp.float32))}, TIED
    )
    # three parts of nothing beside the two: one compiled program serves both
    return make(np.eye(5), W), make(np.pad(U * s, ((0, 0), (0, 3))), np.pad(Vt, ((0, 3), (0, 0)))), np.abs(U * s)


def grids(parts, owner, active):
    ablatable = mask_decomposition(parts)
    owner = np.pad(owner, ((0, 0), (0, 5 - owner.shape[1])))
    run = lambda mask, x: ablatable.run(jnp.concatenate([mask, mask], axis=1), x)  # of linear1 and of its twin
    return composite_grid(run, ablatable.target, owner, jnp.eye(5), jax.random.key(0), active=active)


def test_the_pentagons_table():
    """Strict, superset mean and superset max of the oracle; zero for an SVD owned by all. The specs' figures are of one
    trained model and 64 draws: a quarter is allowed."""
    oracle, svd, _ = oracle_and_svd()
    for active, want in {1: (0.021, 0.011, 0.024), 2: (0.188, 0.094, 0.441), 3: (0.004, 0.002, 0.012)}.items():
        got = grids(oracle, np.eye(5, dtype=bool), active)
        np.testing.assert_allclose((got.strict, got.superset_mean, got.superset_max), want, rtol=0.25, atol=2e-3)
        nothing = grids(svd, np.ones((5, 2), bool), active)
        assert max(nothing.strict, nothing.superset_mean, nothing.superset_max) < 1e-10


def test_an_svd_that_reconstructs_perfectly_is_rejected():
    """Declared always needed, its parts score zero wherever something is ablated; minimality shows what it is. Owned
    each by the features that lean on it most, strict ablation shows it."""
    oracle, svd, lean = oracle_and_svd()
    x = jnp.asarray(np.eye(5)[np.arange(20) % 5] * np.linspace(0.2, 1, 20)[:, None], jnp.float32)
    everything = {n: jnp.ones((20, 5)).at[:, 2:].set(0.0) for n in svd.names}
    own = {n: (x > 0).astype(jnp.float32) for n in oracle.names}
    settings = dataclasses.replace(FEW, pairs=8)
    flat, good = (
        decomposition_linearity(svd, everything, x, settings=settings),
        decomposition_linearity(oracle, own, x, settings=settings),
    )
    assert flat.strict.normalised < 1e-10
    assert flat.stochastic.normalised < 1e-10
    assert flat.adversarial["shared_across_batch"][20].normalised < 1e-10
    assert flat.l0 == 4
    assert good.l0 == 2
    assert flat.mdl == pytest.approx(2 * good.mdl)
    top = lean == lean.max(axis=1, keepdims=True)
    found, ideal = grids(svd, top, 1), grids(oracle, np.eye(5, dtype=bool), 1)
    assert found.strict > 5 * ideal.strict
    assert found.removed is not None
    assert ideal.removed is not None
    assert good.anti_over_scrub > 20
    assert good.resample is not None


@pytest.mark.parametrize("delta", [False, True])
def test_parts_of_nothing_explain_nothing(delta):
    """With V = U = 0 the model that is left is relu(b), b < 0: no output at all. No ablation may hide that, and another
    row's activations of such parts are nothing either."""
    model, x = pentagon(), jnp.asarray(np.eye(5), jnp.float32)
    nothing = Decomposed(model, {"linear1": Components(jnp.zeros((5, 5)), jnp.zeros((5, 2)))}, TIED)
    needed = {name: jnp.ones((5, 5)) for name in nothing.names}
    got = decomposition_linearity(nothing, needed, x, delta=delta, settings=dataclasses.replace(FEW, pairs=4))
    assert got.strict.normalised == pytest.approx(1, abs=1e-6)
    assert got.resample is not None
    assert got.resample.normalised == pytest.approx(1, abs=1e-6)
    assert got.all_on.normalised == pytest.approx(0 if delta else 1, abs=1e-6)


def test_interactions_of_all_pairs_and_of_random_ones():
    """f is the sum of scalar parts p, the target 1: with L(S) = (Σp - 1 - Σ_S p)², I(i, j) is 2 p_i p_j."""
    total = lambda theta, x: theta * jnp.ones_like(x)

    def report_of(p, pairs):
        parts, x = WeightParts(jnp.ones(()), jnp.asarray(p, jnp.float32)), jnp.ones((1, 1))
        needed = jnp.ones((1, len(p)))
        settings = LinearitySettings(samples=1, ks=(1,), adversary_steps=(1,), pairs=pairs)
        return weight_linearity(total, parts, needed, x, settings=settings)

    p = [0.5, -1.0, 2.0, 0.25, 1.5]
    want = [2 * abs(p[i] * p[j]) for i in range(5) for j in range(i)]
    got = report_of(p, 10)
    assert got.interaction_mean == pytest.approx(np.mean(want), rel=1e-5)
    assert got.interaction_max == pytest.approx(max(want), rel=1e-5)
    tracemalloc.start()
    many = report_of(np.tile([1.0, -1.0], 10_000), 4)  # 200 million pairs
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert many.interaction_mean == many.interaction_max == pytest.approx(2)
    assert peak < 1e8


@pytest.mark.parametrize(("C", "count"), [(2, 1), (7, 20), (7, 21), (7, 1000), (20_000, 50)])
def test_drawn_pairs_are_pairs_and_distinct(C, count):
    drawn = _pairs(C, count, np.random.default_rng(0))
    assert len(set(drawn)) == len(drawn) == min(count, C * (C - 1) // 2)
    assert all(0 <= j < i < C for i, j in drawn)


def test_weights_that_do_not_add_up_can_still_be_mechanistically_faithful():
    """For 5 I₂ and two orthogonal features, weights made for each pattern: right for every one of them, though the
    parts do not add up. The grid sees no error, the suite does."""
    features = jnp.eye(2)
    theta_of = lambda mask: 5 * jnp.diag(mask)
    run = lambda mask, x: jax.vmap(lambda m, x: theta_of(m) @ x)(mask, x)
    grid = composite_grid(run, lambda x: 5 * x, np.eye(2, dtype=bool), features, jax.random.key(0), active=2)
    assert grid.strict < 1e-12
    assert grid.removed == pytest.approx(0, abs=1e-12)
    doubled = WeightParts(5 * jnp.eye(2), 5 * jnp.stack([jnp.eye(2), jnp.eye(2)]))
    bad = mask_weights(f, doubled)
    assert dataclasses.asdict(bad)["faithfulness"]["theta"] == pytest.approx(1.0)
