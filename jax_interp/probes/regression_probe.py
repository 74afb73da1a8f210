"""`RegressionProbe`: a linear prediction of a real number."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.probe import PROBES, Probe


@PROBES.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class RegressionProbe(Probe):
    """score(x) = x · weight + bias, the predicted number. It has no threshold.

    Args:
      weight: the weight for raw activations.
      bias: the prediction at x = 0.
    """

    weight: Float[Array, " d"]
    bias: Float[Array, ""]

    @property
    def threshold(self) -> Float[Array, ""]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Raises UserError: a regression has no classes."""
        raise UserError("a regression has no threshold: its score is a predicted number, not a class")

    def score(self, x: Float[Array, "... d"], read: Bool[Array, "... pos"] | None = None) -> Float[Array, "..."]:
        if read is not None:
            raise UserError("a regression probe reads one vector at a time: it takes no mask of tokens")
        high = jax.lax.Precision.HIGHEST
        return jnp.einsum("...d,d->...", x.astype(self.weight.dtype), self.weight, precision=high) + self.bias

    def direction(self) -> Float[Array, " d"]:
        return self.weight
