"""Steerability: slopes, shares and factors against closed forms and scipy."""

from __future__ import annotations

import numpy as np
import pytest

from jax_interp.core import config_json
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json, write_json
from jax_interp.steering.measuring import (
    STRENGTHS,
    Propensities,
    Steerability,
    eta_squared,
    rank_correlation,
    slopes,
    spread,
    steerability,
)

N = 60


def drawn(seed: int = 0, groups: np.ndarray | None = None, **factors: tuple[str, ...]) -> Propensities:
    rng = np.random.default_rng(seed)
    strengths = np.asarray(STRENGTHS)
    m = rng.normal(size=(N, 1)) + rng.normal(1, 1.5, size=(N, 1)) * strengths + rng.normal(size=(N, 7)) / 2
    other = -np.logaddexp(0, m) - rng.uniform(0, 1, size=(N, 1))
    return Propensities("set", strengths, m + other, other, np.arange(N) if groups is None else groups, factors)


def test_slopes_are_those_of_polyfit_and_the_slope_of_the_mean_is_their_mean():
    found = drawn()
    of_question = slopes(found.strengths, found.values)
    assert of_question == pytest.approx(np.polyfit(found.strengths, found.values.T, 1)[0])
    report = steerability(found)
    of_mean = np.polyfit(found.strengths, [one.mean.value for one in report.curve], 1)[0]
    assert report.slope.mean.value == pytest.approx(of_mean, abs=1e-12)
    assert report.slope.sd == pytest.approx(of_question.std())
    assert report.anti_steerable.value == pytest.approx((of_question < 0).mean())
    assert report.slope.mean.low < report.slope.mean.value < report.slope.mean.high


def test_rank_correlations_and_r_squared_are_those_of_scipy():
    from scipy import stats

    found = drawn()
    values = np.round(found.values)  # with ties
    wanted = [stats.spearmanr(found.strengths, row).statistic for row in values]  # type: ignore[attr-defined]
    assert rank_correlation(found.strengths, values) == pytest.approx(wanted)
    assert np.isnan(rank_correlation(found.strengths, np.ones((1, 7)))).all()
    report = steerability(found)
    squared = [stats.linregress(found.strengths, row).rvalue ** 2 for row in found.values]  # type: ignore[attr-defined]
    assert report.r_squared.mean.value == pytest.approx(np.mean(squared))


def test_eta_squared_is_that_of_an_analysis_of_variance():
    from scipy import stats

    rng = np.random.default_rng(1)
    y, levels = rng.normal(size=N), np.asarray(["a", "b", "c"])[rng.integers(0, 3, N)]
    f = stats.f_oneway(*(y[levels == level] for level in "abc")).statistic
    between = f * 2 / (N - 3)  # F = (η² / (k - 1)) / ((1 - η²) / (n - k))
    found = eta_squared(y, levels.tolist(), np.arange(N))
    assert found.value == pytest.approx(between / (1 + between))
    assert found.low < found.value < found.high
    shifted = eta_squared(1e6 + y, levels.tolist(), np.arange(N))
    assert shifted.value == pytest.approx(found.value, rel=1e-6)


def test_a_drawn_set_has_the_published_figures():
    # Figures that were computed elsewhere for 200 questions: slope 1.0858, sd 1.642, anti-steerable .285, η² .2266.
    rng = np.random.default_rng(0)
    own, base, letter = rng.normal(size=200), rng.normal(size=200), rng.integers(0, 2, 200)
    strengths = np.asarray(STRENGTHS)
    slope = 1.0 + 1.5 * own + 0.8 * (2 * letter - 1)
    m = base[:, None] + slope[:, None] * strengths + 0.1 * rng.normal(size=(200, 7))
    levels = tuple(np.asarray(["A", "B"])[letter].tolist())
    report = steerability(Propensities("set", strengths, m, np.zeros_like(m), np.arange(200), {"letter": levels}))
    assert report.slope.mean.value == pytest.approx(1.0858, abs=5e-5)
    assert report.slope.sd == pytest.approx(1.642, abs=5e-4)
    assert report.anti_steerable.value == pytest.approx(0.285)
    assert report.factors["letter"].eta_squared.value == pytest.approx(0.2266, abs=5e-5)


def test_two_levels_with_known_slopes_have_a_known_share_of_variance():
    # slopes 1 ± 2 by letter and ± 1 within: η² = 4 / (4 + 1)
    slope = np.tile([4.0, 2.0, 0.0, -2.0], 10)
    strengths = np.asarray([-1.0, 0.0, 1.0])
    m = slope[:, None] * strengths
    letter = tuple(np.tile(["A", "A", "B", "B"], 10).tolist())
    found = Propensities("set", strengths, m, np.zeros_like(m), np.arange(40), {"letter": letter, "one": ("x",) * 40})
    report = steerability(found)
    assert list(report.factors) == ["letter"]
    factor = report.factors["letter"]
    assert factor.eta_squared.value == pytest.approx(0.8)
    assert factor.by_chance == pytest.approx(1 / 39)
    assert {name: level.slope.mean.value for name, level in factor.levels.items()} == {"A": 3.0, "B": -1.0}
    assert factor.levels["B"].anti_steerable.value == 0.5
    assert report.anti_steerable.value == 0.25
    assert report.r_squared.mean.value == pytest.approx(1.0)


def test_all_factors_together_explain_at_least_what_each_explains():
    rng = np.random.default_rng(3)
    pick = lambda names: tuple(np.asarray(names)[rng.integers(0, len(names), N)].tolist())
    report = steerability(drawn(letter=pick(["A", "B"]), yes_no=pick(["yes", "no", "neither"])))
    joint = report.factors["all factors"]
    assert joint.eta_squared.value >= max(report.factors[f].eta_squared.value for f in ("letter", "yes_no"))
    assert sum(level.slope.n for level in joint.levels.values()) == N


def test_an_interval_counts_copies_of_a_question_once():
    # 30 questions, each twice: the interval of the mean is that of 30 samples, not of 60.
    rng = np.random.default_rng(0)
    y = rng.normal(size=30)
    once = spread(y)
    twice = spread(np.repeat(y, 2), np.repeat(np.arange(30), 2))
    assert twice.mean == once.mean
    assert (twice.n, twice.groups) == (60, 30)
    width = once.mean.high - once.mean.low
    assert width == pytest.approx(2 * 1.96 * y.std() / 30**0.5, rel=0.15)


def test_what_cannot_be_known_is_nan_and_not_a_number():
    one = spread(np.asarray([3.0]))
    assert one.mean.value == 3.0
    assert np.isnan([one.mean.low, one.mean.high]).all()
    assert np.isnan(spread(np.asarray([])).mean.value)
    assert np.isnan(eta_squared(np.full(6, 0.1), list("aabbcc"), np.arange(6)).value)
    with pytest.raises(UserError, match="sample 1 is not finite"):
        spread(np.asarray([1.0, np.nan]))
    constant = Propensities("set", np.asarray([0.0, 1.0]), np.zeros((4, 2)), np.ones((4, 2)), np.arange(4))
    report = steerability(constant)
    assert (report.slope.mean.value, report.spearman.n) == (0.0, 0)
    with pytest.raises(UserError, match="two strengths"):
        slopes(np.asarray([1.0]), np.ones((2, 1)))


def test_figures_are_read_back_as_they_were_written(tmp_path):
    found = drawn(letter=("A", "B") * (N // 2), template=("plain",) * 20 + ("chat",) * 40)
    report = steerability(found)
    write_json(tmp_path / "figures.json", config_json.to_json(report, nonfinite=True), nonfinite=True)
    assert config_json.from_json(Steerability, read_json(tmp_path / "figures.json", nonfinite=True)) == report
    again = Propensities.from_json(found.to_json())
    assert np.array_equal(again.values, found.values)
    assert again.factors == found.factors
