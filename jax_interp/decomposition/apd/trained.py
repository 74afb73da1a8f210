"""What APD leaves: a decomposed model, and from which attribution on a component is kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.decomposition.apd.attributions import attributions, least_kept
from jax_interp.decomposition.apd.train import APDConfig
from jax_interp.decomposition.components import Decomposed
from jax_interp.surgery.taps import static


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainedAPD:
    """`model` with `rank` neighbouring subcomponents for each component. Those with an attribution of at least
    `threshold` are kept: a number, so that one input has a mask without a batch around it."""

    model: Decomposed
    threshold: Float[Array, ""]
    rank: int = static()

    @property
    def C(self) -> int:
        return next(iter(self.model.components.values())).C // self.rank

    def attributions(self, x: Any) -> Float[Array, "batch C"]:
        return attributions(self.model, self.rank, x)

    def kept(self, x: Any) -> Float[Array, "batch C"]:
        """1 where a component is kept, 0 elsewhere."""
        scores = self.attributions(x)
        return (scores >= self.threshold).astype(scores.dtype)


def with_threshold(config: APDConfig, model: Decomposed, x: Any) -> TrainedAPD:
    """The trained model with the threshold at which the components kept on `x` are the batch's top k; all of them where
    the config has no `top_k`."""
    if config.top_k is None:
        return TrainedAPD(model, jnp.zeros((), jnp.float32), config.rank)
    k = config.top_k
    threshold = jax.jit(lambda model, x: least_kept(attributions(model, config.rank, x), k))(model, x)
    above_zero = jnp.finfo(threshold.dtype).tiny  # as `batch_top_k`, it keeps nothing for an attribution of nothing
    return TrainedAPD(model, jnp.maximum(threshold, above_zero), config.rank)
