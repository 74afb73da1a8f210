"""Capabilities: any questions with a right answer, whose accuracy a steering should leave as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax_interp.core.estimates import Estimate
from jax_interp.steering.measuring.propensity import Propensities, propensities
from jax_interp.steering.measuring.spread import Spread, mean_of, spread
from jax_interp.steering.measuring.steered_rows import BATCHING, Batching
from jax_interp.steering.measuring.unsteered import UNSTEERED
from jax_interp.steering.questions import Questions
from jax_interp.steering.vector import Steering
from jax_interp.surgery import Model


@dataclasses.dataclass(frozen=True)
class Capability:
    """The accuracy on a set of questions whose matching answer is the right one.

    Args:
      questions: the name of the set.
      strengths: the strengths.
      unsteered: the accuracy of the unsteered model.
      accuracy: the accuracy at each strength.
      change: the accuracy at each strength minus that of the unsteered model, on the same questions. A question counts
        1 if it is right only when steered, -1 if it is right only when unsteered, and 0 otherwise.
      margin: log P(right) - log P(wrong) at each strength.
    """

    questions: str
    strengths: tuple[float, ...]
    unsteered: Estimate
    accuracy: tuple[Estimate, ...]
    change: tuple[Spread, ...]
    margin: tuple[Spread, ...]


def capability(
    model: Model,
    questions: Questions,
    steering: Steering,
    strengths: Sequence[float],
    *,
    placement: str | Sequence[int] = "all",
    batching: Batching = BATCHING,
    seed: int = 0,
) -> Capability:
    """The accuracy on questions whose matching answer is right. A question is right if its propensity is above 0.

    Args and Raises as in `propensities`.
    """
    steered = propensities(model, questions, steering, strengths, placement=placement, batching=batching)
    own = propensities(model, questions, UNSTEERED, (0.0,), placement=placement, batching=batching)
    return _capability(steered, own, seed)


def _capability(steered: Propensities, own: Propensities, seed: int) -> Capability:
    right, before, groups = steered.values > 0, own.values > 0, steered.groups
    change = right.astype(float) - before.astype(float)
    strengths = range(len(steered.strengths))
    return Capability(
        steered.questions,
        tuple(steered.strengths.tolist()),
        mean_of(before[:, 0], groups, seed=seed),
        tuple(mean_of(right[:, i], groups, seed=seed) for i in strengths),
        tuple(spread(change[:, i], groups, seed=seed) for i in strengths),
        tuple(spread(steered.values[:, i], groups, seed=seed) for i in strengths),
    )
