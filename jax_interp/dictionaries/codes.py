"""The latents of a batch, z [row, feature], in four forms.

    DenseCode   all of z                                         ReLU, JumpReLU, Gated
    RowCode     k values a row, and their features               TopK, GroupMax, matching pursuit
    BatchCode   n values, the row and the feature of each        BatchTopK: rows have different numbers of latents
    EntryCode   the same, with pre-activations                   ReLU, JumpReLU, Gated in training, once few are on

Losses and decoders use the methods of `Code` and work with every form.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jax_interp.dictionaries.sparse import products as sparse


class Code(Protocol):
    """What every form of a code can do."""

    def decode(self, W: Float[Array, "feature d"]) -> Float[Array, "row d"]:
        """z @ W."""
        ...

    def dense(self, n_features: int) -> Float[Array, "row feature"]:
        """z."""
        ...

    def weighted_sum(self, weight: Float[Array, " feature"]) -> Float[Array, ""]:
        """Σ over rows and features of z · weight."""
        ...

    def firing_counts(self, n_features: int) -> Int[Array, " feature"]:
        """In how many rows each feature is on."""
        ...

    def mask_features(self, on: Bool[Array, " feature"]) -> Self:
        """The code with 0 for the features that are not `on`."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseCode:
    """All latents."""

    values: Float[Array, "row feature"]
    pre: Float[Array, "row feature"]
    """Pre-activations, for losses that act on them."""

    def decode(self, W):
        return self.values @ W

    def dense(self, n_features):
        return self.values

    def weighted_sum(self, weight):
        return jnp.sum(jnp.sum(self.values, axis=0) * weight)

    def firing_counts(self, n_features):
        return jnp.sum(self.values != 0, axis=0, dtype=jnp.int32)

    def mask_features(self, on):
        return self.with_values(jnp.where(on[None, :], self.values, jnp.zeros((), self.values.dtype)))

    def with_values(self, values: Float[Array, "row feature"]) -> Self:
        """The code with other values and the same pre-activations."""
        return dataclasses.replace(self, values=values)

    def gather(self, numbers: Float[Array, " feature"]) -> Float[Array, "1 feature"]:
        """One number for each feature, shaped to multiply `values` and `pre`."""
        return numbers[None, :]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowCode:
    """k latents of each row. Those with value 0 are off."""

    values: Float[Array, "row k"]
    indices: Int[Array, "row k"]
    """The feature of each value. Within a row they differ."""
    kernels: bool = dataclasses.field(default=False, metadata={"static": True})
    """Use the kernels of sparse/kernels.py where there is an NVIDIA GPU."""

    def decode(self, W):
        return sparse.decode(self.values, self.indices, W, self.kernels)

    def dense(self, n_features):
        return sparse.to_dense(self.values, self.indices, n_features)

    def weighted_sum(self, weight):
        return jnp.sum(self.values * weight[self.indices])

    def firing_counts(self, n_features):
        return jnp.zeros((n_features,), jnp.int32).at[self.indices].add((self.values != 0).astype(jnp.int32))

    def mask_features(self, on):
        zero = jnp.zeros((), self.values.dtype)
        return dataclasses.replace(self, values=jnp.where(on[self.indices], self.values, zero))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchCode:
    """A list of latents, in ascending order of rows, and of features inside a row. Those with value 0 are off.

    No row and feature occur twice. Unused places come last: they have value 0, and the row and the feature one past the
    end.
    """

    values: Float[Array, " entry"]
    rows: Int[Array, " entry"]
    features: Int[Array, " entry"]
    n_rows: int = dataclasses.field(metadata={"static": True})
    kernels: bool = dataclasses.field(default=False, metadata={"static": True})
    """Use the kernels of sparse/kernels.py where there is an NVIDIA GPU."""

    def decode(self, W):
        return sparse.decode_entries(self.values, self.rows, self.features, W, self.n_rows, self.kernels)

    def dense(self, n_features):
        zeros = jnp.zeros((self.n_rows, n_features), self.values.dtype)
        return zeros.at[self.rows, self.features].add(self.values, mode="drop")

    def weighted_sum(self, weight):
        return jnp.sum(self.values * self.gather(weight))

    def firing_counts(self, n_features):
        on = (self.values != 0).astype(jnp.int32)
        return jnp.zeros((n_features,), jnp.int32).at[self.features].add(on, mode="drop")

    def mask_features(self, on):
        return self.with_values(jnp.where(self.gather(on), self.values, jnp.zeros((), self.values.dtype)))

    def with_values(self, values: Float[Array, " entry"]) -> Self:
        """The code with other values at the same entries."""
        return dataclasses.replace(self, values=values)

    def gather(self, numbers: Shaped[Array, " feature"]) -> Shaped[Array, " entry"]:
        """For each entry, the number of its feature."""
        return numbers.at[self.features].get(mode="clip")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class EntryCode(BatchCode):
    """The entries of a `DenseCode` that its losses depend on."""

    pre: Float[Array, " entry"]
    """Pre-activations. Those of unused places are far below 0."""
