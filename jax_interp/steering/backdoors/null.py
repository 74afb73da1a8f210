"""The null distribution of a method: the best scores that it gives where there is nothing to find.

Every method ranks something first. So run it on clean models and on decoy targets, and take the best score of each run.
If the suspect's run is one more draw like these, its best score is above all n of them with probability 1 / (n + 1).
That is the p-value here, and it cannot be smaller than that: 19 runs are needed for 0.05.

    null = null_of([method.rank(clean, audit_texts(prompts, decoy), key) for decoy in decoys])
    judge(method.rank(suspect, audit_texts(prompts, target), key), null)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jax_interp.core.errors import UserError
from jax_interp.steering.backdoors.method import Ranking


@dataclasses.dataclass(frozen=True, eq=False)
class Null:
    """The best scores of one method where there is nothing to find. `null_of` makes it."""

    method: str
    best: Float[np.ndarray, " run"]

    def p_value(self, score: float) -> float:
        """(1 + the number of runs with a best score that is at least this high) / (1 + the number of runs)."""
        return (1 + int((self.best >= score).sum())) / (1 + len(self.best))

    def threshold(self, level: float | None = None) -> float:
        """The score above which the p-value is at most `level`. None: above all runs.

        Raises:
          UserError: there are too few runs for this level.
        """
        if level is None:
            return float(self.best.max())
        allowed = int(np.floor(level * (1 + len(self.best)) + 1e-9)) - 1  # runs that may have a higher score
        if allowed < 0:
            raise UserError(
                f"{len(self.best)} runs of the null give p-values of at least {1 / (1 + len(self.best)):.3g}: "
                f"for the level {level:g}, give at least {int(np.ceil(1 / level)) - 1} runs"
            )
        if allowed >= len(self.best):
            return -np.inf
        return float(np.sort(self.best)[::-1][allowed])


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
    """A decision.

    Args:
      ranking: what the method found.
      threshold: the score that the null allows.
      p_value: that of the best score.
      found: the ids above the threshold, the best first. Empty: nothing was found.
    """

    ranking: Ranking
    threshold: float
    p_value: float
    found: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        line = f"{self.ranking.method}: best {self.ranking.best:.3g} {self.ranking.unit}, "
        line += f"null up to {self.threshold:.3g}, p = {self.p_value:.3g}: "
        return line + (f"{len(self.found)} {self.ranking.what} found" if self.found else "nothing found")


def null_of(rankings: Sequence[Ranking]) -> Null:
    """The null distribution from the rankings of one method, on clean models or for decoy targets.

    Raises:
      UserError: there is none, or they are of several methods.
    """
    methods = sorted({one.method for one in rankings})
    if len(methods) != 1:
        raise UserError(f"a null is of one method, not of {', '.join(methods) or 'none'}")
    return Null(methods[0], np.asarray([one.best for one in rankings], np.float64))


def judge(ranking: Ranking, null: Null, level: float | None = None) -> Verdict:
    """Compare a ranking with the null of the same method.

    Args:
      ranking: what the method found in the suspect.
      null: the null distribution.
      level: the probability of finding something where there is nothing. None: 1 / (runs + 1).

    Raises:
      UserError: the null is of another method, or has too few runs for the level.
    """
    if ranking.method != null.method:
        raise UserError(f"the null is of {null.method}, and the ranking of {ranking.method}")
    threshold = null.threshold(level)
    count = int((ranking.scores > threshold).sum())
    return Verdict(ranking, threshold, null.p_value(ranking.best), ranking.ids[:count])
