"""Condition points: which value and which threshold decide whether a prompt is steered, chosen on labelled prompts.

    scores = similarities(model, vectors, tokens, mask)                one pass for all layers
    point = chosen_point(scores, positive, held_out)                   a threshold between scores, judged on other rows
    Similarity(point.address, vectors.vectors[point.address], point.threshold, point.above)

`published_point` is the grid of the CAST paper, which has no held-out rows: its F1 is that of the rows it was chosen
on, the best of all layers, thresholds and directions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.probes.thresholds import best_threshold
from jax_interp.steering.applying.conditions import Similarity
from jax_interp.steering.vector import SteeringVector
from jax_interp.surgery import values_at
from jax_interp.surgery.contract import Model

Scores = Mapping[str, Float[ArrayLike, "row"]]
"""The score of each prompt, by address."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well the rows for which a condition holds are the positive rows.

    Args:
      hits: positive rows for which it holds.
      misses: positive rows for which it does not hold.
      false_alarms: other rows for which it holds.
      rejections: other rows for which it does not hold.
    """

    hits: int
    misses: int
    false_alarms: int
    rejections: int

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + misses + false alarms); 0 if there is no hit."""
        return 2 * self.hits / max(2 * self.hits + self.misses + self.false_alarms, 1)

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the shares that are right of the positive and of the other rows. NaN if one kind has no row."""
        kinds = (self.hits, self.hits + self.misses), (self.rejections, self.rejections + self.false_alarms)
        return sum(right / rows if rows else float("nan") for right, rows in kinds) / 2


@dataclasses.dataclass(frozen=True)
class ConditionPoint:
    """A value, a threshold and a side.

    Args:
      address: the value.
      threshold: the threshold of its score.
      above: whether the condition holds above the threshold.
      chosen_on: the agreement on the rows that the point was chosen on. It is too good.
      held_out: the agreement on other rows; None if there were none.
    """

    address: str
    threshold: float
    above: bool
    chosen_on: Agreement
    held_out: Agreement | None


def similarities(
    model: Model,
    vectors: SteeringVector,
    tokens: Any,
    mask: Bool[ArrayLike, "batch pos"] | None = None,
    read: Literal["mean", "last"] = "mean",
) -> dict[str, Float[np.ndarray, "batch"]]:
    """The similarity of CAST between each prompt and the condition vector at each address, from one forward pass.

    Args:
      model: the model, without steering.
      vectors: the condition vectors.
      tokens: the prompts, `[batch, pos]`.
      mask: True for real tokens.
      read: the mean of the prompt, or its last token.
    """
    conditions = {address: Similarity(address, vector, read=read) for address, vector in vectors.vectors.items()}
    found = _similarities(conditions, model, tokens, mask)
    return {address: np.asarray(scores) for address, scores in found.items()}


@jax.jit
def _similarities(
    conditions: dict[str, Similarity], model: Model, tokens: Array, mask: Array | None
) -> dict[str, Array]:
    values = values_at(model, *conditions)(tokens, mask=mask)
    real = lambda x: jnp.ones(x.shape[:2], bool) if mask is None else jnp.asarray(mask).astype(bool)
    return {a: condition.prompt_scores(values[a], real(values[a])) for a, condition in conditions.items()}


def published_point(
    scores: Scores, positive: Bool[ArrayLike, "row"], *, low: float = 0.0, high: float = 1.0, step: float = 0.01
) -> ConditionPoint:
    """The point with the highest F1 on a grid, as the published code of CAST chooses it. Of equal ones, the first.

    It tries the thresholds low, low + step, ... below `high`, below and above each, at the addresses in their order.

    Args:
      scores: the score of each prompt, by address.
      positive: whether a prompt should be steered.
      low: the first threshold.
      high: the end of the thresholds, which is not tried.
      step: the step between them.

    Raises:
      UserError: the shapes differ, a score is NaN, a class has no rows, or no point has a hit.
    """
    truth, checked = _checked(scores, positive)
    best: tuple[float, ConditionPoint] | None = None
    for address, values in checked.items():
        for threshold in np.arange(low, high, step):
            for above in (False, True):
                agreement = _agreement((values > threshold) == above, truth)  # as published, "below" takes equal scores
                if agreement.f1 > (best[0] if best else 0.0):
                    point = ConditionPoint(address, round(float(threshold), 3), above, agreement, None)
                    best = agreement.f1, point
    if best is None:
        raise UserError(f"no threshold from {low} to {high} has a hit: are the scores in this range?")
    return best[1]


def chosen_point(scores: Scores, positive: Bool[ArrayLike, "row"], held_out: Bool[ArrayLike, "row"]) -> ConditionPoint:
    """The point with the highest balanced accuracy, and how it does on held-out rows.

    The threshold is in the middle between two neighbouring scores, so that it needs no range and no step. Held-out rows
    have no part in the choice of the value, the threshold or the side.

    Args:
      scores: the score of each prompt, by address.
      positive: whether a prompt should be steered.
      held_out: the rows to judge on. Rows that are alike (two versions of one prompt) belong on one side.

    Raises:
      UserError: the shapes differ, a score is NaN, or a class has no rows on one side.
    """
    truth, checked = _checked(scores, positive)
    out = np.asarray(held_out).astype(bool)
    if out.shape != truth.shape:
        raise UserError(f"held_out has shape {out.shape}, and there are {len(truth)} rows")
    for rows, name in ((~out, "to choose on"), (out, "held out")):
        if len(np.unique(truth[rows])) < 2:
            raise UserError(f"the rows {name} need prompts of both classes")
    sides = [(address, above) for address in checked for above in (True, False)]
    signed = np.stack([checked[address] if above else -checked[address] for address, above in sides])
    thresholds = _best_thresholds(signed, truth, (~out).astype(np.float32))
    points = []
    for (address, above), values, threshold in zip(sides, signed, np.asarray(thresholds), strict=True):
        both = [_agreement(values[rows] > threshold, truth[rows]) for rows in (~out, out)]
        points.append(ConditionPoint(address, float(threshold) if above else -float(threshold), above, *both))
    return max(points, key=lambda point: point.chosen_on.balanced_accuracy)


_best_thresholds = jax.jit(jax.vmap(best_threshold, (0, None, None)))


def _agreement(holds: Bool[np.ndarray, "row"], truth: Bool[np.ndarray, "row"]) -> Agreement:
    counts = [int(np.sum(h & t)) for h, t in ((holds, truth), (~holds, truth), (holds, ~truth), (~holds, ~truth))]
    return Agreement(*counts)


def _checked(scores: Scores, positive: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    truth = np.asarray(positive).astype(bool)
    if truth.ndim != 1 or len(np.unique(truth)) < 2:
        raise UserError("positive has one boolean for each row, and both classes need rows")
    if not scores:
        raise UserError("there are no scores: give those of at least one address")
    checked = {address: np.asarray(values, np.float32) for address, values in scores.items()}
    for address, values in checked.items():
        if values.shape != truth.shape or np.isnan(values).any():
            raise UserError(f"the scores at {address!r} have shape {values.shape} for {len(truth)} rows, or are NaN")
    return truth, checked
