"""The latents of a batch, z [row, feature], in four forms.

    DenseCode   all of z                                         ReLU, JumpReLU, Gated
    RowCode     k values a row, and their features               TopK, GroupMax, matching pursuit
    BatchCode   n values, the row and the feature of each        BatchTopK: rows have different numbers of latents
    EntryCode   a BatchCode with pre-activations                 ReLU, JumpReLU, Gated in training, once few are on

Losses and decoders use the methods of `Code` and work with every form.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, Self

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.sparse import products as sparse


class Code(Protocol):
    """The methods that every form of a code has."""

    def decode(self, W: Float[Array, "feature d"]) -> Float[Array, "row d"]:
        """Return `z @ W`."""
        ...

    def dense(self, n_features: int) -> Float[Array, "row feature"]:
        """Return z as a dense array."""
        ...

    def weighted_sum(self, weight: Float[Array, " feature"]) -> Float[Array, ""]:
        """Return the sum of `z * weight` over rows and features."""
        ...

    def firing_counts(self, n_features: int) -> Int[Array, " feature"]:
        """Return the number of rows in which each feature is on."""
        ...

    def mask_features(self, on: Bool[Array, " feature"]) -> Self:
        """Return the code with the latents of all other features set to 0."""
        ...


@register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseCode:
    """A code that holds every latent."""

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
        """Shape one number per feature so that it can multiply `values` and `pre`."""
        return numbers[None, :]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class RowCode:
    """A code that holds k latents of each row. Latents with value 0 are off."""

    values: Float[Array, "row k"]
    indices: Int[Array, "row k"]
    """The feature of each value. A feature occurs at most once in a row."""
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


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchCode:
    """A code that holds a list of latents, sorted by row and then by feature. Latents with value 0 are off.

    A pair of row and feature occurs at most once. Unused places come last: their value is 0, their row is `n_rows`, and
    their feature is the number of features.
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
        """Given one number per feature, return the number for the feature of each entry."""
        return numbers.at[self.features].get(mode="clip")


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class EntryCode(BatchCode):
    """The entries of a `DenseCode` that its losses depend on."""

    pre: Float[Array, " entry"]
    """Pre-activations. At unused places they are far below 0."""
