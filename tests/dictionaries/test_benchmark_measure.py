"""Intervals of benchmarks, against closed forms and against their coverage."""

import numpy as np
import pytest
from scipy import stats

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation.benchmarks.measure import (
    mean_over_examples,
    mean_over_reseeds,
    relative_spread,
)


def test_the_bootstrap_of_one_split_is_binomial():
    hits = [[np.arange(200) < 150]]
    got = mean_over_examples(hits, "")
    low, high = stats.binom.ppf([0.025, 0.975], 200, 0.75) / 200
    assert got.value == 0.75
    assert got.low == pytest.approx(low, abs=0.01)
    assert got.high == pytest.approx(high, abs=0.01)


def test_the_bootstrap_of_numbers_has_the_standard_error_of_the_mean():
    x = np.random.default_rng(0).normal(size=400)
    got = mean_over_examples([[x]], "")
    assert (got.high - got.low) / 2 == pytest.approx(1.96 * x.std() / 20, rel=0.1)


def test_splits_that_disagree_widen_the_interval():
    agree = mean_over_examples([[np.arange(1000) < 500] * 4], "")
    disagree = mean_over_examples([[np.arange(1000) < n for n in (200, 400, 600, 800)]], "")
    assert disagree.value == agree.value
    assert disagree.high - disagree.low > 3 * (agree.high - agree.low)


def test_the_bootstrap_covers_the_truth():
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        hits = [[rng.random(80) < p] for p in (0.6, 0.9)]
        got = mean_over_examples(hits, "", seed=trial)
        inside += got.low <= 0.75 <= got.high
    assert 0.9 <= inside / 200 <= 0.99


def test_reseeds_have_students_interval():
    x = [0.1, 0.4, 0.3]
    got = mean_over_reseeds(x)
    low, high = stats.t.interval(0.95, 2, np.mean(x), stats.sem(x))
    assert (got.low, got.high) == pytest.approx((low, high))
    assert np.isnan(mean_over_reseeds([0.5]).low)
    assert mean_over_reseeds([0.5]).value == 0.5
    assert relative_spread(x) == pytest.approx(np.std(x, ddof=1) / np.mean(x))
    assert np.isnan(relative_spread([0.5]))


def test_nothing_has_no_interval():
    for hits in ([], [[]], [[np.zeros(0)]]):
        with pytest.raises(UserError, match="at least one data set"):
            mean_over_examples(hits, "")
