"""Clusters of latents: planted groups, and a circle that a trained SAE splits into several latents."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import csc_array

from jax_interp.core.errors import UserError
from jax_interp.dictionaries import Adam, train_dictionary, variants
from jax_interp.dictionaries.evaluation import controls
from jax_interp.dictionaries.geometry import (
    PlaneMeasure,
    cluster_reconstruction,
    neighbour_clusters,
    rank_clusters,
    sparse_codes,
    spectral_clusters,
)
from jax_interp.toys.synthetic import as_model, circle
from jax_interp.training import QUIET

RNG = np.random.default_rng(0)


def planted(sizes=(12, 8, 5), d=24, spread=0.08):
    """Directions around orthogonal centres, and the label of each, in random order."""
    centres = np.linalg.qr(RNG.normal(size=(d, len(sizes))))[0].T
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = labels[RNG.permutation(len(labels))]
    return jnp.asarray(centres[labels] + spread * RNG.normal(size=(len(labels), d)), jnp.float32), labels


@pytest.mark.parametrize("method", [lambda W: spectral_clusters(W, 3), lambda W: neighbour_clusters(W, neighbours=3)])
def test_planted_groups_are_found(method):
    W, labels = planted()
    found = method(W)
    np.testing.assert_array_equal(found, labels)  # numbered by size, as they were planted
    np.testing.assert_array_equal(method(W * jnp.linspace(0.1, 9, len(W))[:, None]), found)
    with_dead = method(W.at[4].set(0))
    assert with_dead[4] == -1
    assert (np.delete(with_dead, 4) == np.delete(labels, 4)).all()


def test_neighbours_against_a_table_of_all_cosines():
    W = RNG.normal(size=(40, 6))
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    c = unit @ unit.T - 3 * np.eye(40)
    joined = np.zeros((40, 40), bool)
    for i in range(40):
        for j in np.argsort(-c[i])[:2]:
            joined[i, j] = joined[j, i] = c[i, j] > 0.7
    reach = np.linalg.matrix_power((joined | np.eye(40, dtype=bool)).astype(float), 40) > 0
    found = neighbour_clusters(jnp.asarray(W, jnp.float32), threshold=0.7, rows=7)
    np.testing.assert_array_equal(found[:, None] == found[None], reach)
    assert len(set(found)) > 3


def test_impossible_clusters_are_refused():
    W = planted()[0]
    for call in (lambda: spectral_clusters(W, 26), lambda: neighbour_clusters(W, neighbours=25)):
        with pytest.raises(UserError, match=r"of 25 directions|of each of 25"):
            call()
    with pytest.raises(UserError, match="NaN"):
        neighbour_clusters(W.at[0, 0].set(jnp.nan))


def test_a_reconstruction_is_the_sum_over_the_cluster():
    x = jnp.asarray(RNG.normal(size=(60, 5)), jnp.float32)
    sae = controls.random_dictionary(jax.random.key(0), 5, 9, k=2)
    codes = sparse_codes(sae, [x[:25], x[25:]])
    z = np.asarray(sae.encode(x))
    np.testing.assert_allclose(codes.toarray(), z, atol=1e-6)
    some = cluster_reconstruction(codes, sae.W_dec, [1, 4, 7], limit=12)
    np.testing.assert_array_equal(some.rows, np.flatnonzero((z[:, [1, 4, 7]] != 0).any(1))[:12])
    np.testing.assert_allclose(some.codes, z[some.rows][:, [1, 4, 7]], atol=1e-6)
    points = some.codes.astype(np.float64) @ np.asarray(sae.W_dec, np.float64)[[1, 4, 7]]
    values = np.linalg.svd(points - points.mean(0))[1]
    np.testing.assert_allclose(np.linalg.norm(some.components(3), axis=0), values[:3], rtol=1e-5)
    with pytest.raises(UserError, match="no rows"):
        sparse_codes(sae, [])


def test_the_circle_of_a_world_is_the_first_cluster():
    """A plane cut into twelve latents by angle: figures of the circle itself, above every dealing at random."""
    world = circle(jax.random.key(0), d=12, singles=10, p_single=0.2)
    truth = world.sample(jax.random.key(1), 6000)[1]
    spokes = 2 * np.pi * np.arange(12) / 12
    plane, singles = world.directions[:2], world.directions[2:]
    W = jnp.concatenate([jnp.asarray(np.stack([np.cos(spokes), np.sin(spokes)], 1), jnp.float32) @ plane, singles])
    labels = neighbour_clusters(W)
    assert (labels[:12] == 0).all()
    assert len(set(labels)) == 11
    angle, radius = np.arctan2(truth[:, 1], truth[:, 0]), np.hypot(truth[:, 0], truth[:, 1])
    apart = np.abs((angle[:, None] - spokes[None] + np.pi) % (2 * np.pi) - np.pi)
    near = np.sin(np.maximum(np.pi / 6 - apart, 0)) / np.sin(np.pi / 6)  # a point is the sum of its two nearest spokes
    codes = np.concatenate([near * radius[:, None], truth[:, 2:]], axis=1)
    paired = np.where(labels > 0, (labels + 1) // 2, 0)  # two single features each
    measure = PlaneMeasure(angles=12, directions=24, limit=2000)
    ranking = rank_clusters(csc_array(codes), W, paired, shuffles=2, measure=measure)
    first, second = ranking.clusters[:2]
    assert first.features == tuple(range(12))
    assert first.separability == pytest.approx(1.5, abs=0.1)
    assert first.mixture_index == pytest.approx(0.2186, abs=0.05)
    assert second.mixture_index > 0.35  # two features, seldom on together: mostly a mixture
    assert first.score > 1 > max(*ranking.chance, second.score)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_trained_sae_splits_the_circle_and_the_cluster_shows_it(seed):
    """From activations alone: train, cluster, rank. The best cluster holds the latents of the circle's plane, and no
    single feature."""
    world = circle(jax.random.key(seed), d=12, singles=6, p_circle=0.5, p_single=0.03)
    fields = {"n_features": 20, "steps": 2000, "buffer": 4096, "optimizer": Adam(learning_rate=2e-3)}
    sae = train_dictionary(
        variants.april("x", l1=0.03, **fields), *as_model(world, jax.random.key(seed), batch=512), log=QUIET
    )
    codes = sparse_codes(sae, [world.sample(jax.random.key(100 + seed), 20_000)[0]])
    measure = PlaneMeasure(angles=30, directions=60)
    ranking = rank_clusters(codes, sae.W_dec, neighbour_clusters(sae.W_dec), shuffles=5, measure=measure)
    best = ranking.clusters[0]
    assert best.score > np.median(ranking.chance)  # most latents are the circle's, so some dealings hold many of them
    information, share = best.by_plane[0]
    assert information > 1  # 1.5 for the circle itself
    assert share == pytest.approx(0.22, abs=0.03)
    rows = np.asarray(sae.W_dec)
    inside = np.linalg.norm(rows @ np.asarray(world.directions[:2]).T, axis=1) / np.linalg.norm(rows, axis=1)
    assert set(best.features) == set(np.flatnonzero(inside > 0.9).tolist())
    assert len(best.features) >= 6
