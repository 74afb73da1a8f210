"""What all losses of one step look at: the target's pass, the importances, and how outputs are compared."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.importance.inputs import Importance, PerMatrix
from jax_interp.decomposition.masks import Masks, Sampling, masked_output

Compare = Literal["mse", "kl"]


@dataclasses.dataclass(frozen=True)
class Scene:
    """One batch as the losses see it. `hidden` are the target's matrix outputs, where some loss wants them; `progress`
    is step / steps; without `delta` there is no Δ component (SPD 2025)."""

    model: Decomposed
    args: tuple[Any, ...]
    output: Array
    importance: Importance
    inputs: PerMatrix
    hidden: PerMatrix | None = None
    progress: Float[Array, ""] | float = 0.0
    delta: bool = True
    sampling: Sampling = "continuous"
    compare: Compare = "mse"
    remat: bool = False

    def error(self, masks: Masks) -> Float[Array, ""]:
        """How far the masked model's output is from the target's. With `remat`, recomputed backward."""
        forward = lambda model, masks, args: masked_output(model, masks, *args)
        run = jax.checkpoint(forward) if self.remat else forward
        return distance(self.compare, self.output, run(self.model, dict(masks), self.args))


def distance(compare: Compare, target: Array, output: Array) -> Float[Array, ""]:
    """ "mse": the mean of squares over all entries. "kl": KL(target‖output) of logits, mean over rows."""
    return jnp.mean(distances(compare, target, output))


def distances(compare: Compare, target: Array, output: Array) -> Float[Array, "batch ..."]:
    """`distance` row by row: the mean over the last axis of squares, or the KL divergence in nats."""
    target, output = target.astype(jnp.float32), output.astype(jnp.float32)
    if compare == "mse":
        return jnp.mean((target - output) ** 2, axis=-1)
    log_p, log_q = jax.nn.log_softmax(target), jax.nn.log_softmax(output)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
