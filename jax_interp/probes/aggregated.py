"""`AggregatedProbe`: readings of each token, and an aggregator that makes one score of them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.aggregators import Aggregator
from jax_interp.probes.dense import Dense, forward
from jax_interp.probes.probe import PROBES, Probe


@PROBES.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class AggregatedProbe(Probe):
    """score(x) = aggregator(zₜ) + offset, zₜ = layers(xₜ).

    Args:
      layers: they make the readings of a token. One layer: the readings are linear in the activation.
      offset: added to the score of a text.
      threshold: the score between the classes.
      aggregator: how the readings become one score.
      log_odds: whether the score is meant as the log-odds of the positive class.
    """

    layers: tuple[Dense, ...]
    offset: Float[Array, ""]
    threshold: Float[Array, ""]
    aggregator: Aggregator = dataclasses.field(metadata={"static": True})
    log_odds: bool = dataclasses.field(default=False, metadata={"static": True})

    reads: ClassVar[Literal["vectors", "sequences"]] = "sequences"

    def score(self, x: Float[Array, "... pos d"], read: Bool[Array, "... pos"] | None = None) -> Float[Array, "..."]:
        read = jnp.ones(x.shape[:-1], bool) if read is None else read
        kept = jnp.where(read[..., None], x, jnp.zeros_like(x))  # a token that does not count may be anything, NaN too
        return jnp.where(read.any(axis=-1), self.pooled(kept, read), jnp.nan)

    def pooled(self, x: Float[Array, "... pos d"], read: Bool[Array, "... pos"]) -> Float[Array, "..."]:
        """The score, for activations that are finite everywhere. A text of which no token counts has `offset`."""
        return self.aggregator(jnp.moveaxis(self.readings(x), -1, -2), read) + self.offset

    def readings(self, x: Float[Array, "... d"], read: Bool[Array, "..."] | None = None) -> Float[Array, "... reading"]:
        """zₜ of each token, whether it counts or not."""
        return forward(self.layers, x)

    def token_scores(self, x: Float[Array, "... d"]) -> Float[Array, "..."]:
        """The score of each token by itself: that of a text that consists of it."""
        return self.score(x[..., None, :])

    def direction(self) -> Float[Array, " d"]:
        if len(self.layers) != 1 or self.aggregator.readings > 1:
            raise UserError(
                f"the probe makes {self.aggregator.readings} reading(s) of a token with {len(self.layers)} layer(s), "
                "and has no single direction"
            )
        return self.layers[0].weight[..., 0]
