"""GroupMax: the features are cut into k groups, and of each the largest is on (EleutherAI's sparsify).

As sparse as TopK, and cheaper to find: there is nothing to sort.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations.activation import ACTIVATIONS, SelectiveActivation
from jax_interp.dictionaries.activations.topk import encode_masked, encode_selected
from jax_interp.dictionaries.codes import DenseCode, RowCode
from jax_interp.dictionaries.sharding import feature_shards

if TYPE_CHECKING:
    from jax_interp.dictionaries.forms.dictionary import Dictionary


@ACTIVATIONS.register
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupMax(SelectiveActivation):
    """`k` groups of n_features / k neighbours. `kernels` as for TopK."""

    k: int = dataclasses.field(default=32, metadata={"static": True})
    kernels: bool = dataclasses.field(default=False, metadata={"static": True})

    def init(self, n_features: int, dtype: Any) -> GroupMax:
        if self.k < 1 or n_features % self.k:
            raise UserError(
                f"{n_features} features cannot be cut into k={self.k} equal groups: give a k that divides it"
            )
        return self

    def encode(self, dictionary: Dictionary, x: Float[Array, "row d"]) -> RowCode | DenseCode:
        group = dictionary.n_features // self.k
        if feature_shards() > 1:

            def least(score):
                groups = score.reshape(-1, self.k, group)
                return jnp.broadcast_to(jnp.max(groups, axis=2, keepdims=True), groups.shape).reshape(score.shape)

            return encode_masked(dictionary, x, None, least)

        def largest(pre):
            groups = pre.reshape(pre.shape[0], self.k, group)
            indices = jnp.argmax(groups, axis=2) + group * jnp.arange(self.k)[None, :]
            return jnp.take_along_axis(pre, indices, axis=1, mode="promise_in_bounds"), indices

        return encode_selected(largest, dictionary, x, kernels=self.kernels)
