"""`StreamedLogistic`: logistic regression that can be fitted on a stream (`stream_logistic`)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.probes.class_moments import CONSTANT, HIGH
from jax_interp.probes.kind import KINDS, Kind, Rows
from jax_interp.probes.kinds.logistic import Logistic
from jax_interp.probes.probe import LinearProbe


@KINDS.register
@dataclasses.dataclass(frozen=True)
class StreamedLogistic(Kind):
    """Σᵢ vᵢ log(1 + exp(-sᵢ (xᵢ·w + b))) + |w|² / (2 C), the objective of scikit-learn.

    `stream_logistic` follows its gradient once over a stream, for all sites, C and seeds in one step, and comes near to
    the optimum. `fit_probes` finds the optimum on activations that are kept.

    Args:
      C: the inverse strengths of the penalty, which are fitted side by side.
      learning_rate: the learning rate of Adam at the start of a stream, in columns of variance 1. It falls to 0.
      measured: the number of first batches on which the mean and the variance of each column are measured.
      bootstrap: give each row a random weight for each seed, from the exponential distribution (Rubin 1981, the
        Bayesian bootstrap). The spread over seeds is then the uncertainty from the sample. The problem is convex, so
        without it all seeds have one optimum.
    """

    C: tuple[float, ...] = (1.0,)
    learning_rate: float = 0.01
    measured: int = 4
    bootstrap: bool = False

    def __post_init__(self) -> None:
        if not self.C or not all(C > 0 for C in self.C):
            raise UserError(f"C={self.C} must be positive numbers")
        if not self.learning_rate > 0 or self.measured < 1:
            raise UserError(f"learning_rate={self.learning_rate} and measured={self.measured} must be positive")

    @property
    def strengths(self) -> tuple[float, ...]:
        return self.C

    def fit(self, data: Rows, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> LinearProbe:
        if self.bootstrap:
            weight = data.weight * jax.random.exponential(key, data.weight.shape, data.weight.dtype)
            data = dataclasses.replace(data, weight=weight)
        return Logistic(self.C).fit(data, strength, key)


def column_scale(mean: Float[Array, " d"], variance: Float[Array, " d"]) -> Float[Array, " d"]:
    """The standard deviation of each column; 1 for a column that is constant."""
    deviation = jnp.sqrt(variance)
    return jnp.where(deviation > CONSTANT * jnp.abs(mean), deviation, jnp.ones_like(deviation))


def log_losses(
    params: tuple[Float[Array, "strength seed d"], Float[Array, "strength seed"]],
    z: Float[Array, "row d"],
    y: Float[Array, " row"],
    weight: Float[Array, "row seed"],
) -> Float[Array, "strength seed"]:
    """The sum of the logistic losses of scaled rows."""
    u, b = params
    logits = jnp.einsum("nd,csd->ncs", z, u, precision=HIGH) + b[None, :, :]
    sign = jnp.where(y == 1, 1.0, -1.0).astype(z.dtype)
    return jnp.sum(jax.nn.softplus(-sign[:, None, None] * logits) * weight[:, None, :], axis=0)


def penalties(
    u: Float[Array, "strength seed d"], scale: Float[Array, " d"], C: Float[Array, " strength"]
) -> Float[Array, "strength seed"]:
    """|w|² / (2 C) of the weights for unscaled columns."""
    w = u / scale[None, None, :]
    return jnp.sum(w * w, axis=-1) / (2 * C[:, None])


def raw_probes(
    params: tuple[Float[Array, "strength seed d"], Float[Array, "strength seed"]],
    mean: Float[Array, " d"],
    scale: Float[Array, " d"],
) -> LinearProbe:
    """The probes for unscaled columns: arrays `[strength, seed, ...]`."""
    weight = params[0] / scale[None, None, :]
    bias = params[1] - jnp.einsum("csd,d->cs", weight, mean, precision=HIGH)
    return LinearProbe(weight, bias, jnp.zeros_like(bias), log_odds=True)
