"""Parts of a graph that are the same value in consecutive layers: one address, one array with a layer axis."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from jax_interp.circuits.graph import Part
from jax_interp.surgery import Address


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Parts that are one value in consecutive layers.

    Attributes:
      address: the address of all of them, such as "blocks.0:12.attn.result".
      rows: for each layer, the numbers of its nodes among all sources (or all targets).
      axis: the axis of the nodes, as in `Part`.
      layers: the layers.
    """

    address: str
    rows: Int[np.ndarray, "layer node"]
    axis: str | None
    layers: range

    def take(self, values: Shaped[Array, "node ..."]) -> Shaped[Array, "layer node ..."]:
        """The entries of these nodes, in an array with one entry for each source (or target)."""
        return values[jnp.asarray(self.rows)]

    def put(self, into: Shaped[Array, "node ..."], values: Shaped[Array, "layer node ..."]) -> Array:
        """`into` with `values` as the entries of these nodes."""
        return into.at[jnp.asarray(self.rows).reshape(-1)].set(values.reshape(-1, *values.shape[2:]))


def stretches(parts: tuple[Part, ...]) -> list[Stretch]:
    """Cut parts into as few stretches as possible."""
    groups: list[tuple[str, str | None, list[int], list[list[int]]]] = []
    first = 0
    for part in parts:
        where = Address.parse(part.address)
        layer, rows = int(where.layers or 0), list(range(first, first + len(part.names)))
        first += len(part.names)
        for name, axis, layers, held in groups:
            if name == where.name and axis == part.axis and layers[-1] == layer - 1 and len(held[-1]) == len(rows):
                layers.append(layer)
                held.append(rows)
                break
        else:
            groups.append((where.name, part.axis, [layer], [rows]))
    return [
        Stretch(f"blocks.{layers[0]}:{layers[-1] + 1}.{name}", np.asarray(held), axis, range(layers[0], layers[-1] + 1))
        for name, axis, layers, held in groups
    ]
