"""`MulticlassProbe`: one linear score for each class."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.probe import PROBES, Probe


@PROBES.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class MulticlassProbe(Probe):
    """score(x)[class] = x · weight[class] + bias[class]. softmax(score) is the probability of each class.

    It has no threshold: `predicted` is the class of the largest score.

    Args:
      weight: one direction for each class.
      bias: the score of each class at x = 0.
    """

    weight: Float[Array, "class d"]
    bias: Float[Array, " class"]

    @property
    def threshold(self) -> Float[Array, ""]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Raises UserError: several classes have no common threshold."""
        raise UserError("a probe of several classes has no threshold: use predicted(x), the class of the largest score")

    def score(self, x: Float[Array, "... d"], read: Bool[Array, "... pos"] | None = None) -> Float[Array, "... class"]:
        if read is not None:
            raise UserError("this probe reads one vector at a time: it takes no mask of tokens")
        high = jax.lax.Precision.HIGHEST
        product = jnp.einsum("...d,cd->...c", x.astype(self.weight.dtype), self.weight, precision=high)
        return product + self.bias.reshape((1,) * (product.ndim - 1) + (-1,))

    def predicted(self, x: Float[Array, "... d"]) -> Int[Array, "..."]:
        """The number of the class with the largest score."""
        return jnp.argmax(self.score(x), axis=-1)

    def direction(self, of: int | None = None) -> Float[Array, " d"]:
        """The direction along which the score of a class grows, relative to the mean of all classes.

        Args:
          of: the number of the class.

        Raises:
          UserError: no class is given, or it does not exist.
        """
        classes = self.weight.shape[-2]
        if of is None or not 0 <= of < classes:
            raise UserError(f"direction({of}): give the number of a class, 0 to {classes - 1}")
        return self.weight[..., of, :] - jnp.mean(self.weight, axis=-2)
