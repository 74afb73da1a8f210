"""The two sides of contrast pairs, each centred by itself, as CCS and CRC use them."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.class_moments import HIGH, counted_rows
from jax_interp.probes.kind import PairRows
from jax_interp.probes.pair_probe import PairProbe


@register_dataclass
@dataclasses.dataclass(frozen=True)
class PairSides:
    """Both sides after normalisation: (x - mean) / scale, with the mean and scale of the side.

    Without this, the feature "is a first example" (the answer word "yes", a missing negation) would satisfy the losses.

    Args:
      values: the normalised rows. A pair of weight 0 is 0.
      mean: the mean of each side.
      scale: the standard deviation of each column of each side, or 1.
      weight: the share of each pair in the means. The sum is 1.
    """

    values: Float[Array, "2 pair d"]
    mean: Float[Array, "2 d"]
    scale: Float[Array, "2 d"]
    weight: Float[Array, " pair"]

    @classmethod
    def of(cls, data: PairRows, *, scaled: bool) -> PairSides:
        """Normalise contrast pairs.

        Args:
          data: the pairs.
          scaled: divide each column by its standard deviation.
        """
        x = jnp.stack([counted_rows(side, data.weight) for side in (data.first, data.second)])
        weight = data.weight.astype(x.dtype) / jnp.sum(data.weight).astype(x.dtype)
        mean = jnp.einsum("p,spd->sd", weight, x, precision=HIGH)
        centred = jnp.where((weight > 0)[None, :, None], x - mean[:, None, :], jnp.zeros_like(x))
        scale = jnp.ones_like(mean)
        if scaled:
            deviation = jnp.sqrt(jnp.einsum("p,spd->sd", weight, centred * centred, precision=HIGH))
            scale = jnp.where(deviation > 1e-6 * jnp.abs(mean), deviation, scale)
        return cls(centred / scale[:, None, :], mean, scale, weight)

    def probe(self, w: Float[Array, " d"], b: Float[Array, ""], data: PairRows) -> PairProbe:
        """The probe with log-odds w · x̃ + b on normalised rows. Labels only choose the sign.

        Args:
          w: the weight.
          b: the bias.
          data: the pairs, with their labels.
        """
        logits = jnp.einsum("spd,d->sp", self.values, w, precision=HIGH) + b
        right = jnp.sum(jnp.where((logits[0] > logits[1]) == (data.y == 1), self.weight, jnp.zeros_like(self.weight)))
        sign = jnp.where(right < 0.5, -1.0, 1.0).astype(w.dtype)
        weights = sign * w[None, :] / self.scale
        biases = sign * b - jnp.sum(weights * self.mean, axis=-1)
        return PairProbe(weights, biases, jnp.zeros_like(b))
