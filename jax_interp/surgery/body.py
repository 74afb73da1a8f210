"""`BodyValues`: the values that surgery keeps while one traced body runs, and passes from one body to the next.

A body is a piece of the model that JAX traces as one function: the model outside its blocks, a block, the body of a
scan over a `Stack`, or one branch of an edit that acts at some layers only. The kept values enter a body as inputs and
leave it as outputs, so every transformation sees them as data.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jax_interp.core.errors import UserError
from jax_interp.surgery.place import Place


class CarryError(UserError, LookupError):
    """An edit uses a carried value before it is made, or makes a value that cannot be carried."""


class NotYetMade(Exception):
    """An edit asked for a carried value whose type is not known yet. Raised only while types are being found."""


@dataclasses.dataclass
class BodyValues:
    """The readings so far, by the index of their tap, and the carried values, by name.

    Attributes:
      readings: arrays. In a scanned body they are the buffers that the layers write to.
      carried: pytrees of arrays.
      first_made: for each carried value that the layers of a scanned body make, the first layer that makes it. Before
        that layer the entry in `carried` is zeros.
      made_here: for each carried value that this body has made so far, the first layer that made it.
      finding_types: True while the body is evaluated only for the names and types of its carried values. Nothing is
        computed then, and readings and plain edits are skipped.
    """

    readings: dict[int, Array] = dataclasses.field(default_factory=dict)
    carried: dict[str, PyTree] = dataclasses.field(default_factory=dict)
    first_made: dict[str, int] = dataclasses.field(default_factory=dict)
    made_here: dict[str, int] = dataclasses.field(default_factory=dict)
    finding_types: bool = False

    def copy(self, **changes: Any) -> BodyValues:
        """A copy, for a body inside this one. `changes` replaces fields."""
        fields = {"readings": self.readings, "carried": self.carried, "made_here": self.made_here, **changes}
        return dataclasses.replace(self, **{name: dict(value) for name, value in fields.items()})

    def changed_since(self, before: BodyValues) -> tuple[dict[int, Array], dict[str, PyTree]]:
        """The readings and carried values that are new, or differ from those in `before`."""
        readings = {i: value for i, value in self.readings.items() if before.readings.get(i) is not value}
        return readings, {k: value for k, value in self.carried.items() if before.carried.get(k) is not value}

    def update(self, after: BodyValues) -> None:
        """Take over the values of a body inside this one, after it has run."""
        self.readings, self.carried, self.made_here = after.readings, after.carried, after.made_here

    def carry(self, name: str, value: PyTree, place: Place) -> None:
        """Keep a carried value. Its structure, shapes and dtypes stay the same for the whole run."""
        value = jax.tree.map(_strongly_typed, value)
        if name in self.carried and (old := _spelled(self.carried[name])) != (new := _spelled(value)):
            raise CarryError(f"the carried value {name!r} was made as {old} and is made again as {new}: keep one type")
        self.carried[name] = value
        if place.inside:
            self.made_here[name] = min(place.layers[0], self.made_here.get(name, place.layers[0]))

    def take(self, name: str, place: Place, who: str) -> PyTree:
        """A carried value, for the edit called `who`. Raises `CarryError` if no edit has made it yet."""
        if self.finding_types and name not in self.carried:
            raise NotYetMade(name)
        first = self.first_made.get(name)
        if name in self.carried and (self.finding_types or first is None or self._is_made(name, first, place)):
            return self.carried[name]
        if name in self.carried:
            raise CarryError(
                f"{who} uses the carried value {name!r} at layer {place.layers[0]}, before it is made: it is made at "
                f"layer {first}, {'after this edit' if first == place.layers[0] else 'later'}"
            )
        made = ", ".join(map(repr, sorted(set(self.carried) - set(self.first_made)))) or "none"
        raise CarryError(
            f"{who} uses the carried value {name!r}, which no edit has made before it. Made so far: {made}. The edit "
            "that makes it (site.carry) must act at an earlier value of the same run"
        )

    def _is_made(self, name: str, first: int, place: Place) -> bool:
        """In a scanned body: whether the value is made before this scope runs, at every layer of the scope."""
        return place.layers[0] > first or (place.layers[0] == first and self.made_here.get(name) == first)


def zeros_like_type(kind: Any, rows: int | None = None) -> Array:
    """Zeros with the shape, dtype and (explicit) sharding of `kind`. `rows` adds a leading axis of that size."""
    shape = kind.shape if rows is None else (rows, *kind.shape)
    sharding = getattr(kind, "sharding", None)
    if sharding is None or sharding.mesh.empty or not sharding.mesh.are_all_axes_explicit:
        return jnp.zeros(shape, kind.dtype)
    spec = sharding.spec if rows is None else jax.P(None, *sharding.spec)
    return jnp.zeros(shape, kind.dtype, out_sharding=spec)


def _strongly_typed(leaf: Any) -> Array:
    array = jnp.asarray(leaf)
    return jax.lax.convert_element_type(array, array.dtype)  # a scan carries no weak types


def _spelled(value: PyTree) -> str:
    """The type of a carried value, in words."""
    return str(jax.tree.map(lambda leaf: jax.typeof(leaf).str_short(), value))
