"""Reports on circuits: closed forms on additive units, MIB's definitions, ROC by counting pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from additive_units import additive

from jax_interp.circuits.discovery.mib_file import mib_graph
from jax_interp.circuits.discovery.selection import MIB_FRACTIONS, first, ranked
from jax_interp.circuits.discovery.units import EdgeUnits, run_circuits
from jax_interp.circuits.evaluation.bases import Basis, compare_bases, description_length, jaccard
from jax_interp.circuits.evaluation.knockouts import completeness, minimality, random_knockouts
from jax_interp.circuits.evaluation.ranking import known_nodes, mib_auroc, node_scores, roc
from jax_interp.circuits.evaluation.report import evaluate, evaluate_circuits
from jax_interp.core.errors import UserError

WEIGHTS = np.array([4.0, -2.0, 1.0, 0.5, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0])
OFFSETS = np.array([0.5, -0.5, 1.0, 0.0])
FRACTIONS = (0.1, 0.2, 0.3, 0.5, 1.0)


def test_faithfulness_cpr_and_cmd_are_those_of_mib():
    model, contrast, units = additive(WEIGHTS, OFFSETS)
    report = evaluate(model, contrast, units, WEIGHTS, fractions=FRACTIONS, seeds=3)
    expected = np.cumsum(WEIGHTS)[[0, 1, 2, 4, 9]] / WEIGHTS.sum()
    np.testing.assert_allclose(report.faithfulness().values[:, 0], expected, rtol=1e-5)
    area_under = area_from_1 = 0.0
    for i in range(len(FRACTIONS) - 1):  # as evaluate_area_under_curve of MIB-circuit-track writes it
        width = FRACTIONS[i + 1] - FRACTIONS[i]
        area_from_1 += width * ((abs(1.0 - expected[i]) + abs(1.0 - expected[i + 1])) / 2)
        area_under += width * ((expected[i] + expected[i + 1]) / 2)
    assert report.cpr().value == pytest.approx(area_under, rel=1e-5)
    assert report.cmd().value == pytest.approx(area_from_1, rel=1e-5)
    # the offsets of the prompts cancel, so the interval has no width
    np.testing.assert_allclose(report.faithfulness().values[:, 1], expected, rtol=1e-4)
    chance = report.random_cpr()
    assert chance.low < chance.value < chance.high
    assert report.to_json()["random"]["seeds"] == 3


def test_the_interval_is_that_of_the_bootstrap():
    """Circuits that help some prompts only: the interval covers what other draws of prompts give."""
    model, contrast, units = additive(WEIGHTS, np.random.default_rng(0).normal(size=40))
    report = evaluate_circuits(model, contrast, units, first(ranked(units, WEIGHTS), [1, 10]), seeds=2)
    noisy = report.metric.values + np.random.default_rng(1).normal(size=(1, 40)) * WEIGHTS.sum()
    object.__setattr__(report.metric, "values", noisy)
    value, low, high = report.faithfulness().values[0]
    error = np.std(noisy[0] - report.corrupted) / WEIGHTS.sum() / math.sqrt(40)
    assert 3 * error < high - low < 5 * error
    assert low < value < high


def test_circuits_run_in_groups_give_the_same():
    model, contrast, units = additive(WEIGHTS, OFFSETS)
    keep = np.random.default_rng(0).random((7, 10))
    expected = OFFSETS[None] + (keep @ WEIGHTS)[:, None]
    for tokens in (1, 3, 9, 1000):
        found = run_circuits(model, contrast, units, keep.astype(np.float32), tokens_at_once=tokens)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_completeness_and_minimality_in_closed_form():
    model, contrast, units = additive(WEIGHTS, OFFSETS)
    keep = np.arange(10) < 3
    parts = random_knockouts(units, keep, 6, seed=1)
    assert not parts[:, ~keep].any()
    found = completeness(model, contrast, units, keep, parts)
    # what the circuit lacks is the same for every knockout of an additive model
    for one in found.differences():
        assert one.value == pytest.approx(WEIGHTS[~keep].sum() / WEIGHTS.sum(), rel=1e-4)
    assert found.complement.value == pytest.approx(WEIGHTS[~keep].sum() / WEIGHTS.sum(), rel=1e-4)
    needed = minimality(model, contrast, units, keep, outside=7)
    assert [round(one.value * 4, 4) for one in needed.estimates().values()] == [4.0, -2.0, 1.0]
    np.testing.assert_allclose(sorted(needed.outside.values.mean(axis=1) * 4), sorted(WEIGHTS[3:]), atol=1e-5)
    assert needed.unneeded() == []
    larger = minimality(model, contrast, units, np.arange(10) < 8, outside=2)
    assert set(larger.unneeded()) == {units.names[6], units.names[7]}


def test_roc_by_its_definition():
    rng = np.random.default_rng(0)
    known = rng.random(300) < 0.1
    scores = np.round(known + rng.normal(size=300), 1)  # with ties
    found = roc(scores, known)
    pairs = np.sign(scores[known][:, None] - scores[~known][None, :])
    assert found.auc == pytest.approx(((pairs + 1) / 2).mean())
    points = [((scores[~known] >= t).mean(), (scores[known] >= t).mean()) for t in sorted(set(scores), reverse=True)]
    np.testing.assert_allclose(np.stack([found.false_positive, found.true_positive], 1), [(0, 0), *points])
    assert np.trapezoid(found.true_positive, found.false_positive) == pytest.approx(found.auc)
    assert found.chance.low < 0.5 < found.chance.high < found.auc
    assert roc(known.astype(float), known).first == 1.0
    assert roc(np.zeros(300), known).auc == 0.5
    assert roc(np.zeros(300), known).first == 0.0


def test_nodes_and_the_auroc_of_mib():
    units = EdgeUnits(mib_graph(3, 4))
    known = np.isin(units.names, ["input->a0.h1<v>", "a0.h1->a2.h3<k>", "a2.h3->logits", "input->a2.h3<q>"])
    assert np.asarray(units.graph.source_names)[known_nodes(units, known)].tolist() == ["input", "a0.h1", "a2.h3"]
    scores = node_scores(units, np.where(known, -2.0, 1.0))
    assert roc(scores, known_nodes(units, known)).auc == 1.0
    assert mib_auroc(units, np.where(known, 2.0, 1.0), known) > 0.97
    assert mib_auroc(units, np.where(known, 0.0, 1.0), known) < 0.6


def test_bases_at_equal_faithfulness():
    model, contrast, units = additive(WEIGHTS[[0, 2, 3, 4, 5, 6]], OFFSETS)  # 4, 1, .5, .25, .25, 0: sum 6
    scores = np.array([[4, 1, 0.5, 0.25, 0.25, 0], [4, 0.5, 1, 0.25, 0.25, 0]])
    fine = Basis(model, units, scores)
    late = Basis(model, units, scores[:1, ::-1])
    one, other = compare_bases(model, contrast, {"fine": fine, "late": late}, faithfulness=0.8)
    assert (one.size, one.units) == (2, 6)
    assert one.faithfulness.value == pytest.approx(5 / 6, rel=1e-5)
    assert one.bits == pytest.approx(math.log2(math.comb(6, 2)) + math.log2(7))
    assert one.agreement == pytest.approx(1 / 3)
    assert one.chance_agreement == pytest.approx(2 / 10)
    assert other.size == 6
    assert math.isnan(other.agreement)
    assert one.random_size > one.size
    never = compare_bases(model, contrast, {"fine": fine}, faithfulness=1.5)[0]
    assert never.size is None
    assert never.to_json()["bits"] is None
    assert description_length(5, 0) == pytest.approx(math.log2(6))
    assert jaccard([np.zeros(3, bool)] * 2) == 1.0


def test_what_cannot_be_judged_is_refused():
    model, contrast, units = additive(WEIGHTS, OFFSETS)
    flat, nan = additive(np.zeros(10), OFFSETS), additive(WEIGHTS, [0.0, np.nan, 0.0])
    with pytest.raises(UserError, match="faithfulness is not defined"):
        evaluate(*flat, WEIGHTS)
    with pytest.raises(UserError, match=r"not finite for the prompts \[1\]"):
        evaluate(*nan, WEIGHTS)
    with pytest.raises(UserError, match="at least two prompts"):
        evaluate(*additive(WEIGHTS, [1.0]), WEIGHTS)
    with pytest.raises(UserError, match="ascending order"):
        evaluate_circuits(model, contrast, units, np.array([np.ones(10, bool), np.zeros(10, bool)]))
    with pytest.raises(UserError, match="needs some in it and some not"):
        roc(WEIGHTS, np.zeros(10, bool))
    with pytest.raises(UserError, match="are NaN"):
        roc(np.full(10, np.nan), np.arange(10) < 2)
    assert len(MIB_FRACTIONS) == 10
