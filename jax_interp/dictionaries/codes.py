"""A batch's latents in three forms of one meaning, so that sparsity is used where there is some.

    DenseCode   z [row, feature]                                 ReLU, JumpReLU, Gated
    RowCode     k values a row, and where they are               TopK, GroupMax, matching pursuit
    BatchCode   n values, the row and the feature of each        BatchTopK: rows have different numbers of latents

Losses and decoders ask a code for what they need and never look which it is.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.dictionaries import sparse


class Code(Protocol):
    def decode(self, W: Float[Array, "feature d"]) -> Float[Array, "row d"]:
        """z @ W."""
        ...

    def dense(self, n_features: int) -> Float[Array, "row feature"]: ...

    def total(self, weight: Float[Array, " feature"]) -> Float[Array, ""]:
        """Σ over rows and features of z · weight."""
        ...

    def fires(self, n_features: int) -> Int[Array, " feature"]:
        """In how many rows each feature is on."""
        ...

    def keep(self, on: Bool[Array, " feature"]) -> Any:
        """The code without the features that are not `on`."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseCode:
    """`pre` is what the activation decided on, for losses that act on it (gate or pre-activation)."""

    z: Float[Array, "row feature"]
    pre: Float[Array, "row feature"]

    def decode(self, W):
        return self.z @ W

    def dense(self, n_features):
        return self.z

    def total(self, weight):
        return jnp.sum(jnp.sum(self.z, axis=0) * weight)

    def fires(self, n_features):
        return jnp.sum(self.z != 0, axis=0, dtype=jnp.int32)

    def keep(self, on):
        return dataclasses.replace(self, z=jnp.where(on[None, :], self.z, jnp.zeros((), self.z.dtype)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowCode:
    """Entries whose value is 0 are off. Within a row the indices differ."""

    values: Float[Array, "row k"]
    indices: Int[Array, "row k"]

    def decode(self, W):
        return sparse.decode(self.values, self.indices, W)

    def dense(self, n_features):
        return sparse.to_dense(self.values, self.indices, n_features)

    def total(self, weight):
        return jnp.sum(self.values * weight[self.indices])

    def fires(self, n_features):
        return jnp.zeros((n_features,), jnp.int32).at[self.indices].add((self.values != 0).astype(jnp.int32))

    def keep(self, on):
        zero = jnp.zeros((), self.values.dtype)
        return dataclasses.replace(self, values=jnp.where(on[self.indices], self.values, zero))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchCode:
    """Entries in ascending order of rows; those whose value is 0 are off. No entry is there twice."""

    values: Float[Array, " entry"]
    rows: Int[Array, " entry"]
    features: Int[Array, " entry"]
    n_rows: int = dataclasses.field(metadata={"static": True})

    def decode(self, W):
        return sparse.decode_entries(self.values, self.rows, self.features, W, self.n_rows)

    def dense(self, n_features):
        zeros = jnp.zeros((self.n_rows, n_features), self.values.dtype)
        return zeros.at[self.rows, self.features].add(self.values)

    def total(self, weight):
        return jnp.sum(self.values * weight[self.features])

    def fires(self, n_features):
        return jnp.zeros((n_features,), jnp.int32).at[self.features].add((self.values != 0).astype(jnp.int32))

    def keep(self, on):
        zero = jnp.zeros((), self.values.dtype)
        return dataclasses.replace(self, values=jnp.where(on[self.features], self.values, zero))
