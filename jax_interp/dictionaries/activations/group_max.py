"""GroupMax: features form k groups, and the largest pre-activation of each group is on (EleutherAI's sparsify).

It is as sparse as TopK and cheaper, because it does not sort.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations.activation import ACTIVATIONS, SelectiveActivation
from jax_interp.dictionaries.activations.topk import encode_masked, encode_selected
from jax_interp.dictionaries.codes import DenseCode, RowCode
from jax_interp.dictionaries.sharding import feature_shards

if TYPE_CHECKING:
    from jax_interp.dictionaries.forms.dictionary import Dictionary


@ACTIVATIONS.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupMax(SelectiveActivation):
    """The largest pre-activation of each of `k` groups is on, if it is positive."""

    k: int = dataclasses.field(default=32, metadata={"static": True})
    """Number of groups. Each has n_features / k neighbouring features, so k must divide n_features."""
    kernels: bool = dataclasses.field(default=False, metadata={"static": True})
    """As in `TopK`."""

    def init(self, n_features: int, dtype: DTypeLike) -> GroupMax:
        if self.k < 1 or n_features % self.k:
            raise UserError(
                f"{n_features} features cannot be cut into k={self.k} equal groups: give a k that divides {n_features}"
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
