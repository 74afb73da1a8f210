"""Aggregators: one score for a text from the readings of its tokens.

aggregate(Mean(), token_scores, read)               token_scores [..., pos] -> [...]
TokenProbe(aggregator=RollingMax(width=10))         a probe that is trained through the aggregator

Definitions: mean, max, last, rolling maximum, softmax and attention as in McKenzie et al. 2025 (arXiv:2506.10805); the
mean of the excess as in Goldowsky-Dill et al. 2025 (arXiv:2502.03407); MultiMax as in Kramár et al. 2026
(arXiv:2601.11516). Tokens that do not count (padding, BOS, tokens that the rule does not name) change nothing.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry


class Aggregator(abc.ABC):
    """How the readings of the tokens become one score. A frozen dataclass, called inside `jit` and `grad`.

    A reading is one number for each token: x·w + b in a linear probe. Most aggregators take one reading for each token.
    """

    linear: ClassVar[bool] = False
    """The score is linear in the readings. Then training a linear probe through it is a convex problem."""
    needs_bias: ClassVar[bool] = False
    """A constant that is added to all readings changes the score by more than a constant."""
    interchangeable: ClassVar[bool] = False
    """The readings play the same part. Then training starts them at random: equal ones would stay equal."""

    @property
    def first_reading(self) -> float:
        """The readings of all tokens where training starts, if they are not started at random."""
        return 0.0

    @property
    def readings(self) -> int:
        """The number of readings of each token."""
        return 1

    @abc.abstractmethod
    def __call__(self, z: Float[Array, "... reading pos"], read: Bool[Array, "... pos"]) -> Float[Array, "..."]:
        """The score of each text.

        Args:
          z: the readings. They are finite, at tokens that do not count too.
          read: the tokens that count. A text without any has score 0; `aggregate` and the probes return NaN for it.
        """


AGGREGATORS = Registry("aggregator", Aggregator)


def aggregate(
    aggregator: Aggregator,
    scores: Float[Array | np.ndarray, "... pos"],
    read: Bool[Array | np.ndarray, "... pos"] | None = None,
) -> Float[Array, "..."]:
    """One score for each text from a score for each token.

    Args:
      aggregator: it takes one reading for each token.
      scores: the score of each token. It may be anything at tokens that do not count, NaN too.
      read: the tokens that count. None: all.

    Returns:
      The scores. NaN for a text of which no token counts.

    Raises:
      UserError: the aggregator takes several readings for each token.
    """
    if aggregator.readings != 1:
        raise UserError(
            f"{type(aggregator).__name__} takes {aggregator.readings} readings for each token, and a score is one: "
            "train a TokenProbe through it"
        )
    z = jnp.asarray(scores)
    counts = jnp.ones(z.shape, bool) if read is None else jnp.asarray(read)
    found = aggregator(jnp.where(counts, z, jnp.zeros_like(z))[..., None, :], counts)
    return jnp.where(counts.any(axis=-1), found, jnp.nan)


def masked_softmax(logits: Float[Array, "... pos"], read: Bool[Array, "... pos"]) -> Float[Array, "... pos"]:
    """Softmax over the tokens that count. All 0 if none counts. The gradient is finite everywhere."""
    low = jnp.where(read, logits, jnp.finfo(logits.dtype).min)
    e = jnp.where(read, jnp.exp(low - jax.lax.stop_gradient(low.max(axis=-1, keepdims=True))), 0)
    total = e.sum(axis=-1, keepdims=True)
    return e / jnp.where(total > 0, total, 1)


def _mean(z: Float[Array, "... pos"], read: Bool[Array, "... pos"]) -> Float[Array, "..."]:
    count = jnp.maximum(read.sum(axis=-1), 1).astype(z.dtype)
    return jnp.where(read, z, jnp.zeros_like(z)).sum(axis=-1) / count


def _max(z: Float[Array, "... pos"], read: Bool[Array, "... pos"]) -> Float[Array, "..."]:
    highest = jnp.where(read, z, -jnp.inf).max(axis=-1)
    return jnp.where(read.any(axis=-1), highest, jnp.zeros_like(highest))


@AGGREGATORS.register
@dataclasses.dataclass(frozen=True)
class Mean(Aggregator):
    """(1/n) Σₜ zₜ over the n tokens that count."""

    linear = True

    def __call__(self, z: Float[Array, "... reading pos"], read: Bool[Array, "... pos"]) -> Float[Array, "..."]:
        return _mean(z[..., 0, :], read)


@AGGREGATORS.register
@dataclasses.dataclass(frozen=True)
class LastToken(Aggregator):
    """The reading of the last token that counts."""

    linear = True

    def __call__(self, z: Float[Array, "... reading pos"], read: Bool[Array, "... pos"]) -> Float[Array, "..."]:
        last = read & (jnp.cumsum(read[..., ::-1], axis=-1)[..., ::-1] == 1)
        return jnp.where(last, z[..., 0, :], jnp.zeros_like(z[..., 0, :])).sum(axis=-1)


@AGGREGATORS.register
@dataclasses.dataclass(frozen=True)
class Max(Aggregator):
    """maxₜ zₜ. It grows with the length of a text: for n independent normal readings its mean nears √(2 log n)."""

    def __call__(self, z: Float[Array, "... reading pos"], read: Bool[Array, "... pos"]) -> Float[Array, "..."]:
        return _max(z[..., 0, :], read)


@AGGREGATORS.register
@dataclasses.dataclass(frozen=True)
class RollingMax(Aggregator):
    """The largest mean over `width` tokens in a row, among the tokens that count.

    Tokens that do not count are left out before windows are made: a window may reach across them. A text with fewer
    than `width` tokens has one window, which is the whole text: its score is its mean.
    """

    width: int = 10

    def __post_init__(self):
        if self.width < 1:
            raise UserError(f"width={self.width} must be at least 1 token")

    def __call__(self, z: Float[Array, "... reading pos"], read: Bool[Array, "... pos"]) -> Float[Array, "..."]:
        z = jnp.where(read, z[..., 0, :], jnp.zeros_like(z[..., 0, :]))
        to_the_front = jnp.argsort(~read, axis=-1, stable=True)
        z = jnp.take_along_axis(z, to_the_front, axis=-1)
        window, rest = (1,) * (z.ndim - 1) + (self.width,), ((0, 0),) * (z.ndim - 1) + ((0, self.width - 1),)
        zero = np.zeros((), z.dtype)  # a NumPy zero: only then JAX knows that this is a sum, and differentiates it
        sums = jax.lax.reduce_window(z, zero, jax.lax.add, window, (1,) * z.ndim, rest)  # one for each first token
        count = read.sum(axis=-1, keepdims=True)
        whole = jax.lax.broadcasted_iota(jnp.int32, z.shape, z.ndim - 1) <= jnp.maximum(count - self.width, 0)
        means = sums / jnp.clip(count, 1, self.width).astype(z.dtype)
        return _max(means, whole & (count > 0))


@AGGREGATORS.register
@dataclasses.dataclass(frozen=True)
class SoftmaxMean(Aggregator):
    """Σₜ softmaxₜ(zₜ/φ) zₜ: between the mean (φ → ∞) and the maximum (φ → 0).

    Args:
      temperature: φ, in units of the readings.
    """

    temperature: float = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature} must be positive")

    def __call__(self, z: Float[Array, "... reading pos"], read: Bool[Array, "... pos"]) -> Float[Array, "..."]:
        z = z[..., 0, :]
        return (masked_softmax(z / self.temperature, read) * z).sum(axis=-1)


@AGGREGATORS.register
@dataclasses.dataclass(frozen=True)
class Attention(Aggregator):
    """Σₜ softmaxₜ(qₜ) vₜ with two readings for each token: q says how much a token counts, v what it says."""

    @property
    def readings(self) -> int:
        return 2

    def __call__(self, z: Float[Array, "... reading pos"], read: Bool[Array, "... pos"]) -> Float[Array, "..."]:
        return (masked_softmax(z[..., 0, :], read) * z[..., 1, :]).sum(axis=-1)


@AGGREGATORS.register
@dataclasses.dataclass(frozen=True)
class MeanExcess(Aggregator):
    """(1/n) Σₜ max(zₜ - t, 0): tokens below the level t count as 0.

    Args:
      level: t, in units of the readings.
    """

    needs_bias = True
    level: float = 0.0

    @property
    def first_reading(self) -> float:
        return self.level + 1.0  # below the level there is no gradient

    def __call__(self, z: Float[Array, "... reading pos"], read: Bool[Array, "... pos"]) -> Float[Array, "..."]:
        return _mean(jax.nn.relu(z[..., 0, :] - self.level), read)


@AGGREGATORS.register
@dataclasses.dataclass(frozen=True)
class MultiMax(Aggregator):
    """Σₕ maxₜ zₕₜ with one reading for each head: each head may look at another token.

    The maximum stands where an attention probe has a softmax: the score of one token in a long text is not diluted by
    the others. In the paper the readings are linear in a small MLP of the activation, as with
    `TokenProbe(MultiMax(), hidden=(100, 100))`. Here the maximum is used in training as well as in scoring.

    Args:
      heads: the number of heads.
    """

    interchangeable = True
    heads: int = 4

    def __post_init__(self):
        if self.heads < 1:
            raise UserError(f"heads={self.heads} must be at least 1")

    @property
    def readings(self) -> int:
        return self.heads

    def __call__(self, z: Float[Array, "... reading pos"], read: Bool[Array, "... pos"]) -> Float[Array, "..."]:
        each = jnp.broadcast_to(read[..., None, :], z.shape)
        return _max(z, each).sum(axis=-1)


MEAN = Mean()
