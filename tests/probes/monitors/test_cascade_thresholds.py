"""The search for the thresholds of a cascade: brute force, Gaussian scores in closed form, and guarantees."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from jax_interp import UserError
from jax_interp.probes.monitors.thresholds import Staged, Thresholds, search

C1, C2 = 1.0, 20.0


def staged(first, second, c1=C1, c2=C2):
    return Staged(first, second, np.full(len(first), c1), np.full(len(first), c2))


def gaussian(n, seed, shift=(0.0, 0.0)):
    rng = np.random.default_rng(seed)
    return staged(rng.standard_normal(n) + shift[0], rng.standard_normal(n) + shift[1])


def figures(thresholds: Thresholds, positive: Staged, control: Staged):
    recall, false = (float(thresholds.alarm(of.first, of.second).mean()) for of in (positive, control))
    sent = thresholds.escalated(control.first)
    return recall, false, float((control.first_cost + sent * control.second_cost).mean())


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_what_brute_force_finds(seed):
    rng = np.random.default_rng(seed)
    draw = lambda n, shift: staged(rng.integers(0, 6, n) + shift, rng.integers(0, 6, n) + shift, C1, C2)
    positive, control = draw(9, 1.0), draw(14, 0.0)
    firsts = [-np.inf, *np.unique(np.concatenate([positive.first, control.first])), np.inf]
    seconds = [-np.inf, *np.unique(np.concatenate([positive.second, control.second]))]
    grid = search(positive, control, fpr=0.15)
    every = [
        figures(Thresholds(low, flag, second), positive, control)
        for low, flag, second in product(firsts, firsts, seconds)
        if low <= flag
    ]
    for budget in (C1, 4.0, 9.0, 15.0, np.inf):
        best = max(recall for recall, false, cost in every if false <= 0.15 and cost <= budget + 1e-9)
        cheapest = min(cost for recall, false, cost in every if false <= 0.15 and recall == best)
        found = grid.best(budget)
        assert found.recall == best
        assert found.cost == pytest.approx(cheapest)
        recall, false, cost = figures(found.thresholds, positive, control)
        assert (recall, false, cost) == pytest.approx((found.recall, found.false_positives, found.cost))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [20, 200, 10_000])
def test_it_is_never_worse_than_the_better_monitor_that_is_allowed(seed, levels):
    positive, control = gaussian(150, seed, (1.5, 2.0)), gaussian(300, seed + 50)
    grid = search(positive, control, fpr=0.02, levels=levels)
    alone = [
        float((of > np.sort(benign)[-7]).mean())  # 6 of 300 lie above
        for of, benign in ((positive.first, control.first), (positive.second, control.second))
    ]
    cheap = grid.best(C1)
    assert cheap.recall == alone[0]
    assert (cheap.cost, cheap.escalated) == (C1, 0.0)
    assert grid.best().recall >= max(alone)
    recalls = [grid.best(budget).recall for budget in np.linspace(C1, C1 + C2, 12)]
    assert (np.diff(recalls) >= 0).all()
    for budget in np.linspace(C1, C1 + C2, 12):
        found = grid.best(budget)
        assert found.cost <= budget + 1e-9
        assert found.false_positives <= 0.02


def population(low, flag, second, shift=(0.0, 0.0)):
    """(share with an alarm, share that is escalated) of independent normal scores."""
    above = lambda t, mean: stats.norm.sf(t - mean)
    band = above(low, shift[0]) - above(flag, shift[0])
    return above(flag, shift[0]) + band * above(second, shift[1]), band


def best_of_the_population(shift, fpr, share):
    """The best recall with a share of the benign traffic escalated, by integration and a scan of `flag`."""

    def recall(flag):
        low = stats.norm.isf(stats.norm.sf(flag) + share)
        left = fpr - stats.norm.sf(flag)
        return population(low, flag, stats.norm.isf(left / share), shift)[0]

    least = stats.norm.isf(fpr) + 1e-6
    found: Any = optimize.minimize_scalar(lambda flag: -recall(flag), bounds=(least, 8), method="bounded")
    return max(-found.fun, recall(8.0))


def test_gaussian_scores_have_the_figures_of_integration():
    shift, fpr = (1.5, 2.5), 0.01
    positive, control = gaussian(10_000, 1, shift), gaussian(20_000, 2)
    grid = search(positive, control, fpr=fpr, levels=60)
    for share in (0.02, 0.1, 0.4):
        found = grid.best(C1 + share * C2)
        t = found.thresholds
        recall, _ = population(t.escalate, t.flag, t.second, shift)
        false, sent = population(t.escalate, t.flag, t.second)
        assert found.recall == pytest.approx(recall, abs=0.015)
        assert false == pytest.approx(fpr, abs=0.002)
        assert found.escalated == pytest.approx(sent, abs=0.006)
        assert recall == pytest.approx(best_of_the_population(shift, fpr, share), abs=0.025)
    assert grid.best(C1).recall == pytest.approx(stats.norm.cdf(1.5 - stats.norm.isf(fpr)), abs=0.02)


def test_costs_are_those_of_the_traffic():
    """With costs that differ between examples, and a share of suspicious traffic."""
    rng = np.random.default_rng(0)
    make = lambda n, shift: Staged(*(rng.standard_normal((2, n)) + shift), *rng.uniform(1, 5, (2, n)))
    positive, control = make(80, 1.5), make(200, 0.0)
    found = search(positive, control, fpr=0.02, prevalence=0.25).best(4.5)
    paid = [
        (of.first_cost + found.thresholds.escalated(of.first) * of.second_cost).mean() for of in (control, positive)
    ]
    assert found.cost == pytest.approx(0.75 * paid[0] + 0.25 * paid[1])
    assert found.cost <= 4.5


def test_what_cannot_be_done_is_refused():
    positive, control = gaussian(20, 0), gaussian(50, 1)
    with pytest.raises(UserError, match="at least 100 control examples"):
        search(positive, control, fpr=0.01)
    grid = search(positive, control, fpr=0.1)
    with pytest.raises(UserError, match="first monitor alone costs 1"):
        grid.best(0.5)
    with pytest.raises(UserError, match="first monitor alone costs 1"):
        grid.best(np.nan)
    with pytest.raises(UserError, match="not finite"):
        staged(np.array([1.0, np.nan]), np.zeros(2))
    with pytest.raises(UserError, match="two scores and two costs"):
        Staged(np.zeros(3), np.zeros(2), np.zeros(3), np.zeros(3))
