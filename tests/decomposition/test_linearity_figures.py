"""Figures of the linearity suite that are not zero, in closed form; the rank of what is small; what compiles twice."""

from __future__ import annotations

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tms import TIED, Linear, Tiny, pentagon, tiny

from jax_interp.decomposition import (
    Components,
    DecompositionConfig,
    Trained,
    WeightParts,
    decomposition_linearity,
    weight_linearity,
)
from jax_interp.decomposition.capacity import count_alive
from jax_interp.decomposition.components import Decomposed, decompose
from jax_interp.decomposition.evaluate import composites_of, evaluate, linearity_of
from jax_interp.decomposition.importance import ScalarMLP
from jax_interp.decomposition.linearity import (
    GridSettings,
    LinearitySettings,
    composite_grid,
    mask_decomposition,
    mask_weights,
)
from jax_interp.decomposition.linearity.measure import _union

# 5 I₂ and features at 120 degrees, v_i · v_j = -1/2: three parts 5 v vᵀ, each needed on its own v alone. With a set S
# of others on as well the output is off by Σ_S 5 v_j (v_j · x), whose square over ‖5 x‖² is 1/4 ‖Σ_S v_j‖².
V3 = jnp.asarray([[1, 0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]], jnp.float32)
ROWS = 9_999
DATA, NEEDED = jnp.tile(V3, (ROWS // 3, 1)), jnp.tile(jnp.eye(3), (ROWS // 3, 1))
FEW = LinearitySettings(samples=4, ks=(1, 2), adversary_steps=(1, 20), pairs=1)
ONE = LinearitySettings(samples=1, ks=(1,), adversary_steps=(1,), pairs=1)
f = lambda theta, x: x @ theta.T


@pytest.fixture(scope="module")
def three():
    """By the size of each of the three parts."""

    def report(size):
        parts = WeightParts(5 * jnp.eye(2), size * jnp.einsum("ci,cj->cij", V3, V3))
        return weight_linearity(f, parts, NEEDED, DATA, settings=FEW)

    return report(5.0), report(10 / 3)


def test_more_than_the_needed_parts(three):
    """One other part, or both, is off by 1/4; of a union of k + 1 rows a third of the k brings nothing new each."""
    report, _ = three
    near = lambda figure, want: np.testing.assert_allclose(figure.normalised, want, atol=6e-3)
    near(report.subset[1], 1 / 4)
    near(report.subset[2], 1 / 4)
    near(report.union[1], (1 - 1 / 3) / 4)
    near(report.union[2], (1 - 1 / 9) / 4)
    near(report.scrub, (1 - 1 / 4) / 4)  # both others off a quarter of the time
    near(report.anti, 1 / 4)  # 7.5 x with the needed part on, 2.5 x without


def test_ablating_the_needed_against_the_rest(three):
    """Parts of 10/3 add up to 5 I₂: nothing is off with all on, 2/3 of x without the needed one, 1/3 without one other
    part or both."""
    _, report = three
    near = lambda figure, want: np.testing.assert_allclose(figure.normalised, want, atol=6e-3)
    near(report.all_on, 0)
    near(report.anti, (0 + 4 / 9) / 2)
    near(report.scrub, (1 - 1 / 4) / 9)
    assert report.anti_over_scrub == pytest.approx(8 / 3, rel=0.03)


def test_activations_of_other_rows():
    """v_j · x in parts that are not needed becomes that of a row drawn: of one like itself off by 1/4, of one of the
    other two kinds by ‖v_2 - v_3 / 2‖² = 7/4. Δ = -2.5 I₂ is left out."""
    model = Tiny(Linear(5 * jnp.eye(2)), Linear(jnp.eye(2), jnp.full(2, 10.0)))  # the bias keeps its relu open
    parts = Decomposed(model, {"linear1": Components(V3.T, 5 * V3)})
    raw = lambda **options: decomposition_linearity(parts, {"linear1": NEEDED}, DATA, **options, settings=FEW).resample
    for delta in (False, True):
        found = raw(delta=delta)
        assert found is not None
        np.testing.assert_allclose(found.raw, 25 * (1 / 4 + 2 * 7 / 4) / 3, rtol=2e-2)


def test_one_adversary_for_all_rows_has_to_compromise():
    """Rows of r₁ + r₂ and r₁ - r₂ off: each by itself at most 2 and 1; with one r for both r₁² + r₂² = 2 on average."""
    theta, parts = jnp.asarray([0.0, 0.0, 1.0]), jnp.eye(3)
    x = jnp.asarray([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]])
    needed = jnp.asarray([[0.0, 0.0, 1.0]] * 2)
    run = lambda theta, x: x @ theta[:, None]
    report = weight_linearity(run, WeightParts(theta, parts), needed, x, settings=FEW)
    assert report.adversarial["unique_per_datapoint"][20].normalised == pytest.approx((4 + 1) / 2)
    assert report.adversarial["shared_across_batch"][20].normalised == pytest.approx(2)
    assert report.exact is not None
    assert report.exact.normalised == pytest.approx((4 + 1) / 2)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_union_is_of_as_many_rows_as_it_says(k):
    """Rows that need a part each: k + 1 parts at the most, their own among them; nearly that where rows are many."""
    found = _union(jnp.eye(64), jax.random.key(0), k)
    count = found.sum(axis=1)
    assert float(count.max()) <= k + 1
    assert float(count.mean()) > k + 0.6
    np.testing.assert_array_equal(jnp.diagonal(found), 1)


def test_ranks_are_counted_against_the_matrix():
    """A thousandth of the largest singular value is none: of Δ, of components and of parts of weights alike, however
    large the matrix is."""
    rng = np.random.default_rng(0)
    W, noise = rng.standard_normal((2, 5, 3))
    size = np.linalg.norm(W, 2)
    noise /= np.linalg.norm(noise, 2)
    for scale in (1e-6, 1.0, 1e6):
        for off, rank in ((1e-4, 0), (1e-1, 3)):
            whole, rest = scale * W, scale * size * off * noise
            model = Tiny(Linear(jnp.asarray(whole, jnp.float32)), Linear(jnp.eye(3)))
            pair = Components(jnp.asarray(whole - rest, jnp.float32), jnp.eye(3))
            tiny_too = Components(jnp.pad(pair.V, ((0, 0), (0, 1))), jnp.concatenate([pair.U, jnp.ones((1, 3))]))
            found = mask_decomposition(Decomposed(model, {"linear1": tiny_too}), delta=True).ranks
            np.testing.assert_array_equal(found, [1, 1, 1, 0, rank])
            weights = WeightParts(jnp.asarray(whole), jnp.asarray(np.stack([whole - rest, rest])))
            np.testing.assert_array_equal(mask_weights(f, weights).ranks, [3, rank])


def test_each_set_of_parts_is_run_once():
    """Of two parts, one needed by the feature that is on: two sets contain it, two lack it, and each is run once."""
    seen = []

    def run(mask, x):
        seen.append(tuple(np.asarray(mask[0])))
        return x * mask

    found = composite_grid(run, lambda x: x, np.eye(2, dtype=bool), jnp.eye(2), jax.random.key(0))
    assert found.strict == found.superset_max == 0
    assert sorted(seen) == sorted(2 * [(0, 0), (1, 0), (0, 1), (1, 1)])  # all four, for each of the two features


def drawn(sigmoid="leaky_hard", seed=0, model=None) -> Trained:
    parts = decompose(pentagon() if model is None else model, "linear1", C=4, key=jax.random.key(seed), tied=TIED)
    return Trained(parts, ScalarMLP(2).init(jax.random.key(seed), parts), sigmoid)


CONFIG = DecompositionConfig(C=4, tied=TIED)


def test_a_second_decomposition_of_one_shape_compiles_nothing(caplog):
    """Whatever is measured of it, and with other data and another threshold."""

    def measure(seed, threshold):
        trained, x = drawn(seed=seed, model=tiny(seed=seed)), jax.random.uniform(jax.random.key(seed), (6, 5))
        many = jax.tree.map(lambda leaf: leaf[None], trained)
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            few = {"threshold": threshold, "key": jax.random.key(seed)}
            evaluate(CONFIG, trained, x, adversary_steps=(1,), **few)
            linearity_of(CONFIG, trained, x, settings=ONE, **few)
            composites_of(CONFIG, trained, 5, settings=GridSettings(2, 2, 2), **few)
            count_alive(many, x, threshold)
        return [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]

    assert measure(0, 0.0)
    assert measure(1, 0.2) == []


def test_one_threshold_for_all_that_counts_as_important():
    """A sigmoid that is never 0: above 0 every component is important, and strict is all on; above a threshold those
    that exceed it, in every figure."""
    model, x = tiny(), jax.random.uniform(jax.random.key(1), (6, 5))
    open_relu = dataclasses.replace(model.linear2, bias=jnp.full(5, 10.0))
    trained = drawn("normal", model=dataclasses.replace(model, linear2=open_relu))
    g = {name: np.asarray(values) for name, values in trained.importance(x).lower.items()}
    threshold = float(np.median(g["linear1"]))
    some = {name: (values > threshold).sum(axis=1).mean() for name, values in g.items()}
    assert 0 < some["linear1"] < 4
    config, owned = dataclasses.replace(CONFIG, delta=False), {}
    for at, counts in ((0.0, dict.fromkeys(g, 4)), (threshold, some)):
        found = evaluate(config, trained, x, adversary_steps=(1,), threshold=at)
        report = linearity_of(config, trained, x, threshold=at, settings=ONE)
        assert found["l0"] == pytest.approx(counts)
        assert report.l0 == pytest.approx(sum(counts.values()))
        assert (found["error"]["rounded"] == pytest.approx(found["error"]["unmasked"])) == (at == 0)
        assert (report.strict.normalised == pytest.approx(report.all_on.normalised)) == (at == 0)
        alive = {name: int((values > max(at, 0.1)).any(axis=0).sum()) for name, values in g.items()}
        assert found["alive"] == alive
        grid = composites_of(config, trained, 5, active=(1,), threshold=at, settings=GridSettings(2, 2))
        owned[at] = grid[0]["normalised"]
    assert owned[0.0] != pytest.approx(owned[threshold], rel=1e-2)
