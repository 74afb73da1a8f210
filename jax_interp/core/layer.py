"""Parts that all layers share: the scope for naming values, the sharding of results, and the precision of sums."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, DTypeLike, PyTree


class Scope(Protocol):
    """The object with which a layer names its values: `jax_interp.surgery.Site`, or an object with the same methods."""

    def __call__(self, name: str, x: Array, axes: str = ..., /) -> Array:
        """Name the value `x`. Returns `x`, or the edited value if an edit acts on this name."""
        ...

    def __truediv__(self, name: str, /) -> Scope:
        """The scope of the part `name`."""
        ...


def out_sharding_like(x: Array) -> P | None:
    """The `out_sharding` that gives a result the sharding of `x`.

    Under a mesh with explicit axes the type of an array includes its sharding, and a contraction over a sharded axis
    needs `out_sharding`. The result is None under other meshes.
    """
    sharding = jax.typeof(x).sharding
    return sharding.spec if not sharding.mesh.empty and sharding.mesh.are_all_axes_explicit else None


def out_sharding_of_rows(index: Array) -> P | None:
    """The `out_sharding` of the vectors looked up for `index`: the sharding of `index`, the feature axis unsharded."""
    spec = out_sharding_like(index)
    return None if spec is None else P(*spec, None)


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """The dtype for sums and angles of values of `dtype`: `dtype`, or float32 if it has 16 bits."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def upcast(x: Array) -> Array:
    """`x` in at least float32 (unchanged if its dtype has 32 bits or more). Long sums are too inexact in 16 bits."""
    return x.astype(at_least_float32(x.dtype))


def upcast_leaves(tree: PyTree) -> PyTree:
    """The pytree with every floating-point leaf in at least float32."""
    is_float = lambda leaf: hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: upcast(leaf) if is_float(leaf) else leaf, tree)
