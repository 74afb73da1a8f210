"""Metrics: what is measured of a model's logits, one number for each prompt.

A metric is a callable pytree: `metric(logits) -> [prompt]`. Its arrays are data, with one entry for each prompt, so a
new answer does not compile again. The mean over prompts is taken at the end, so that a result can show its spread.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass


class Metric(abc.ABC):
    """Base class of metrics: a frozen dataclass that is registered as a pytree (`register_dataclass`)."""

    @property
    def last_only(self) -> bool:
        """Whether the metric reads the logits of the last position only. The other logits are then not computed."""
        return False

    @abc.abstractmethod
    def __call__(self, logits: Float[Array, "prompt pos vocab"]) -> Float[Array, " prompt"]:
        """The metric of each prompt, in float32 at least."""

    def rows(self, index: Int[Array, " row"]) -> Self:
        """The metric of some of the prompts. Arrays have the prompts as first axis; scalars are for all prompts."""
        return jax.tree.map(lambda leaf: leaf[index] if jnp.ndim(leaf) else leaf, self)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class AtPosition(Metric):
    """Base class of metrics of the logits at one position.

    Args:
      pos: the position, the same for all prompts. It is static. Negative positions count from the end.
    """

    pos: int = dataclasses.field(default=-1, kw_only=True, metadata={"static": True})

    @property
    def last_only(self) -> bool:
        return self.pos == -1

    def logits_of(self, logits: Float[Array, "prompt pos vocab"]) -> Float[Array, "prompt vocab"]:
        """The logits at the position, in float32 at least. Raises `UserError` if there is no such position."""
        n = logits.shape[1]
        if not -n <= self.pos < n:  # JAX would take the nearest position
            raise UserError(f"pos={self.pos} of a metric: the prompts have the positions {-n} to {n - 1}")
        return upcast(logits)[:, self.pos]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LogitDifference(AtPosition):
    """The logit of the answer minus the logit of another token, at one position.

    Args:
      answer: the id of the right token, or one id for each prompt.
      other: the id of the token that is compared with it, one id for each prompt, or several [prompt, k], of whose
        logits the mean is taken.
    """

    answer: Int[Array, "*prompt"] | int
    other: Int[Array, "*prompt"] | int

    def __call__(self, logits: Float[Array, "prompt pos vocab"]) -> Float[Array, " prompt"]:
        here = self.logits_of(logits)
        return _picked(here, self.answer) - _picked(here, self.other)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LogitMargin(AtPosition):
    """The logit of the answer minus the largest logit of some other tokens, at one position.

    Args:
      answer: the id of the right token, or one id for each prompt.
      others: the ids of the wrong tokens of each prompt.
    """

    answer: Int[Array, "*prompt"] | int
    others: Int[Array, "prompt k"]

    def __call__(self, logits: Float[Array, "prompt pos vocab"]) -> Float[Array, " prompt"]:
        here = self.logits_of(logits)
        wrong = jnp.stack([_picked(here, ids) for ids in jnp.asarray(self.others).T])
        return _picked(here, self.answer) - jnp.max(wrong, axis=0)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LogProbability(AtPosition):
    """The log-probability of the answer at one position."""

    answer: Int[Array, "*prompt"] | int

    def __call__(self, logits: Float[Array, "prompt pos vocab"]) -> Float[Array, " prompt"]:
        return _picked(jax.nn.log_softmax(self.logits_of(logits)), self.answer)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ProbabilityDifference(AtPosition):
    """Σ sign[v] p(v) at one position: the probability of some tokens minus that of others (greater-than).

    Args:
      sign: +1, -1 or 0 for each token of the vocabulary, [prompt, vocab].
    """

    sign: Float[Array, "prompt vocab"]

    def __call__(self, logits: Float[Array, "prompt pos vocab"]) -> Float[Array, " prompt"]:
        here = self.logits_of(logits)
        return jnp.sum(jax.nn.softmax(here) * self.sign.astype(here.dtype), axis=-1)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class KL(AtPosition):
    """KL(reference ‖ model) at one position, in nats. 0 if the model predicts what the reference predicts.

    Args:
      reference: the logits of the reference at this position, [prompt, vocab].
    """

    reference: Float[Array, "prompt vocab"]

    def __call__(self, logits: Float[Array, "prompt pos vocab"]) -> Float[Array, " prompt"]:
        log_p = jax.nn.log_softmax(self.logits_of(logits))
        log_q = jax.nn.log_softmax(upcast(self.reference).astype(log_p.dtype))
        return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class OfLogits(Metric):
    """A metric from a function of the logits, `fn(logits) -> [prompt]`. A callable pytree stays data."""

    fn: Callable[[Any], Float[Array, " prompt"]]

    def __call__(self, logits: Float[Array, "prompt pos vocab"]) -> Float[Array, " prompt"]:
        return self.fn(logits)


def as_metric(metric: Metric | Callable[[Any], Any]) -> Metric:
    """The metric itself, or `OfLogits` of a function."""
    if isinstance(metric, Metric):
        return metric
    return OfLogits(jax.tree_util.Partial(metric) if jax.tree_util.all_leaves([metric]) else metric)


def _picked(values: Float[Array, "prompt vocab"], ids: Int[Array, "*prompt"] | int) -> Float[Array, " prompt"]:
    """The value of a token for each prompt; the mean over the tokens if there are several. An id outside gives NaN."""
    ids = jnp.asarray(ids, jnp.int32)
    ids = jnp.broadcast_to(ids, values.shape[:1]) if ids.ndim == 0 else ids
    ids = ids if ids.ndim == 2 else ids[:, None]
    ids = jnp.where(ids < 0, values.shape[1], ids)
    return jnp.mean(jnp.take_along_axis(values, ids, axis=1, mode="fill", fill_value=jnp.nan), axis=1)
