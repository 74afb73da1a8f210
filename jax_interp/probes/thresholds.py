"""`best_threshold`: the threshold between two classes for scores that are not log-odds."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def best_threshold(
    scores: Float[Array, " row"], positive: Bool[Array, " row"], weight: Float[Array, " row"]
) -> Float[Array, ""]:
    """The threshold with the highest balanced accuracy (the mean of the accuracies on the two classes).

    It lies in the middle between two neighbouring scores; of several equally good ones, it is the lowest. A score above
    it means the positive class. If all scores are equal, it is this score.

    Args:
      scores: the score of each row.
      positive: whether the row is of the positive class.
      weight: the weight of each row; 0 leaves it out. Both classes have a row with a weight.
    """
    counted = weight > 0
    order = jnp.argsort(jnp.where(counted, scores, jnp.inf))
    s = jnp.where(counted, scores, jnp.inf)[order]
    share = lambda of: jnp.cumsum(jnp.where(of & counted, weight, 0)[order]) / jnp.sum(jnp.where(of, weight, 0))
    right = share(~positive) - share(positive)  # true negatives - false negatives, if the threshold follows this row
    here, after = s[:-1], s[1:]
    between = jnp.isfinite(after) & (after > here)
    best = jnp.argmax(jnp.where(between, right[:-1], -jnp.inf))
    middle = here[best] + (after[best] - here[best]) / 2
    return jnp.where(between.any(), middle, s[0])
