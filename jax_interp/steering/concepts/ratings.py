"""Ratings of replies by three judges, and the harmonic mean of the three."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.steering.concepts.judges import Judges
from jax_interp.steering.concepts.replies import Replies

SCORES = ("concept", "instruct", "fluency")


@dataclasses.dataclass(frozen=True, eq=False)
class Ratings:
    """What the judges gave.

    Args:
      by_method: by method, the numbers with the axes "score", "concept", "factor" and "instruction".
    """

    by_method: Mapping[str, Labelled]

    def overall(self, method: str) -> Float[np.ndarray, "concept factor instruction"]:
        """The harmonic mean of the three numbers of each reply."""
        return harmonic_mean(self.by_method[method].values)


def rate(replies: Replies, judges: Judges) -> Ratings:
    """Let the judges rate all replies. Each judge gets all replies of a method at once.

    Raises:
      UserError: a judge gives another number of ratings, or a rating that is not from 0 to 2.
    """
    found = {}
    for method, given in replies.by_method.items():
        axes = {
            "score": SCORES,
            "concept": [concept.name for concept in replies.concepts],
            "factor": replies.factors[method],
            "instruction": replies.instructions,
        }
        values = [_checked(name, getattr(judges, name)(given), len(given)) for name in SCORES]
        found[method] = Labelled(
            np.stack(values).reshape(len(SCORES), *replies.shape(method)), axes, f"{method}, 0 to 2"
        )
    return Ratings(found)


def harmonic_mean(scores: Float[np.ndarray, "score *reply"]) -> Float[np.ndarray, "*reply"]:
    """n / Σ 1/score over the first axis; 0 where a score is 0. A reply must do everything, not one thing well."""
    scores = np.asarray(scores, np.float64)
    some = (scores > 0).all(axis=0)
    total = np.sum(1 / np.where(scores > 0, scores, 1.0), axis=0)
    return np.where(some, len(scores) / total, 0.0)


def _checked(name: str, ratings: object, count: int) -> Float[np.ndarray, " reply"]:
    values = np.asarray(ratings, np.float64)
    if values.shape != (count,):
        raise UserError(f"the {name} judge got {count} replies and gave an array of shape {list(values.shape)}")
    wrong = np.flatnonzero(~((values >= 0) & (values <= 2)))
    if wrong.size:
        raise UserError(
            f"the {name} judge gave {values[wrong[0]]} to reply {int(wrong[0])}: a rating is from 0 to 2. Rate a reply "
            "that your judge could not read again, or leave it out; 0 would count as a bad reply"
        )
    return values
