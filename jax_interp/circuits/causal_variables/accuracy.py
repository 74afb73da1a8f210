"""Interchange-intervention accuracy: how often the network answers as the causal model says after an interchange.

    result = interchange_accuracy(model, data, locations, features)
    result.accuracy                     Estimate(value, low, high, n), Wilson's interval of 95 %
    result.where_changed.accuracy       the pairs in which the interchange changes the answer

An answer counts as right if its logit is larger than that of every other class, at every position that is read. A tie
is wrong. Beside the accuracy there are two figures that do not saturate: the log-probability of the answer, and its
logit minus that of the base's own answer (Geiger et al. 2021; Mueller et al. 2025, arXiv:2504.13151).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.circuits.causal_variables.features import Features
from jax_interp.circuits.causal_variables.interchange import (
    Location,
    Where,
    check_locations,
    interchanged,
    of_target,
    read_positions,
)
from jax_interp.circuits.causal_variables.interchange_data import InterchangeData
from jax_interp.core.errors import UserError
from jax_interp.core.processes import to_host
from jax_interp.surgery import Model


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A share of pairs with the ends of Wilson's interval of 95 %. NaN without pairs."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share(hits: Bool[np.ndarray, " pair"]) -> Estimate:
    """The share of hits with Wilson's interval of 95 %. It assumes that the pairs are independent."""
    from scipy import stats

    n = len(hits)
    if not n:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    interval = stats.binomtest(int(np.sum(hits)), n).proportion_ci(0.95, method="wilson")
    return Estimate(float(np.mean(hits)), float(interval.low), float(interval.high), n)


@dataclasses.dataclass(frozen=True)
class InterchangeResult:
    """What the network did, pair by pair.

    Args:
      correct: whether the answer is that of the causal model.
      log_probability: of this answer, in nats. Probabilities are over `choices` if the data has them.
      logit_difference: the logit of this answer minus that of the base's own answer. 0 where they are the same.
      changed: whether the interchange changes the causal model's answer.
    """

    correct: Bool[np.ndarray, " pair"]
    log_probability: Float[np.ndarray, " pair"]
    logit_difference: Float[np.ndarray, " pair"]
    changed: Bool[np.ndarray, " pair"]

    @property
    def accuracy(self) -> Estimate:
        """The interchange-intervention accuracy."""
        return share(self.correct)

    @property
    def where_changed(self) -> InterchangeResult:
        """The pairs in which the interchange changes the answer. Exchanging nothing is always wrong there."""
        return self.rows(self.changed)

    @property
    def where_kept(self) -> InterchangeResult:
        """The pairs in which the interchange keeps the answer."""
        return self.rows(~self.changed)

    def rows(self, index: np.ndarray) -> InterchangeResult:
        """Some of the pairs."""
        return InterchangeResult(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))


def interchange_accuracy(
    model: Model,
    data: InterchangeData,
    locations: Sequence[Location] | Location,
    features: Sequence[Features] | Features,
    *,
    batch: int = 256,
) -> InterchangeResult:
    """Run interchange interventions, and compare the answers with those of the causal model.

    Args:
      model: any model that keeps the surgery contract.
      data: the pairs.
      locations: for each source, where its value is exchanged.
      features: for each source, which part of the value.
      batch: the number of pairs in one run. It bounds the memory; the result is the same.

    Raises:
      UserError: a location does not fit, there are no pairs, or a logit that is read is NaN.
    """
    locations = [locations] if isinstance(locations, Location) else list(locations)
    features = [features] if isinstance(features, Features) else list(features)
    if not len(data) or batch < 1:
        raise UserError(f"{len(data)} pairs in batches of {batch}: give at least one of each")
    check_locations(model, data, locations, features)
    found = []
    size = min(batch, len(data))
    for first in range(0, len(data), size):
        # The last batch is filled up, so that there is one program.
        part = data.rows(np.arange(first, first + size) % len(data))
        places = [Where.of(part, location, i) for i, location in enumerate(locations)]
        found.append(to_host(_run(model, part, places, features)))
    columns = (np.concatenate(column)[: len(data)] for column in zip(*found))
    correct, log_p, difference, unread = columns
    if unread.any():
        raise UserError(
            f"the logits of {int(unread.sum())} of {len(data)} pairs are NaN, or an answer is no class of the network"
        )
    return InterchangeResult(correct, log_p, difference, changed_of(data))


def changed_of(data: InterchangeData) -> Bool[np.ndarray, " pair"]:
    """Where the interchange changes the causal model's answer."""
    return np.asarray((data.target != data.before).reshape(len(data), -1).any(axis=1))


@jax.jit
def _run(
    model: Model, data: InterchangeData, places: Sequence[Where], features: Sequence[Features]
) -> tuple[Array, ...]:
    return outcomes(interchanged(model, data, places, features), data)


def outcomes(logits: Float[Array, "pair *pos class"], data: InterchangeData) -> tuple[Array, Array, Array, Array]:
    """(right, log-probability, logit difference, whether a logit that is read is NaN), of each pair."""
    read = read_positions(logits, data.target)
    logits, logit = of_target(logits, data.target, data.choices)
    own = of_target(logits, data.before, None)[1]
    others = jnp.where(_one_hot(data.target, logits.shape[-1]), -jnp.inf, logits)
    right, log_p = logit > jnp.max(others, axis=-1), logit - jax.nn.logsumexp(logits, axis=-1)
    flat = lambda x: x.reshape(len(data), -1)
    read, count = flat(read), jnp.sum(flat(read), axis=1)
    mean = lambda x: jnp.sum(jnp.where(read, flat(x), 0.0), axis=1) / count.astype(x.dtype)
    nan = jnp.any(read & flat(jnp.isnan(logits).any(axis=-1) | jnp.isnan(logit) | jnp.isnan(own)), axis=1)
    return jnp.all(flat(right) | ~read, axis=1), mean(log_p), mean(logit - own), nan


def _one_hot(target: Array, classes: int) -> Bool[Array, "pair *pos class"]:
    return jax.nn.one_hot(target, classes, dtype=bool)


def cross_entropy_of(logits: Float[Array, "pair *pos class"], data: InterchangeData) -> Float[Array, " pair"]:
    """The mean over the read positions of -log p(answer), in nats. Of each pair."""
    read = read_positions(logits, data.target)
    logits, logit = of_target(logits, data.target, data.choices)
    loss = jnp.where(read, jax.nn.logsumexp(logits, axis=-1) - logit, 0.0).reshape(len(data), -1)
    return jnp.sum(loss, axis=1) / jnp.sum(read.reshape(len(data), -1), axis=1).astype(loss.dtype)
