"""What all losses of one step look at: the target's pass, the importances, and how outputs are compared."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.objectives import kl_divergence, log_probabilities, mean_squared_error
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.importance.inputs import Importance, PerMatrix
from jax_interp.decomposition.masks import Masks, Sampling, edits
from jax_interp.surgery import edit, read

Compare = Literal["mse", "kl"]
Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Scene:
    """One batch as the losses see it. `hidden` are the target's matrix outputs, where some loss wants them; `progress`
    is step / steps; without `delta` there is no Δ component (SPD 2025). `model` has the target's own weights and the
    components as they are trained: masked forwards alone compute in `compute`."""

    model: Decomposed
    args: tuple[Any, ...]
    output: Array
    importance: Importance
    hidden: PerMatrix | None = None
    progress: Float[Array, ""] | float = 0.0
    delta: bool = True
    sampling: Sampling = "continuous"
    compare: Compare = "mse"
    remat: bool = False
    compute: Precision = "float32"

    def masked(self, masks: Masks, *addresses: str) -> Any:
        """The masked model's output, or its values at these addresses instead. With `remat`, recomputed backward."""

        def forward(model: Decomposed, masks: Masks, args: tuple[Any, ...]) -> Any:
            masked = edit(in_precision(self.compute, model), *edits(masks))
            return read(masked, *addresses, output=False)(*args) if addresses else masked(*args)

        run = jax.checkpoint(forward) if self.remat else forward
        return run(self.model, dict(masks), self.args)

    def error(self, masks: Masks) -> Float[Array, ""]:
        """How far the masked model's output is from the target's."""
        return distance(self.compare, self.output, self.masked(masks))


def in_precision(compute: Precision, tree: Any) -> Any:
    """A pytree with its floating-point arrays cast down to bfloat16; for "float32" as it is."""
    if compute == "float32":
        return tree
    is_float = lambda leaf: hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: leaf.astype(compute) if is_float(leaf) else leaf, tree)


def distance(compare: Compare, target: Array, output: Array) -> Float[Array, ""]:
    """ "mse": the mean of squares over all entries. "kl": KL(target‖output) of logits, mean over rows."""
    return jnp.mean(distances(compare, target, output))


def distances(compare: Compare, target: Array, output: Array) -> Float[Array, "batch ..."]:
    """`distance` row by row: the mean over the last axis of squares, or the KL divergence in nats."""
    if compare == "mse":
        return mean_squared_error(target, output)
    return kl_divergence(log_probabilities(target), log_probabilities(output))
