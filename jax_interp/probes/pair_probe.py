"""`PairProbe`: a probe of contrast pairs, whose two sides were normalised separately."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.class_moments import HIGH
from jax_interp.probes.probe import PROBES, Probe


@PROBES.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class PairProbe(Probe):
    """Log-odds that an example is of the positive class: one affine function for each side of the pairs.

    The normalisation of each side is part of its function, so the probe takes raw activations.

    Args:
      weights: w for the first and for the second examples of pairs.
      biases: b for both sides.
      threshold: the score between the classes.
    """

    weights: Float[Array, "2 d"]
    biases: Float[Array, "2"]
    threshold: Float[Array, ""]

    def score(self, x: Float[Array, "... d"], read: Bool[Array, "... pos"] | None = None) -> Float[Array, "..."]:
        """The score of one example whose side is not known: the mean of its log-odds as a first and as a second one."""
        if read is not None:
            raise UserError("a pair probe reads one vector at a time: it takes no mask of tokens")
        return self._affine(x, self.direction(), jnp.mean(self.biases))

    def score_pairs(self, first: Float[Array, "... d"], second: Float[Array, "... d"]) -> Float[Array, "..."]:
        """½ (p(first) + 1 - p(second)): the probability that the first example is of the positive class.

        Above ½, the first example is the positive one. Burns et al. 2022 (arXiv:2212.03827), section 2.
        """
        p = [jax.nn.sigmoid(self._affine(x, self.weights[i], self.biases[i])) for i, x in enumerate((first, second))]
        return (p[0] + 1 - p[1]) / 2

    def direction(self) -> Float[Array, " d"]:
        return jnp.mean(self.weights, axis=-2)

    def _affine(self, x: Float[Array, "... d"], weight: Float[Array, " d"], bias: Float[Array, ""]) -> Array:
        return jnp.einsum("...d,d->...", x.astype(weight.dtype), weight, precision=HIGH) + bias
