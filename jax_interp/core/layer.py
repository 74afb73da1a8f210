"""What all layers share: the scope in which they name values, the sharding of a result, and the precision of sums."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array


class Scope(Protocol):
    """Where a layer names its values: `jax_interp.surgery.Site`, or anything that can be called the same way."""

    def __call__(self, name: str, x: Array, axes: str = ..., /) -> Array:
        """Give `x` a name. Returns `x`, or the edited value where an edit acts on this name."""
        ...

    def __truediv__(self, name: str, /) -> Scope:
        """The scope of the part `name`."""
        ...


def out_sharding_like(x: Array) -> P | None:
    """The `out_sharding` that gives a result the sharding of `x`.

    Under a mesh with explicit axes the type of an array carries its sharding, and a contraction over a sharded axis
    must be told the sharding of its result. None where types carry no sharding.
    """
    sharding = jax.typeof(x).sharding
    return sharding.spec if not sharding.mesh.empty and sharding.mesh.are_all_axes_explicit else None


def out_sharding_of_rows(index: Array) -> P | None:
    """The `out_sharding` of the vectors looked up for `index`: the sharding of `index`, the feature axis unsharded."""
    spec = out_sharding_like(index)
    return None if spec is None else P(*spec, None)


def upcast(x: Array) -> Array:
    """`x` in float32 at least: unchanged where its dtype has 32 bits or more. Long sums lose too much in 16 bits."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)
