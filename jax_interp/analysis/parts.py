"""`Parts`: rows that add up, each with a name; and what all files here need of arrays that were read."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.surgery import Activations, AddressError

Pos = int | slice | Int[Array, ""] | Int[Array, "pos"] | None
"""Which positions: an index (which may be data) drops the axis, a slice or several indices keep it, None takes all."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """Named rows of one quantity: `values[i]` is that of `labels[i]`. Labels are structure, values are data.

    `parts["L1H3"]` is one row. `jax.tree.map(fn, parts)` keeps the names.
    """

    values: Float[Array, "part ..."]
    labels: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    def __getitem__(self, label: str) -> Float[Array, "..."]:
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
        """All rows added up."""
        return jnp.sum(self.values, axis=0)

    def top(self, k: int = 10) -> list[tuple[str, float]]:
        """The `k` parts of largest magnitude with their values, means over the other axes. Not for use under jit."""
        means = np.asarray(self.values, np.float64).reshape(len(self), -1).mean(axis=1)
        return [(self.labels[i], float(means[i])) for i in np.argsort(-np.abs(means), kind="stable")[:k]]


def concatenate(*parts: Parts) -> Parts:
    """One `Parts` with the rows of all."""
    values = jnp.concatenate([part.values for part in parts])
    return Parts(values, tuple(label for part in parts for label in part.labels))


def layers(acts: Activations, name: str, n: int) -> Float[Array, "layer ..."]:
    """The block value `name` at layers 0 to n - 1. Raises `AddressError` where one was not read."""
    have = acts.layers(name)
    if missing := [layer for layer in range(n) if layer not in have]:
        raise AddressError(f"'{name}' was not read at layers {missing}: read 'blocks.*.{name}'")
    rows = acts.stack(name)
    return upcast(rows if len(have) == n else rows[jnp.asarray([have.index(layer) for layer in range(n)], jnp.int32)])


def at_pos(x: Array, pos: Pos, axis: int) -> Array:
    """The positions `pos` of `x`, whose axis `axis` has them. An array's index outside gives NaN."""
    if pos is None:
        return x
    if isinstance(pos, (int, np.integer)):
        if not -x.shape[axis] <= pos < x.shape[axis]:
            raise UserError(f"pos={pos} is outside the {x.shape[axis]} positions that were read")
        return jnp.take(x, int(pos) % x.shape[axis], axis=axis)
    if isinstance(pos, slice):
        return x[(slice(None),) * axis + (pos,)]
    return x.at[(slice(None),) * axis + (jnp.asarray(pos),)].get(mode="fill", fill_value=jnp.nan)


def drops_axis(pos: Pos) -> bool:
    """Whether `at_pos` leaves no position axis."""
    return pos is not None and not isinstance(pos, slice) and jnp.ndim(pos) == 0


def over(x: Array, ndim: int) -> Array:
    """With axes of length one before it, `ndim` in all."""
    return jnp.expand_dims(x, range(ndim - x.ndim))


def each(stack: Any, fn: Callable[[Array], Array]) -> Any:
    """`fn` of the rows, whether they have names or not."""
    return jax.tree.map(fn, stack)
