"""Steerability: how propensity changes with the strength, question by question.

    found = steerability(propensities(model, questions, vector))
    found.slope, found.anti_steerable, found.factors["letter"].eta_squared

The steerability of a question is the slope of the least-squares line of its propensity over the strengths. A question
with a slope below 0 is anti-steerable. The slope of the mean curve is the mean of the slopes (Tan et al. 2024,
arXiv:2407.12404). A vector may also push towards a letter or towards "yes": the share of the variance of slopes that
such a factor explains is η² = Σ n_k (ȳ_k - ȳ)² / Σ (y - ȳ)².
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate
from jax_interp.steering.measuring.propensity import Propensities
from jax_interp.steering.measuring.spread import Spread, mean_of, of_totals, spread

JOINT = "all factors"
"""The name of the factor whose levels are the combinations of the levels of all factors."""


@dataclasses.dataclass(frozen=True)
class Level:
    """The questions of one level of a factor.

    Args:
      slope: their slopes.
      anti_steerable: the share of them with a slope below 0.
    """

    slope: Spread
    anti_steerable: Estimate


@dataclasses.dataclass(frozen=True)
class FactorEffect:
    """How the slope depends on a nuisance factor.

    Args:
      eta_squared: the share of the variance of slopes that the factor explains. NaN if all slopes are equal.
      by_chance: its expectation if the factor has no effect: (levels - 1) / (questions - 1).
      levels: the questions of each level.
    """

    eta_squared: Estimate
    by_chance: float
    levels: dict[str, Level]


@dataclasses.dataclass(frozen=True)
class Steerability:
    """How the propensity of a set of questions changes with the strength. `steerability` makes it.

    Args:
      questions: the name of the set.
      strengths: the strengths.
      slope: the slopes of the questions, in nats for each unit of strength.
      anti_steerable: the share of questions with a slope below 0.
      spearman: the rank correlation of propensity with strength, of the questions whose propensity changes.
      r_squared: how much of the variance of a question's propensity its line explains, of the same questions.
      curve: the propensity at each strength.
      p_matching: the probability of the matching answer among the two, at each strength.
      p_answers: the probability that the model gives one of the two answers, at each strength.
      factors: the effect of each factor with at least two levels, and of all of them together.
      slopes: the slope of each question.
      groups: the number of the group of each question.
    """

    questions: str
    strengths: tuple[float, ...]
    slope: Spread
    anti_steerable: Estimate
    spearman: Spread
    r_squared: Spread
    curve: tuple[Spread, ...]
    p_matching: tuple[Spread, ...]
    p_answers: tuple[Spread, ...]
    factors: dict[str, FactorEffect]
    slopes: tuple[float, ...]
    groups: tuple[int, ...]

    def lines(self) -> list[str]:
        """The figures as lines of text."""
        found = [
            f"{self.questions}: {self.slope.n} questions in {self.slope.groups} groups",
            f"steerability (slope, nats): {self.slope}",
            f"anti-steerable: {self.anti_steerable}",
            f"Spearman with the strength: {self.spearman}",
        ]
        for name, factor in self.factors.items():
            found.append(f"η² of {name}: {factor.eta_squared} (by chance {factor.by_chance:.3f})")
        return found


def slopes(
    strengths: Float[np.ndarray, " strength"], values: Float[np.ndarray, "*rows strength"]
) -> Float[np.ndarray, "*rows"]:
    """The slope of the least-squares line of each row over the strengths.

    Raises:
      UserError: there are less than two strengths.
    """
    x = np.asarray(strengths, np.float64)
    if len(x) < 2:
        raise UserError(f"a slope needs at least two strengths, not {len(x)}")
    x = x - x.mean()
    return (np.asarray(values, np.float64) @ x) / (x @ x)


def rank_correlation(
    strengths: Float[np.ndarray, " strength"], values: Float[np.ndarray, "row strength"]
) -> Float[np.ndarray, " row"]:
    """Spearman's rank correlation of each row with the strengths; equal values share a rank. NaN for a constant row."""
    x, y = _ranks(np.asarray(strengths, np.float64)[None, :]), _ranks(values)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    size = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return np.where(size > 0, (x * y).sum(axis=1) / np.where(size > 0, size, 1.0), np.nan)


def _ranks(values: Float[np.ndarray, "row strength"]) -> Float[np.ndarray, "row strength"]:
    less = (values[:, None, :] < values[:, :, None]).sum(axis=2)
    equal = (values[:, None, :] == values[:, :, None]).sum(axis=2)
    return less + (equal + 1) / 2


def eta_squared(
    values: Float[np.ndarray, " sample"], levels: Sequence[str], groups: Int[np.ndarray, " sample"], *, seed: int = 0
) -> Estimate:
    """The share of the variance of `values` between the levels of a factor, with its interval over groups.

    Args:
      values: the samples.
      levels: the level of each sample.
      groups: the number of the group of each sample.
      seed: the seed of the bootstrap.
    """
    _, number = np.unique(np.asarray(levels), return_inverse=True)
    y = np.asarray(values, np.float64) - np.mean(values)
    scale = np.abs(y).max(initial=0.0)
    y = np.zeros_like(y) if scale <= 1e-12 * np.abs(values).max(initial=0.0) else y / scale
    of_level = np.eye(int(number.max()) + 1)[number]
    columns = np.concatenate([of_level, of_level * y[:, None], (y * y)[:, None]], axis=1)
    k = of_level.shape[1]

    def statistic(totals: np.ndarray) -> np.ndarray:
        count, total, squares = totals[:, :k], totals[:, k : 2 * k], totals[:, -1]
        all_of = total.sum(axis=1) ** 2 / count.sum(axis=1)
        between = (total**2 / np.where(count > 0, count, 1.0)).sum(axis=1) - all_of
        whole = squares - all_of
        return np.where(whole > 1e-15 * squares, between / np.where(whole > 0, whole, 1.0), np.nan)

    return of_totals(columns, groups, statistic, seed=seed)


def steerability(found: Propensities, *, seed: int = 0) -> Steerability:
    """How the propensity of each question changes with the strength, with intervals over groups of questions.

    Args:
      found: the propensities, at two strengths or more.
      seed: the seed of the bootstrap.

    Raises:
      UserError: there are less than two strengths.
    """
    y, groups = found.values, found.groups
    of_question = slopes(found.strengths, y)
    x = found.strengths - found.strengths.mean()
    centred = y - y.mean(axis=1, keepdims=True)
    variance = (centred**2).sum(axis=1)
    changes = variance > 0
    explained = of_question**2 * (x @ x) / np.where(changes, variance, 1.0)
    of = lambda values, rows=slice(None): spread(values[rows], groups[rows], seed=seed)
    at_each = lambda values: tuple(of(values[:, i]) for i in range(values.shape[1]))
    return Steerability(
        found.questions,
        tuple(found.strengths.tolist()),
        of(of_question),
        mean_of(of_question < 0, groups, seed=seed),
        of(rank_correlation(found.strengths, y), changes),
        of(explained, changes),
        at_each(y),
        at_each(found.p_matching),
        at_each(found.p_answers),
        _factors(of_question, found, seed),
        tuple(of_question.tolist()),
        tuple(groups.tolist()),
    )


def _factors(of_question: np.ndarray, found: Propensities, seed: int) -> dict[str, FactorEffect]:
    levels = {name: of for name, of in found.factors.items() if len(set(of)) > 1}
    if len(levels) > 1:
        levels = levels | {JOINT: tuple(" / ".join(of) for of in zip(*levels.values(), strict=True))}
    return {name: _factor(of_question, of, found.groups, seed) for name, of in levels.items()}


def _factor(values: np.ndarray, levels: Sequence[str], groups: np.ndarray, seed: int) -> FactorEffect:
    found, of = {}, np.asarray(levels)
    for level in sorted(set(levels)):
        rows = of == level
        found[level] = Level(
            spread(values[rows], groups[rows], seed=seed), mean_of(values[rows] < 0, groups[rows], seed=seed)
        )
    return FactorEffect(eta_squared(values, levels, groups, seed=seed), (len(found) - 1) / (len(values) - 1), found)
