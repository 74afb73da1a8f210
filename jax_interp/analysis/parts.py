"""`Parts`, labelled rows of one quantity; and functions that select layers and positions of activations."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Activations, AddressError

Pos = int | slice | Int[Array, ""] | Int[Array, "pos"] | None
"""Positions. An index (which may be traced) drops the axis; a slice or several indices keep it; None takes all."""


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """Labelled rows of one quantity: `values[i]` is the row of `labels[i]`. Labels are structure, values are data.

    `jax.tree.map(fn, parts)` keeps the labels.

    Args:
      values: `[part, ...]`.
      labels: one for each row, as TransformerLens writes them: "embed", "3_mlp_out", "L1H4", "L2N46".

    Example:

        parts = decompose_resid(model, acts)
        parts["3_mlp_out"]      # one row
        parts.sum()             # what the rows add up to
        parts.top(5)            # the labels and means of the largest
    """

    values: Float[Array, "part ..."]
    labels: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    def __getitem__(self, label: str) -> Float[Array, "..."]:
        """The row of one label. If there is none, raises UserError with the nearest labels."""
        if label not in self.labels:
            near = difflib.get_close_matches(label, self.labels, 3) or self.labels[:8]
            raise UserError(f"no part {label!r} among {len(self.labels)}; there are {', '.join(near)}, ...")
        return self.values[self.labels.index(label)]

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        names = ", ".join(self.labels if len(self) < 7 else (*self.labels[:3], "...", *self.labels[-2:]))
        return f"Parts({names}: {getattr(self.values, 'dtype', '?')}{list(getattr(self.values, 'shape', ()))})"

    def sum(self) -> Float[Array, "..."]:
        """The sum of all rows."""
        return jnp.sum(self.values, axis=0)

    def top(self, k: int = 10) -> list[tuple[str, float]]:
        """`(label, mean)` of the `k` rows whose mean is largest in magnitude. This does not work under `jit`."""
        means = np.asarray(self.values, np.float64).reshape(len(self), -1).mean(axis=1)
        return [(self.labels[i], float(means[i])) for i in np.argsort(-np.abs(means), kind="stable")[:k]]


Rows = TypeVar("Rows", Parts, Array)
"""A stack of rows `[part, ...]`, with or without labels."""


def concatenate(*parts: Parts) -> Parts:
    """One `Parts` with the rows of all."""
    values = jnp.concatenate([part.values for part in parts])
    return Parts(values, tuple(label for part in parts for label in part.labels))


def map_rows(fn: Callable[[Array], Array], stack: Rows) -> Rows:
    """Apply `fn` to the values of a stack. Labels do not change."""
    return jax.tree.map(fn, stack)


def stack_layers(acts: Activations, name: str, n: int) -> Float[Array, "layer ..."]:
    """The block value `name` at layers 0 to n - 1, stacked.

    Args:
      acts: what `read` returned.
      name: the value's name within its block, "attn.z".
      n: number of layers.

    Raises:
      AddressError: the value was not read at one of the layers.
    """
    have = acts.layers(name)
    if missing := [layer for layer in range(n) if layer not in have]:
        raise AddressError(f"'{name}' was not read at layers {missing}: read 'blocks.*.{name}'")
    rows = acts.stack(name)
    return upcast(rows if len(have) == n else rows[jnp.asarray([have.index(layer) for layer in range(n)], jnp.int32)])


def select_positions(x: Array, pos: Pos, axis: int) -> Array:
    """The positions `pos` of an array.

    Args:
      x: any array.
      pos: the positions to use.
      axis: the axis of `x` that has the positions.

    Returns:
      The selection. If an index is traced and out of range, the result is NaN, because a compiled program cannot raise.

    Raises:
      UserError: an index is out of range, or nothing is selected.
    """
    if pos is None:
        return x
    check_index(pos, x.shape[axis], "pos")
    if isinstance(pos, (int, np.integer)):
        return jnp.take(x, int(pos) % x.shape[axis], axis=axis)
    if isinstance(pos, slice):
        return x[(slice(None),) * axis + (pos,)]
    return x.at[(slice(None),) * axis + (jnp.asarray(pos),)].get(mode="fill", fill_value=jnp.nan)


def checked_mask(mask: Array | None, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """A mask of positions; True everywhere for None.

    Raises:
      UserError: the mask is not boolean, or has another shape; or there are no tokens.
    """
    if 0 in shape:
        raise UserError(f"there are no tokens: the batch has the shape {list(shape)}")
    if mask is None:
        return jnp.ones(shape, bool)
    if mask.dtype != bool or mask.shape != shape:
        raise UserError(
            f"a mask is bool{list(shape)}, True at the tokens that count; got {mask.dtype}{list(mask.shape)}"
        )
    return jnp.asarray(mask)


def check_index(index: Any, size: int, what: str) -> None:
    """Check that an index selects entries of an axis. Without this check JAX takes the nearest entry, without a word.

    Args:
      index: a number, a slice, or several numbers. Traced values are not checked.
      size: the length of the axis.
      what: the name of the index, for the message.

    Raises:
      UserError: a number is outside the axis or not an integer, or a slice selects nothing.
    """
    if isinstance(index, slice):
        if size and not range(size)[index]:
            raise UserError(f"{what}={index} selects nothing of an axis of {size}")
        return
    if isinstance(index, Tracer):
        return
    numbers = np.asarray(index)
    if numbers.dtype == bool and numbers.shape == (size,):
        return
    if not np.issubdtype(numbers.dtype, np.integer):
        raise UserError(f"{what}={index!r}: an index is an integer")
    if outside := [int(i) for i in numbers.ravel() if not -size <= i < size]:
        raise UserError(f"{what}={outside[0]} is outside an axis of {size}: from {-size} to {size - 1}")


def drops_axis(pos: Pos) -> bool:
    """Whether `select_positions` leaves no position axis."""
    return pos is not None and not isinstance(pos, slice) and jnp.ndim(pos) == 0


def expand_to(x: Array, ndim: int) -> Array:
    """`x` with leading axes of length one, `ndim` axes in all."""
    return jnp.expand_dims(x, range(ndim - x.ndim))
