"""Measures of scores against their definitions, closed forms and exact coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from jax_interp import UserError
from jax_interp.probes.measures import (
    auroc,
    auroc_difference,
    auroc_interval,
    calibration,
    clopper_pearson,
    newcombe,
    recall_at_fpr,
    roc_curve,
    share_interval,
    threshold_at_fpr,
)


def by_pairs(scores, positive):
    """AUROC by its definition: over all pairs of a positive and a negative example."""
    difference = scores[positive][:, None] - scores[~positive][None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean()


@pytest.mark.parametrize("values", [3, 50, 10**6])
def test_auroc_is_the_share_of_pairs_in_order(values):
    rng = np.random.default_rng(values)
    scores, positive = rng.integers(0, values, (4, 90)).astype(float), rng.random(90) < 0.3
    expected = [by_pairs(row, positive) for row in scores]
    np.testing.assert_allclose(auroc(scores, positive), expected, atol=1e-12)
    np.testing.assert_allclose(auroc(-scores, positive), 1 - np.array(expected), atol=1e-12)
    np.testing.assert_allclose([roc_curve(row, positive).area for row in scores], expected, atol=1e-12)


def test_two_normal_distributions():
    """Scores N(2, 1) and N(0, 1): AUROC Φ(√2) and recall 1 - Φ(z.99 - 2). The drawn figures are known."""
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(2, 1, 500), rng.normal(0, 1, 1000)
    scores, truth = np.append(positive, negative), np.arange(1500) < 500
    found = recall_at_fpr(positive, negative, 0.01)
    assert auroc(scores, truth) == pytest.approx(0.922666, abs=5e-7)
    assert found.threshold.value == pytest.approx(2.2324, abs=5e-5)
    assert found.recall.value == pytest.approx(0.396, abs=5e-7)
    interval = auroc_interval(scores, truth)
    assert interval.low < ndtr(2**0.5) < interval.high
    expected = 1 - ndtr(ndtri(0.99) - 2)
    assert found.recall_with_threshold.low < expected < found.recall_with_threshold.high
    assert found.threshold.low < ndtri(0.99) < found.threshold.high
    assert found.resolved
    assert not recall_at_fpr(positive, negative, 0.001).resolved


def test_intervals_of_auroc_cover_the_true_one():
    truth, true = np.arange(120) < 50, ndtr(1 / 2**0.5)
    rng, covered = np.random.default_rng(1), np.zeros(3)
    for _ in range(150):
        scores = rng.normal(0, 1, 120) + truth
        value = float(auroc(scores, truth))
        found = [
            auroc_interval(scores, truth),
            auroc_interval(np.repeat(scores, 3), np.repeat(truth, 3), np.repeat(np.arange(120), 3)),
            newcombe(value, 50, 70),
        ]
        covered += [interval.low <= true <= interval.high for interval in found]
    # 95 %, with three standard errors of 150 draws
    assert (covered / 150 >= 0.895).all(), covered


def test_examples_of_one_group_count_once():
    """Each example ten times: with groups the interval is that of the single examples, without it is √10 narrower."""
    rng, truth = np.random.default_rng(2), np.arange(80) < 40
    scores = rng.normal(0, 1, 80) + truth
    width = lambda interval: interval.high - interval.low
    once = width(auroc_interval(scores, truth))
    tenfold = np.repeat(scores, 10), np.repeat(truth, 10)
    assert width(auroc_interval(*tenfold, np.repeat(np.arange(80), 10))) == pytest.approx(once, rel=0.01)
    assert width(auroc_interval(*tenfold)) == pytest.approx(once / 10**0.5, rel=0.1)
    assert width(auroc_interval(*tenfold, np.arange(800))) == pytest.approx(once / 10**0.5, rel=0.1)


def test_the_interval_with_groups_is_that_of_a_bootstrap_over_groups():
    """Groups of a positive and a negative example with a common shift, and groups of one."""
    rng = np.random.default_rng(7)
    groups = np.append(np.repeat(np.arange(60), 2), np.arange(60, 100))
    truth = np.append(np.tile([True, False], 60), rng.random(40) < 0.3)
    shift = rng.normal(0, 2, 100)[groups]
    scores = rng.normal(0, 1, truth.size) + truth + shift
    drawn = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(groups == group) for group in rng.integers(0, 100, 100)])
        drawn.append(by_pairs(scores[rows], truth[rows]))
    width = lambda interval: interval.high - interval.low
    found = auroc_interval(scores, truth, groups)
    assert width(found) == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.1)
    assert width(found) < 0.7 * width(auroc_interval(scores, truth))  # what the two sides of a pair share cancels


def test_a_perfect_auroc_has_an_interval():
    truth = np.arange(20) < 10
    for groups in (None, np.arange(20)):
        found = auroc_interval(truth.astype(float), truth, groups)
        assert found.value == found.high == 1
        assert found.low == pytest.approx(newcombe(1.0, 10, 10).low)
        assert found.low < 0.9
    few = auroc_interval(np.repeat(truth, 50).astype(float), np.repeat(truth, 50), np.repeat(np.arange(20), 50))
    assert few.low == pytest.approx(newcombe(1.0, 10, 10).low)  # 20 groups, not 1000 examples


def test_a_difference_of_two_scores_is_paired():
    rng, truth = np.random.default_rng(3), np.arange(200) < 100
    scores = rng.normal(0, 1, 200) + truth
    same = auroc_difference(scores, 3 * scores + 1, truth)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    worse = scores + rng.normal(0, 1.5, 200)
    gap = auroc_difference(scores, worse, truth)
    assert gap.value == pytest.approx(by_pairs(scores, truth) - by_pairs(worse, truth))
    assert 0 < gap.low < gap.value < gap.high


@pytest.mark.parametrize(("hits", "trials"), [(0, 7), (3, 7), (7, 7), (1, 1000)])
def test_clopper_pearson_is_where_the_tails_are_2_5_percent(hits, trials):
    from scipy.stats import binom

    found = clopper_pearson(hits, trials)
    assert found.value == hits / trials
    if hits:
        assert binom.sf(hits - 1, trials, found.low) == pytest.approx(0.025)
    if hits < trials:
        assert binom.cdf(hits, trials, found.high) == pytest.approx(0.025)
    assert (found.low == 0) == (hits == 0)
    assert (found.high == 1) == (hits == trials)


@pytest.mark.parametrize(("n", "fpr"), [(100, 0.01), (500, 0.01), (200, 0.1)])
def test_intervals_of_recall_cover_the_true_one(n, fpr):
    rng, threshold = np.random.default_rng(n), ndtri(1 - fpr)
    true, covered = 1 - ndtr(threshold - 2), np.zeros(2)
    for seed in range(200):
        found = recall_at_fpr(rng.normal(2, 1, 300), rng.normal(0, 1, n), fpr, draws=500, seed=seed)
        covered += [
            found.threshold.low <= threshold <= found.threshold.high,
            found.recall_with_threshold.low <= true <= found.recall_with_threshold.high,
        ]
    assert (covered / 200 >= 0.93).all(), covered
    # 36 % of all samples of 100 have no score above the true threshold: nothing bounds it
    assert (found.recall_with_threshold.low == 0) == (n == 100)
    assert (found.to_json()["threshold"]["high"] is None) == (n == 100)


def test_few_controls_cannot_show_a_small_rate():
    control = np.random.default_rng(5).normal(0, 1, 999)
    with pytest.raises(UserError, match="give at least 1000"):
        threshold_at_fpr(control, 0.001)
    assert threshold_at_fpr(np.append(control, 0), 0.001) < control.max()
    assert not (control > threshold_at_fpr(np.ones(100), 0.01)).all()
    assert recall_at_fpr(np.ones(5), np.ones(100), 0.01).recall.value == 0  # equal to the threshold is not above it


def test_calibration():
    p, y = np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.5]), np.array([0, 0, 0, 1, 1, 1, 0], bool)
    found = calibration(p, y, bins=5)
    np.testing.assert_array_equal(found.count, [4, 0, 1, 0, 2])
    np.testing.assert_allclose(found.frequency, [0.25, np.nan, 0, np.nan, 1])
    assert found.ece == pytest.approx((4 * 0.15 + 0.5 + 2 * 0.1) / 7)
    assert found.brier == pytest.approx((3 * 0.01 + 0.81 + 2 * 0.01 + 0.25) / 7)
    assert found.log_loss == pytest.approx(-(3 * np.log(0.9) + np.log(0.1) + 2 * np.log(0.9) + np.log(0.5)) / 7)
    rng = np.random.default_rng(6)
    p = rng.random(100_000)
    good = calibration(p, rng.random(p.size) < p)
    assert good.ece < 0.01
    assert good.brier == pytest.approx(1 / 6, abs=0.003)  # ∫ p (1-p) dp
    assert calibration(p**3, rng.random(p.size) < p).ece > 0.2
    assert len(good.to_json()["count"]) == 10


@pytest.mark.parametrize(
    ("scores", "positive", "message"),
    [
        ([0.0, np.nan], [True, False], "1 of 2 scores are NaN"),
        ([0.0, 1.0], [True, True], "both classes"),
        ([0.0, 1.0], [True, False, True], "there are labels of shape"),
        ([0.0, 1.0], [2, 1], "give booleans"),
    ],
)
def test_what_has_no_auroc_is_refused(scores, positive, message):
    for measure in (auroc, roc_curve, auroc_interval):
        with pytest.raises(UserError, match=message):
            measure(np.array(scores), np.array(positive))


def test_what_has_no_figure_is_refused():
    with pytest.raises(UserError, match="not finite"):
        recall_at_fpr(np.array([np.nan]), np.zeros(200), 0.01)
    with pytest.raises(UserError, match="between 0 and 1"):
        threshold_at_fpr(np.zeros(200), 1.5)
    with pytest.raises(UserError, match="one score for each"):
        recall_at_fpr(np.zeros(0), np.zeros(200), 0.01)
    with pytest.raises(UserError, match="8 hits of 7"):
        clopper_pearson(8, 7)
    with pytest.raises(UserError, match=r"not in \[0, 1\]"):
        calibration(np.array([1.5]), np.array([True]))


def test_the_interval_of_a_share_counts_groups():
    rng = np.random.default_rng(8)
    hits = rng.random(100) < 0.8
    alone = share_interval(hits)
    assert alone == clopper_pearson(int(hits.sum()), 100)
    tenfold = share_interval(np.repeat(hits, 10), np.repeat(np.arange(100), 10))
    assert tenfold.high - tenfold.low == pytest.approx(alone.high - alone.low, rel=0.1)
    always = share_interval(np.ones(100, bool), np.arange(100) // 10)
    assert (always.value, always.low) == (1, clopper_pearson(10, 10).low)
