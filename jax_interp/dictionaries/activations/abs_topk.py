"""AbsTopK: the k pre-activations of largest absolute value, with their signs (arXiv:2510.00404).

A latent can be negative, so one decoder row serves a concept and its opposite.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations.activation import ACTIVATIONS
from jax_interp.dictionaries.activations.select import top_k
from jax_interp.dictionaries.activations.topk import TopK


@ACTIVATIONS.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class AbsTopK(TopK):
    """`k` latents are on for each input: those of the largest absolute value. There is no ReLU.

    The fields are those of `TopK`. With `weighted`, the absolute values are multiplied by ‖W_dec,i‖ for the selection.
    """

    signed = True

    def _select(self, score: Float[Array, "row feature"]) -> tuple[Float[Array, "row k"], Int[Array, "row k"]]:
        indices = top_k(jnp.abs(score), self.k)[1]
        return jnp.take_along_axis(score, indices, axis=1, mode="promise_in_bounds"), indices
