"""Combinations of scores: known optima of Gaussian scores, SciPy as reference, and invariances."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from jax_interp import UserError
from jax_interp.probes.measures.recall import recall_at_fpr
from jax_interp.probes.measures.roc import auroc
from jax_interp.probes.monitors import (
    COMBINATIONS,
    LikelihoodRatio,
    RankMean,
    Stacking,
    ZScoreMean,
    within_class_correlation,
)

KINDS = [*(kind() for kind in COMBINATIONS), LikelihoodRatio("kernel"), LikelihoodRatio(shared=True)]
MEANS, SCALES = np.array([1.0, 2.0]), np.array([1.0, 3.0])


def drawn(n, seed, shift=MEANS, scale=(1.0, 1.0)):
    """Independent normal scores of two monitors: benign N(0, 1), suspicious N(shift, scale²)."""
    rng = np.random.default_rng(seed)
    positive = np.arange(n) % 2 == 1
    scores = rng.standard_normal((n, 2)) * np.where(positive[:, None], scale, 1.0) + positive[:, None] * shift
    return scores, positive


@pytest.fixture(scope="module")
def data():
    scores, positive = drawn(2000, 0)
    return scores, positive, np.random.default_rng(1).standard_normal((2000, 2))


@pytest.mark.parametrize(
    "kind", [LikelihoodRatio(), LikelihoodRatio(shared=True), LikelihoodRatio("kernel"), Stacking()]
)
def test_the_optimum_of_independent_gaussian_scores_is_reached(kind, data):
    """The likelihood ratio of N(μ, I) against N(0, I) is μ·s, so AUROC = Φ(|μ|/√2) and TPR = Φ(|μ| - z)."""
    combined = kind.fit(*data)
    scores, positive = drawn(6000, 2)
    length = np.linalg.norm(MEANS)
    found = combined(scores)
    assert auroc(found, positive) == pytest.approx(stats.norm.cdf(length / 2**0.5), abs=0.012)
    recall = recall_at_fpr(found[positive], found[~positive], 0.01, draws=10).recall.value
    assert recall == pytest.approx(stats.norm.cdf(length - stats.norm.isf(0.01)), abs=0.04)
    assert recall > recall_at_fpr(scores[positive, 1], scores[~positive, 1], 0.01, draws=10).recall.value + 0.03


def test_gaussian_densities_are_those_of_scipy():
    scores, positive = drawn(300, 3, scale=SCALES)
    new, _ = drawn(50, 4, scale=SCALES)
    found = LikelihoodRatio().fit(scores, positive, scores[~positive])(new)
    log_p = lambda of: stats.norm.logpdf(new, of.mean(axis=0), of.std(axis=0, ddof=1)).sum(axis=1)
    np.testing.assert_allclose(found, log_p(scores[positive]) - log_p(scores[~positive]), atol=1e-9)


def test_kernel_densities_are_those_of_scipy():
    scores, positive = drawn(300, 5, scale=SCALES)
    new, _ = drawn(50, 6)
    found = LikelihoodRatio("kernel").fit(scores, positive, scores[~positive])(new)
    inside, expected = np.clip(new, scores.min(axis=0), scores.max(axis=0)), 0.0
    for monitor in range(2):
        for of, sign in ((scores[positive, monitor], 1), (scores[~positive, monitor], -1)):
            scale = of.std(ddof=1)
            width = 0.9 * min(scale, stats.iqr(of) / 1.34) * len(of) ** -0.2
            expected += sign * stats.gaussian_kde(of, bw_method=width / scale).logpdf(inside[:, monitor])
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_ranks_are_those_of_scipy(data):
    scores, positive, control = data
    control = np.round(control, 1)  # ties
    found = RankMean().fit(scores, positive, control)(np.round(scores[:40], 1))
    expected = [
        np.mean([stats.percentileofscore(control[:, m], round(row[m], 1), "mean") for m in range(2)]) / 100
        for row in scores[:40]
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_z_scores_use_the_control_examples_only(data):
    scores, positive, control = data
    found = ZScoreMean().fit(scores, positive, control)(scores)
    expected = ((scores - control.mean(axis=0)) / control.std(axis=0, ddof=1)).mean(axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_stacking_is_logistic_regression(data):
    scores, positive, control = data
    x = (scores - control.mean(axis=0)) / control.std(axis=0, ddof=1)
    found = Stacking(C=0.5).fit(scores, positive, control)(scores)
    # the optimum is the one point of zero gradient: w = C Σ (y - p) x, 0 = Σ (y - p)
    *w, b = np.linalg.lstsq(np.append(x, np.ones((len(x), 1)), axis=1), found)[0]
    residual = positive - special.expit(x @ w + b)
    np.testing.assert_allclose(0.5 * residual @ x, w, atol=1e-4)
    assert residual.sum() == pytest.approx(0, abs=1e-4)
    np.testing.assert_allclose(found, x @ w + b, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_units_of_scores_do_not_matter(kind, data):
    scores, positive, control = (of[:400] for of in data)
    changed = lambda of: of * np.array([[3.0, 0.01]]) + np.array([[-5.0, 2.0]])
    found = kind.fit(changed(scores), positive, changed(control))(changed(scores))
    np.testing.assert_allclose(found, kind.fit(scores, positive, control)(scores), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_better_score_does_not_lower_the_combination(kind, data):
    """On data in which both monitors are good and the classes have one variance, the optimum grows with each score."""
    combined = kind.fit(*data)
    low = combined(np.array([[0.5, 1.0]]))
    for higher in ([[1.5, 1.0]], [[0.5, 2.0]]):
        assert combined(np.array(higher)) > low


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_cannot_be_fitted_is_refused(kind, data):
    scores, positive, control = data
    with pytest.raises(UserError, match="not finite"):
        kind.fit(np.where(scores > 3, np.nan, scores), positive, control)
    with pytest.raises(UserError, match="one score to all benign control"):
        kind.fit(scores, positive, np.stack([control[:, 0], np.ones(len(control))], axis=1))
    with pytest.raises(UserError, match="must be"):
        kind.fit(scores, positive, control[:, :1])
    if kind.needs_positives:
        with pytest.raises(UserError, match="0 suspicious examples"):
            kind.fit(scores, np.zeros(len(scores), bool), control)


def test_correlation_within_a_class_is_not_that_of_the_classes(data):
    scores, positive, _ = data
    assert np.corrcoef(scores.T)[0, 1] > 0.2
    assert abs(within_class_correlation(scores, positive)[0, 1]) < 0.05
    shared = np.random.default_rng(7).standard_normal(len(scores))
    both = scores + 2 * shared[:, None]
    expected = sum(float(np.corrcoef(stats.rankdata(both[k], axis=0).T)[0, 1]) for k in (positive, ~positive)) / 2
    assert within_class_correlation(both, positive)[0, 1] == pytest.approx(expected, abs=1e-9)
