"""Known worlds: rates, exclusivity, correlations and strengths of samples against what they are by construction."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from jax_interp.core.errors import UserError
from jax_interp.toys.synthetic import firing, forest, shrinkage, small_worlds, world

N = 20_000
draw = jax.jit(lambda key, w, n: w.sample(key, n), static_argnames="n")


@partial(jax.jit, static_argnames=("make", "n"))
def made(key, make, n):
    w = make(key)
    return w, w.sample(jax.random.fold_in(key, 1), n)


def sampled(make, n=N):
    """(world, x, codes), made and drawn in one program."""
    w, drawn = made(jax.random.key(0), make, n) if callable(make) else (make, draw(jax.random.key(1), make, n))
    x, codes = (np.asarray(a, np.float64) for a in drawn)
    np.testing.assert_allclose(
        x, codes @ np.asarray(w.directions) + np.asarray(w.bias), atol=1e-4 * max(1, np.abs(x).max())
    )
    assert (codes >= 0).all()
    return w, x, codes


def near_rates(codes, p):
    """Within five standard errors of a binomial, each."""
    p = np.asarray(p)
    np.testing.assert_array_less(np.abs((codes > 0).mean(0) - p), 5 * np.sqrt(p * (1 - p) / len(codes)) + 1e-12)


def test_sharkey_rates_and_strengths():
    w, _, codes = sampled(partial(small_worlds.sharkey, d=16, n_features=64, active=5.0, decay=0.97))
    near_rates(codes, 0.97 ** np.arange(64) * 5 / 64)
    on = codes[codes > 0]
    assert on.mean() == pytest.approx(0.5, abs=0.01)
    assert on.max() <= 1
    np.testing.assert_allclose(np.linalg.norm(w.directions, axis=1), 1, rtol=1e-5)
    one, other, third = (draw(jax.random.key(i), w, 50)[1] for i in (5, 5, 6))
    np.testing.assert_array_equal(one, other)  # pure
    assert (np.asarray(one) != np.asarray(third)).any()


@pytest.mark.slow
def test_sharkey_features_that_fire_together_have_the_same_rates():
    w, _, codes = sampled(
        small_worlds.sharkey(jax.random.key(0), d=8, n_features=24, active=6.0, decay=0.97, together=True)
    )
    near_rates(codes, 0.97 ** np.arange(24) * 6 / 24)
    pairs = np.corrcoef((codes > 0).T)[np.triu_indices(24, 1)]
    factor = np.asarray(w.codes.on.factor)
    assert pairs.mean() > 0.05
    assert np.corrcoef(pairs, (factor @ factor.T)[np.triu_indices(24, 1)])[0, 1] > 0.7


def test_tree_is_a_tree_with_a_true_l0_of_1_12():
    w, _, codes = sampled(small_worlds.tree)
    on = codes > 0
    family = np.r_[0.15, [0.03] * 3]
    near_rates(codes, np.r_[np.tile(family, 3), [0.05] * 8])
    assert on.sum(1).mean() == pytest.approx(1.12, abs=0.05)
    for parent in (0, 4, 8):
        children = on[:, parent + 1 : parent + 4]
        assert children.sum(1).max() == 1  # exclusive
        assert not (children.any(1) & ~on[:, parent]).any()  # and never without the parent
        # no child on 40 % of the parent's rows: the recall of a parent latent that absorption has emptied
        assert (~children.any(1))[on[:, parent]].mean() == pytest.approx(0.4, abs=0.05)
    assert codes[on].std() == pytest.approx(0.05, rel=0.05)
    np.testing.assert_allclose(w.directions @ w.directions.T, np.eye(20), atol=1e-5)


@pytest.mark.parametrize("correlation", [0.4, -0.4])
def test_sparse_but_wrong_fires_together_as_the_copula_says(correlation):
    _, _, codes = sampled(partial(small_worlds.sparse_but_wrong, correlation=correlation))
    near_rates(codes, np.full(5, 0.4))
    on, threshold = codes > 0, norm.isf(0.4)
    together = lambda rho: multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf([-threshold, -threshold])
    for i, j in itertools.combinations(range(5), 2):
        p = together(correlation if i == 0 else 0)
        assert (on[:, i] & on[:, j]).mean() == pytest.approx(p, abs=5 * np.sqrt(p / N))
    assert on.sum(1).mean() == pytest.approx(2, abs=0.05)
    assert codes[on].std() == pytest.approx(0.15, rel=0.05)


@pytest.mark.slow
def test_fifty_correlated_features():
    w, _, codes = sampled(small_worlds.sparse_but_wrong_50(jax.random.key(0)))
    p = 0.345 * (49 - np.arange(50)) / 50 + 0.05
    near_rates(codes, p)
    assert p.sum() == pytest.approx(10.9525)
    factor = np.asarray(w.codes.on.factor, np.float64)
    C = factor @ factor.T
    np.testing.assert_allclose(np.diag(C), 1, atol=1e-4)
    empirical = np.corrcoef((codes > 0).T)
    upper = np.triu_indices(50, 1)
    assert np.corrcoef(C[upper], empirical[upper])[0, 1] > 0.95


def test_low_rank_correlations_are_those_asked_for():
    @partial(jax.jit, static_argnames="scale")
    def drawn(key, scale):
        on = firing.low_rank(key, jnp.full(30, 0.5), rank=3, scale=scale)
        return on, on(key, N)

    on, fires = drawn(jax.random.key(0), 0.4)
    C = np.asarray(on.factor @ on.factor.T) + np.diag(np.asarray(on.spread) ** 2)
    np.testing.assert_allclose(np.diag(C), 1, rtol=1e-5)
    # at p = 1/2 the correlation of signs is arcsin of the normals', times 2/π
    np.testing.assert_allclose(
        np.corrcoef(np.asarray(fires, np.float64).T), 2 / np.pi * np.arcsin(np.clip(C, -1, 1)), atol=0.04
    )
    strong = drawn(jax.random.key(0), 2.0)[0]
    assert (np.asarray(strong.spread) ** 2 >= 0.0099).all()
    with pytest.raises(UserError, match="symmetric"):
        firing.correlated(jnp.full(2, 0.5), np.array([[1, 0.5], [0.2, 1]]))


def exact_rates(q, trees):
    """Firing rates after the forest's constraint for features that are drawn independently with q: of the children that
    would fire one is taken at random, so child i stays with probability E[1 / (1 + others)]."""
    rate, levels = q.copy(), trees.levels()
    for (start, size), (child, count) in itertools.pairwise(levels):
        drawn = q[child : child + count].reshape(size, trees.branching)
        stays = np.zeros_like(drawn)
        for i in range(trees.branching):
            others = np.delete(drawn, i, axis=1)
            for who in itertools.product([False, True], repeat=trees.branching - 1):
                p = np.where(who, others, 1 - others).prod(1)
                stays[:, i] += p / (1 + sum(who))
        rate[child : child + count] = (rate[start : start + size, None] * drawn * stays).reshape(-1)
    return rate


def test_forest_hierarchy_exclusion_rates_and_strengths():
    trees = forest.Forest(jnp.linspace(5.0, 4.0, 60), roots=2, branching=3, depth=2)  # 26 features, 34 free ones
    assert trees.levels() == [(0, 2), (2, 6), (8, 18)]
    q = np.r_[np.full(2, 0.6), np.full(6, 0.5), np.full(18, 0.4), np.full(34, 0.1)]
    codes = firing.Codes(firing.independent(jnp.asarray(q)), firing.Normal(trees.mean, jnp.full((60,), 0.2)), trees)
    z = np.asarray(jax.jit(lambda codes, key: codes(key, N))(codes, jax.random.key(0)), np.float64)
    near_rates(z, exact_rates(q, trees))
    on = z > 0
    parent = np.r_[np.repeat(np.arange(2), 3), np.repeat(np.arange(2, 8), 3)]
    for child, above in enumerate(parent, start=2):
        assert not (on[:, child] & ~on[:, above]).any()
    for group in np.split(np.arange(2, 26), 8):
        assert on[:, group].sum(1).max() == 1
    # a child's strength follows its parent's
    both = on[:, 2]
    slope = np.polyfit(z[both, 0], z[both, 2], 1)[0]
    assert slope == pytest.approx(float(trees.mean[2] / trees.mean[0]), rel=0.1)
    assert z[on[:, 30], 30].mean() == pytest.approx(float(trees.mean[30]), rel=0.02)


def test_compensation_gives_about_the_rates_asked_for():
    trees = forest.Forest(jnp.ones(20), roots=4, branching=4, depth=1)
    p = np.r_[np.full(4, 0.4), np.full(16, 0.04)]
    np.testing.assert_allclose(exact_rates(forest.compensated(p, trees), trees), p, rtol=0.08)
    capped = forest.compensated(np.r_[np.full(4, 0.04), np.full(16, 0.04)], trees)
    np.testing.assert_array_equal(capped[4:], 1)


def test_the_published_configuration_has_a_true_l0_of_about_34():
    """Without drawing a sample: rates of the 16,384 features, correlations (which change them little) left out. The
    published figures are about 34, and 25 for the 4,096 most frequent features."""
    trees = forest.Forest(jnp.ones(16_384), 128, 4, 3)
    rates = exact_rates(forest.compensated(forest.zipf(16_384, 0.5, 0.4, 5e-4), trees), trees)
    assert sum(size for _, size in trees.levels()) == 10_880
    assert rates.sum() == pytest.approx(34, abs=1)
    assert np.sort(rates)[::-1][:4096].sum() == pytest.approx(25, abs=1)


@pytest.mark.slow
def test_small_bench():
    w, x, codes = sampled(forest.small_bench, n=4000)
    assert (codes > 0).sum(1).mean() == pytest.approx(6, abs=1)
    assert x.shape == (4000, 64)
    assert np.linalg.norm(w.bias) == pytest.approx(0.5, rel=1e-5)
    with pytest.raises(UserError, match="need 340 features; there are 300"):
        forest.synth_sae_bench(jax.random.key(0), forest.SynthSAEBenchConfig(n_features=300, d=16, roots=4))


def test_orthogonalised_directions_interfere_less():
    """The loss without the pairs equals the loss over pairs, and the result lies below random directions."""
    E = np.random.default_rng(0).standard_normal((30, 8))
    pairs = ((E @ E.T - np.diag((E**2).sum(1))) ** 2).sum()
    np.testing.assert_allclose(((E.T @ E) ** 2).sum() - ((E**2).sum(1) ** 2).sum(), pairs)
    make = jax.jit(
        partial(world.orthogonalised_directions, n_features=48, d=16, learning_rate=1e-2), static_argnames="steps"
    )
    off = lambda D: (np.asarray(D @ D.T) ** 2).sum() - 48
    before, after = (make(jax.random.key(0), steps=steps) for steps in (0, 100))
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, rtol=1e-5)
    # a tight frame has Σ_{i≠j} cos² = n²/d - n: nothing is lower
    assert 48 * 48 / 16 - 48 - 1e-3 < off(after) < 0.8 * off(before)
    with pytest.raises(UserError, match="at most 4"):
        world.orthonormal_directions(jax.random.key(0), 5, 4)


def test_two_models_and_what_each_loss_makes_of_them():
    contributions = ((1, 1), (1, 0.3), (1, 0), (0, 1))
    _, x, codes = sampled(partial(shrinkage.two_models, contributions=contributions), n=1000)
    np.testing.assert_array_equal((codes > 0).sum(1), 1)
    norms = np.linalg.norm(x.reshape(1000, 2, 16), axis=2)
    np.testing.assert_allclose(norms, np.asarray(contributions)[codes.argmax(1)], atol=1e-5)
    np.testing.assert_allclose(shrinkage.shrunk([(1, 0.3)], 0.8, "l1"), [[0.6, 0]])
    a, b = shrinkage.shrunk([(1, 0.3)], 0.8, "l2")[0]
    assert b / a == pytest.approx(0.3)
    # the minimum of each loss over a fine grid of learned contributions
    grid = np.linspace(0, 1.2, 601)
    u, v = np.meshgrid(grid, grid, indexing="ij")
    penalties = {"l1": u + v, "l2": np.hypot(u, v)}
    for name, penalty in penalties.items():
        for target in contributions:
            loss = (u - target[0]) ** 2 + (v - target[1]) ** 2 + 0.8 * penalty
            i, j = np.unravel_index(loss.argmin(), loss.shape)
            np.testing.assert_allclose([grid[i], grid[j]], shrinkage.shrunk([target], 0.8, name)[0], atol=3e-3)
