"""Scores of all units with intervals, and the agreement between judges and between scorers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation.benchmarks.measure import REPLICATES, Estimate, mean_over_examples

if TYPE_CHECKING:
    from jax_interp.dashboards.interpretation.interpret import Report


@dataclasses.dataclass(frozen=True)
class ScorerFigures:
    """The figures of one scorer over all units. Intervals of 95 % are a bootstrap over units.

    Args:
      units: the number of units with a score.
      abstained: the number of units without one, because an answer could not be read.
      score: the mean over units of their score: the fraction of right answers; for simulation, the correlation.
      chance: the score of the better constant answer ("all", "none"); 0 for simulation. With 4 of 14 examples active,
        "none" is right for 71 %.
      balanced: the mean of the true positive rate and the true negative rate, each over the examples of all units.
        Chance is 0.5. None for simulation.
    """

    units: int
    abstained: int
    score: Estimate
    chance: float
    balanced: Estimate | None


def summarise(
    truth: Sequence[Sequence[bool]], answers: Sequence[Sequence[bool]], abstained: int, seed: int = 0
) -> ScorerFigures:
    """The figures of answers "yes" or "no", with one row for each unit.

    Args:
      truth: the right answers.
      answers: the given answers.
      abstained: the number of units without answers.
      seed: the seed of the bootstrap.
    """
    right = [np.asarray(a) == np.asarray(t) for a, t in zip(answers, truth, strict=True)]
    counts = np.array(
        [
            (np.sum(r & t), np.sum(t), np.sum(r & ~t), np.sum(~t))
            for r, t in zip(right, (np.asarray(t, bool) for t in truth))
        ],
        np.float64,
    ).reshape(-1, 4)
    positive, negative = counts[:, 1].sum(), counts[:, 3].sum()
    chance = float(np.mean([np.mean(t) for t in truth])) if len(counts) else float("nan")
    return ScorerFigures(
        len(counts),
        abstained,
        mean_of_units([float(np.mean(r)) for r in right], seed),
        max(chance, 1 - chance),
        _balanced(counts, seed) if positive and negative else _undefined(len(counts)),
    )


def mean_of_units(scores: Sequence[float], seed: int = 0) -> Estimate:
    """The mean over units with a bootstrap interval over units. NaN without units."""
    if not len(scores):
        return _undefined(0)
    return mean_over_examples([[np.asarray(scores, np.float64)]], f"{len(scores)} units", seed=seed)


def _undefined(units: int) -> Estimate:
    nan = float("nan")
    return Estimate(nan, nan, nan, f"{units} units")


def _balanced(counts: np.ndarray, seed: int) -> Estimate:
    """Balanced accuracy from (true positives, positives, true negatives, negatives) of each unit."""

    def of(sums: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (sums[..., 0] / sums[..., 1] + sums[..., 2] / sums[..., 3]) / 2

    n = len(counts)
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=REPLICATES)
    low, high = np.nanquantile(of(times @ counts), [0.025, 0.975])
    return Estimate(float(of(counts.sum(0))), float(low), float(high), f"{n} units")


def cohens_kappa(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Cohen's kappa of two series of yes and no: (agreement - chance) / (1 - chance). 1: they agree always; 0: as often
    as independent answers with these rates. NaN where both are the same constant.

    Raises:
      UserError: the series are empty or of different lengths.
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if a.shape != b.shape or not a.size:
        raise UserError(f"kappa of {a.size} and {b.size} answers: give two series of one length, not empty")
    p, q = a.mean(), b.mean()
    chance = p * q + (1 - p) * (1 - q)
    return float((np.mean(a == b) - chance) / (1 - chance)) if chance < 1 else float("nan")


def judge_agreement(first: Report, second: Report) -> dict[str, float]:
    """Cohen's kappa of two judges on the single answers of each scorer with yes-or-no answers.

    Both judges must have judged the same examples by the same explanations: give the second run the `explanations` of
    the first. Units that one of them has no answer for are left out.

    Raises:
      UserError: the reports have no unit in common, or judge different explanations or examples.
    """
    kappas = {}
    others = {unit.unit: unit for unit in second.units}
    pairs = [(unit, others[unit.unit]) for unit in first.units if unit.unit in others]
    if not pairs:
        raise UserError("the two reports have no unit in common")
    for a, b in pairs:
        if a.explanation != b.explanation:
            raise UserError(
                f"unit {a.unit} has two explanations, {a.explanation!r:.60} and {b.explanation!r:.60}: run the second "
                "judge with explanations=first.explanations"
            )
        if a.truth != b.truth:
            raise UserError(f"the two judges saw different examples of unit {a.unit}: use the same text and protocol")
    for scorer in ("detection", "fuzzing"):
        both = [(a.answers[scorer], b.answers[scorer]) for a, b in pairs if scorer in a.answers and scorer in b.answers]
        if both:
            kappas[scorer] = cohens_kappa(*(list(itertools.chain(*side)) for side in zip(*both)))
    return kappas


@dataclasses.dataclass(frozen=True)
class ScorerAgreement:
    """How far two scorers agree on which units have good explanations.

    Args:
      units: the number of units that both have scored.
      rank_correlation: Spearman's correlation of the scores. NaN where one scorer gives all units the same score.
      kappa: Cohen's kappa of "the score is above the median". NaN where it is above it for none or all.
    """

    units: int
    rank_correlation: float
    kappa: float


def scorer_agreement(report: Report) -> Mapping[tuple[str, str], ScorerAgreement]:
    """The agreement of each pair of scorers of a report, over the units that both have scored."""
    from scipy.stats import rankdata

    result = {}
    for a, b in itertools.combinations(report.figures, 2):
        both = [(u.scores[a], u.scores[b]) for u in report.units if a in u.scores and b in u.scores]
        if not both:
            continue
        x, y = (np.asarray(side) for side in zip(*both))
        ranks = [rankdata(side) for side in (x, y)]
        spread = all(side.std() > 0 for side in ranks)
        result[a, b] = ScorerAgreement(
            len(x),
            float(np.corrcoef(*ranks)[0, 1]) if spread else float("nan"),
            cohens_kappa(x > np.median(x), y > np.median(y)),
        )
    return result
