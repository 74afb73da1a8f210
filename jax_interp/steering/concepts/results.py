"""Results of a concept benchmark: the factor is chosen on half of the instructions, and the other half is reported.

    results = choose_and_report(ratings)
    print(results.table())
    print(results.wins("prompt"))

The factor of each concept and method is the one with the highest mean on the choosing half. Its score there is too
good, because it is the best of many; `optimism` says by how much. A result is a distribution over concepts, not a mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate, estimate
from jax_interp.steering.concepts.ratings import SCORES, Ratings, harmonic_mean

TIE = 1e-6
"""Scores that differ by less are equal."""


@dataclasses.dataclass(frozen=True)
class ConceptResult:
    """One concept under one method, on the instructions that chose nothing.

    Args:
      concept: the name of the concept.
      factor: the chosen factor.
      overall: the mean of the harmonic means of the replies, with its interval over instructions.
      scores: the mean of each of the three numbers.
      on_choosing: the mean of the harmonic means on the instructions that chose the factor.
    """

    concept: str
    factor: float
    overall: Estimate
    scores: Mapping[str, Estimate]
    on_choosing: float


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """One method over all concepts.

    Args:
      method: the name of the method.
      concepts: the result of each concept.
      replies: the harmonic mean of each reported reply.
    """

    method: str
    concepts: tuple[ConceptResult, ...]
    replies: Float[np.ndarray, "concept instruction"]

    @property
    def overall(self) -> Estimate:
        """The mean over concepts, with its interval over concepts. NaN ends for a single concept."""
        return _mean(np.asarray([one.overall.value for one in self.concepts]))

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """The quartiles of the concepts."""
        low, middle, high = np.quantile([one.overall.value for one in self.concepts], [0.25, 0.5, 0.75])
        return float(low), float(middle), float(high)

    @property
    def without_effect(self) -> float:
        """The share of concepts for which every reported reply has 0."""
        return float(np.mean([one.overall.value == 0 for one in self.concepts]))

    @property
    def optimism(self) -> float:
        """How much higher the mean is on the instructions that chose the factors."""
        return float(np.mean([one.on_choosing - one.overall.value for one in self.concepts]))


@dataclasses.dataclass(frozen=True)
class Wins:
    """How often a method beats a reference, over concepts and reported instructions.

    Args:
      win: the share of replies with a higher harmonic mean, with its interval over concepts.
      tie: the share of equal ones.
      loss: the share of lower ones.
    """

    win: Estimate
    tie: Estimate
    loss: Estimate

    @property
    def rate(self) -> float:
        """Wins and half of the ties. 0.5: no better than the reference."""
        return self.win.value + self.tie.value / 2


@dataclasses.dataclass(frozen=True)
class BenchmarkResults:
    """The results of all methods.

    Args:
      by_method: the results by method.
      choosing: the numbers of the instructions that chose the factors.
      reported: the numbers of the others.
    """

    by_method: Mapping[str, MethodResult]
    choosing: Int[np.ndarray, " instruction"]
    reported: Int[np.ndarray, " instruction"]

    def wins(self, reference: str) -> dict[str, Wins]:
        """Every other method against the reference, reply by reply.

        Raises:
          UserError: there is no such method.
        """
        if reference not in self.by_method:
            raise UserError(f"no method {reference!r}: there are {', '.join(self.by_method)}")
        other = self.by_method[reference].replies
        return {name: winrate(result.replies, other) for name, result in self.by_method.items() if name != reference}

    def table(self) -> str:
        """One line for each method: the mean over concepts, quartiles, and the three numbers."""
        head = f"{'method':<24}{'overall':<24}{'quartiles of concepts':<24}{'no effect':>10}"
        lines = [head + "".join(f"{name:>10}" for name in SCORES) + f"{'optimism':>10}"]
        for name, result in self.by_method.items():
            low, middle, high = result.quartiles
            means = [np.mean([one.scores[score].value for one in result.concepts]) for score in SCORES]
            quartiles = f"{low:.3f} {middle:.3f} {high:.3f}"
            lines.append(
                f"{name:<24}{result.overall!s:<24}{quartiles:<24}{result.without_effect:>10.2f}"
                + "".join(f"{mean:>10.3f}" for mean in means)
                + f"{result.optimism:>10.3f}"
            )
        return "\n".join(lines)


def choose_and_report(ratings: Ratings, *, choosing: float = 0.5, seed: int | None = None) -> BenchmarkResults:
    """Choose a factor for each concept and method on a part of the instructions, and report the others.

    Every method is reported on the same instructions, also one without factors. Of equal factors the first one is
    chosen.

    Args:
      ratings: the ratings.
      choosing: the share of instructions that choose.
      seed: the seed of a random division of the instructions. None: the first ones choose, as in AxBench.

    Raises:
      UserError: there is no instruction to choose on, or fewer than two to report.
    """
    n = len(next(iter(ratings.by_method.values())).axes["instruction"])
    order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
    n_choosing = n - round(n * (1 - choosing))
    first, rest = np.sort(order[:n_choosing]), np.sort(order[n_choosing:])
    if len(first) < 1 or len(rest) < 2:
        raise UserError(
            f"choosing={choosing} of {n} instructions leaves {len(first)} to choose on and {len(rest)} to report: at "
            "least 1 and 2 are needed"
        )
    found = {}
    for method, given in ratings.by_method.items():
        overall = harmonic_mean(given.values)
        best = np.argmax(overall[:, :, first].mean(axis=-1), axis=-1)
        concepts = [
            ConceptResult(
                name,
                float(given.axes["factor"][best[c]]),
                _mean(overall[c, best[c], rest]),
                {score: _mean(given.values[s, c, best[c], rest]) for s, score in enumerate(SCORES)},
                float(overall[c, best[c], first].mean()),
            )
            for c, name in enumerate(given.axes["concept"])
        ]
        chosen = np.stack([overall[c, best[c], rest] for c in range(len(concepts))])
        found[method] = MethodResult(method, tuple(concepts), chosen)
    return BenchmarkResults(found, first, rest)


def winrate(
    scores: Float[np.ndarray, "concept instruction"], reference: Float[np.ndarray, "concept instruction"]
) -> Wins:
    """How often scores are higher than those of a reference at the same concept and instruction.

    The replies of a concept stand or fall together, so the interval is that over concepts.

    Raises:
      UserError: the shapes differ.
    """
    if scores.shape != reference.shape:
        raise UserError(f"scores {list(scores.shape)} and reference {list(reference.shape)} must have one shape")
    tie = np.abs(scores - reference) < TIE
    win, loss = (scores > reference) & ~tie, (scores < reference) & ~tie
    return Wins(*(_mean(kind.mean(axis=1)) for kind in (win, tie, loss)))


def _mean(values: Float[np.ndarray, " n"]) -> Estimate:
    """The mean with its bootstrap interval; an interval of NaN for a single value."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return Estimate(float(values.mean()), float("nan"), float("nan"))
    return estimate(lambda weights: weights @ values, len(values))
