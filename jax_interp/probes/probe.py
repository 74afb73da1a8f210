"""What a probe is: a pytree with `score`, `direction` and `threshold`. `LinearProbe` is the commonest one."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.registry import Registry


class Probe(abc.ABC):
    """A fitted probe: a frozen dataclass of arrays. It works inside `jit`, `grad` and `vmap`, and never standardises
    with the data that it scores.

    A probe that reads vectors has a score for each vector `[..., d]`. A probe that reads sequences has a score for each
    example `[..., pos, d]`, of which `read` names the tokens.
    """

    reads: ClassVar[Literal["vectors", "sequences"]] = "vectors"
    threshold: Float[Array, ""]
    """A score above it means the positive class. It was chosen on training data."""
    log_odds: bool = False
    """Whether the score is meant as the log-odds of the positive class, so that sigmoid(score) is a probability."""

    @abc.abstractmethod
    def score(self, x: Float[Array, "..."], read: Bool[Array, "... pos"] | None = None) -> Float[Array, "..."]:
        """How much the probe sees of the positive class.

        Args:
          x: `[..., d]`, or `[..., pos, d]` if the probe reads sequences.
          read: the tokens that count, for a probe that reads sequences. None: all.
        """

    def token_scores(self, x: Float[Array, "... d"]) -> Float[Array, "..."]:
        """The score of each token by itself, for pictures."""
        if self.reads == "sequences":
            raise UserError(f"{type(self).__name__} has no score for a single token")
        return self.score(x)

    def direction(self) -> Float[Array, " d"]:
        """The direction in activation space along which the score grows. Not normalised.

        Raises:
          UserError: the score is not linear in the activation.
        """
        raise UserError(f"{type(self).__name__} is not linear: it has no single direction")

    def positive(self, x: Float[Array, "..."], read: Bool[Array, "... pos"] | None = None) -> Bool[Array, "..."]:
        """Whether the score is above the threshold."""
        return self.score(x, read) > self.threshold


PROBES = Registry("probe", Probe)


@PROBES.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearProbe(Probe):
    """score(x) = x · weight + bias.

    Args:
      weight: w. If training standardised the columns, this is already w for raw activations.
      bias: b.
      threshold: the score between the classes.
      log_odds: whether the score is meant as the log-odds of the positive class, so that sigmoid(score) is a
        probability.
    """

    weight: Float[Array, " d"]
    bias: Float[Array, ""]
    threshold: Float[Array, ""]
    log_odds: bool = dataclasses.field(default=False, metadata={"static": True})

    def score(self, x: Float[Array, "... d"], read: Bool[Array, "... pos"] | None = None) -> Float[Array, "..."]:
        if read is not None:
            raise UserError("a linear probe reads one vector at a time: it takes no mask of tokens")
        product = jnp.einsum(
            "...d,d->...", x.astype(self.weight.dtype), self.weight, precision=jax.lax.Precision.HIGHEST
        )
        return product + self.bias

    def direction(self) -> Float[Array, " d"]:
        return self.weight
