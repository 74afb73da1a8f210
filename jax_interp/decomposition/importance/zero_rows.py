"""Rows on which all matrices read zeros have the same importances, so these are computed for one such row.

The inputs of toys are sparse: in TMS 5-2 with probability .05, 77 % of the rows are zero, and in ResidMLP-1 37 %. The
importance function is most of the cost of a small decomposition. Where it computes each row by itself, it is called
with the other rows and one row of zeros (`NonzeroRows.take`), and the values of this row are copied to all zero rows
(`NonzeroRows.spread`). This is exact. The gradient of the row of zeros is the sum over all zero rows.

Shapes are fixed, so the number of places for other rows is chosen before the program is compiled, from one batch
(`places_for_batches`). A batch with more such rows takes another branch of the program, which computes all rows
(`on_nonzero_rows`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.leaves import PyTree
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition.importance.base import PerMatrix
from jax_interp.decomposition.matrices import is_stacked, row_axes

Result = TypeVar("Result")

# A second branch takes as long to compile as the step itself. It pays in runs with this many rows in a batch, if at
# most this part of the rows has to be computed.
FEWEST_ROWS = 1024
LARGEST_PART = 0.75


def nonzero_rows(inputs: PerMatrix) -> Bool[Array, " row"]:
    """Whether some matrix reads something else than zeros on a row.

    Args:
      inputs: the input of each matrix, `[*layer, row, d_in]`.
    """
    of_matrix = [jnp.any(x != 0, axis=(0, -1) if is_stacked(name) else -1) for name, x in inputs.items()]
    return jnp.any(jnp.stack(of_matrix), axis=0)


def places_for_batches(read: Callable[[PyTree], PerMatrix], batch: Callable[[], PyTree]) -> int | None:
    """The number of places for the nonzero rows of batches like one that is given; None if it does not pay.

    It pays on one CPU device, if inputs are vectors with one row axis and no position axis, and enough rows are zero.

    Args:
      read: a function from a batch to the input of each matrix, `[*layer, row, d_in]`.
      batch: a function that returns a batch. It is called only where the answer depends on it.
    """
    if jax.default_backend() != "cpu" or not jax.sharding.get_abstract_mesh().empty:
        return None
    x = batch()
    types = jax.eval_shape(read, x)
    rows = next(iter(types.values())).shape[-2]
    one_row_axis = all(len(row_axes(name, x)) == 1 for name, x in types.items())
    is_float = all(jnp.issubdtype(x.dtype, jnp.floating) for x in types.values())
    if not one_row_axis or not is_float or rows < FEWEST_ROWS:
        return None
    return places_for(int(jax.jit(lambda x: jnp.sum(nonzero_rows(read(x)), dtype=jnp.int32))(x)), rows)


def places_for(count: int, rows: int) -> int | None:
    """The number of places for batches of which one has `count` nonzero rows out of `rows`.

    Five standard deviations of the count of independent rows are added, so the other branch is hardly ever taken.
    """
    spread = math.sqrt(count * (1 - count / rows))
    places = 32 * math.ceil((count + 5 * spread + 1) / 32)
    return places if places <= LARGEST_PART * rows else None


@register_dataclass
@dataclasses.dataclass(frozen=True)
class NonzeroRows:
    """The rows of a batch for which the importance function is computed.

    index: the nonzero rows in their order. Unused places hold the number of rows.
    place: for each row its place in `index`; for a zero row the number of places.
    """

    index: Int[Array, " place"]
    place: Int[Array, " row"]

    @classmethod
    def of(cls, on: Bool[Array, " row"], places: int) -> NonzeroRows:
        """The rows of a mask with at most `places` True entries."""
        rank = jnp.cumsum(on, dtype=jnp.int32)
        index = jnp.searchsorted(rank, jnp.arange(1, places + 1, dtype=jnp.int32)).astype(jnp.int32)
        return cls(index, jnp.where(on, rank - 1, places))

    def take(self, inputs: PerMatrix) -> PerMatrix:
        """The nonzero rows and, as the last row, zeros: `[*layer, places + 1, d_in]`."""
        last = jnp.full((1,), len(self.place), jnp.int32)
        return {name: _rows_at(x, jnp.concatenate([self.index, last])) for name, x in inputs.items()}

    def spread(self, values: PerMatrix) -> PerMatrix:
        """Values for the rows of `take`, as values for all rows of the batch."""
        return {name: _spread(x, self.index, self.place) for name, x in values.items()}


def on_nonzero_rows(compute: Callable[[NonzeroRows | None], Result], inputs: PerMatrix, places: int | None) -> Result:
    """Return `compute(rows)`, where `rows` is None if the importances of all rows are to be computed.

    Args:
      compute: a function of the rows. Its result must not depend on them, except by rounding.
      inputs: the input of each matrix, `[*layer, row, d_in]`.
      places: the number of places (`places_for_batches`). None: `rows` is always None.
    """
    if places is None:
        return compute(None)
    on = nonzero_rows(inputs)
    fits = jnp.sum(on, dtype=jnp.int32) <= places
    return jax.lax.cond(fits, lambda: compute(NonzeroRows.of(on, places)), lambda: compute(None))


def _rows_at(x: Float[Array, "*layer row d"], index: Int[Array, " place"]) -> Float[Array, "*layer place d"]:
    return x.at[..., index, :].get(mode="fill", fill_value=0, wrap_negative_indices=False)


@jax.custom_vjp
def _spread(
    x: Float[Array, "*layer place_and_one C"], index: Int[Array, " place"], place: Int[Array, " row"]
) -> Float[Array, "*layer row C"]:
    return x.at[..., place, :].get(mode="promise_in_bounds")


def _spread_backward(kept: tuple[Array, Array], grad: Float[Array, "*layer row C"]) -> tuple[Array, None, None]:
    """The transpose of a gather is a scatter, which is slow on a CPU. The rows to gather are known."""
    index, place = kept
    is_zero = (place == len(index)).astype(grad.dtype)
    of_zero = jnp.einsum("r,...rc->...c", is_zero, grad)
    return jnp.concatenate([_rows_at(grad, index), of_zero[..., None, :]], axis=-2), None, None


_spread.defvjp(lambda x, index, place: (_spread(x, index, place), (index, place)), _spread_backward)
