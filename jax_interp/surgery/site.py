"""`Site`: the object that a model calls to name its values.

`site(name, x)` names the value, and applies the reads and edits at this name. It also calls
`jax.ad_checkpoint.checkpoint_name`, so a remat policy can use the same names. A site is passed as an argument. A name
without a read or edit costs nothing in the compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Int, PyTree

from jax_interp.surgery import region as regions
from jax_interp.surgery.address import AddressError
from jax_interp.surgery.body import BodyValues, CarryError, NotYetMade, zeros_like_type
from jax_interp.surgery.contract import Block
from jax_interp.surgery.editing import apply_edit, checked_layer, name_of
from jax_interp.surgery.place import Place
from jax_interp.surgery.stack import depth_of
from jax_interp.surgery.taps import Edit, Read, Resolved, Tap
from jax_interp.surgery.trace import Trace
from jax_interp.surgery.value_tokens import ValueTokens


class Site:
    """A scope of names. A model starts with `Site.open`; `site / "attn"` is the scope below it.

    Attributes:
      trace: the state of this forward pass, with its taps.
      place: the block that is running.
      values: the readings and carried values of the body that is running.
      axes: in the scope of a scoped edit, the names of the axes of the edited value.
    """

    def __init__(
        self,
        trace: Trace,
        place: Place | None = None,
        values: BodyValues | None = None,
        *,
        prefix: str = "",
        edit: Resolved | None = None,
        axes: tuple[str, ...] = (),
    ):
        self.trace = trace
        self.place = Place() if place is None else place
        self.values = BodyValues() if values is None else values
        self.axes = axes
        self._prefix, self._edit = prefix, edit

    @classmethod
    def open(
        cls,
        taps: tuple[Tap, ...] = (),
        blocks: Iterable[Block] = (),
        positions: regions.Positions = regions.POSITIONS_FROM_ZERO,
    ) -> Site:
        """The root scope of a forward pass.

        Args:
          taps: the `taps=` that the model was called with.
          blocks: the model's segments. They give the number of layers.
          positions: the positions along the `pos` axis, and padding. Default: positions 0..n-1 and no padding.
        """
        if positions.at is not None and positions.length is None:
            positions = dataclasses.replace(positions, length=jnp.max(positions.at, axis=-1, keepdims=True) + 1)
        return cls(Trace(tuple(taps), depth_of(blocks), positions))

    def __truediv__(self, name: str) -> Site:
        return Site(self.trace, self.place, self.values, prefix=f"{self._prefix}{name}.", edit=self._edit)

    def in_block(self, place: Place, values: BodyValues) -> Site:
        """The root scope of a block. `values` are the readings and carried values of its body."""
        return Site(self.trace, place, values)

    def again(self) -> Site:
        """This scope, for computing its values once more from another input.

        Edits act there too, since they are part of the function. What is read or carried there is dropped: a reading
        and a carried value are those of the first time. Call this inside the function that JAX maps or scans.
        """
        return Site(self.trace, self.place, self.values.copy(), prefix=self._prefix, edit=self._edit, axes=self.axes)

    @property
    def layer(self) -> int | Int[Array, ""]:
        """The number of the block that is running: an int in an unrolled block, a traced integer in a scanned block."""
        if self.place.layer is None:
            raise AddressError("only a scope inside the blocks has a layer")
        return self.place.layer

    @property
    def tokens(self) -> ValueTokens:
        """In the scope of a scoped edit: which tokens the edited value belongs to."""
        return ValueTokens(self.axes, self.trace.positions)

    def wants(self, *names: str) -> bool:
        """Whether a read or edit addresses one of these names in this scope.

        A model asks this to skip computing values that nobody needs. The answer is a Python bool, the same for all
        layers of one `Stack`.
        """
        self.trace.offer([self._prefix + name for name in names], self.place.inside)
        full = [self._prefix + name for name in names]
        return self.trace.survey or any(r.name in full and self._acts_here(r) for r in self.trace.taps)

    def edits(self, name: str) -> bool:
        """Whether an edit acts at this name, or below it. The answer is a Python bool, as that of `wants`."""
        full = self._prefix + name
        taps = (r for r in self.trace.taps if isinstance(r.tap, Edit) and f"{r.name}.".startswith(f"{full}."))
        return any(self._acts_here(r) for r in taps)

    def _acts_here(self, r: Resolved) -> bool:
        """Whether a tap acts in some layer of this scope."""
        if r.inside != self.place.inside or r.index < self._outside_of:
            return False
        return not r.inside or bool(self.place.wanted(r))

    def __call__(self, name: str, x: Array, axes: str = "batch pos d_model") -> Array:
        """Name the value `x`.

        Args:
          name: the name, relative to this scope.
          x: the value.
          axes: the names of the axes of `x`, separated by spaces.

        Returns:
          `x`, or the edited value if edits act at this address.
        """
        full, axis_names = self._prefix + name, tuple(axes.split())
        self.trace.record(full, self.place.names_layers, x, axis_names)
        for r in self.trace.acting(full, self.place.inside, self._outside_of):
            self.trace.meet(r)
            if isinstance(r.tap, Read):
                self._read(r, x)
            else:
                x = self._apply(r, x, full, axis_names)
        return checkpoint_name(x, full)

    def close(self, output: Any) -> Any:
        """End the forward pass: check that every tap found its value, and return the output, the readings, or both."""
        trace = self.trace
        if trace.survey:
            return trace.surveyed()
        trace.check()
        if trace.asks_for_bounds:
            return trace.index_bounds
        if trace.asks_for_block_inputs:
            return output, trace.block_inputs
        if not trace.reads:
            return output
        activations = trace.collect()
        return (output, activations) if trace.wants_output else activations

    # ---- carried values -------------------------------------------------------------------------------------

    def carry(self, name: str, value: PyTree) -> None:
        """Make a carried value, for later edits of the same run. Only a scoped edit can do this.

        Args:
          name: any name that the edits agree on. A second edit of the same run that carries this name replaces the
            value.
          value: a pytree of arrays. If the value is made again (at the next layer, for example), it must have the same
            structure, shapes and dtypes.

        Raises:
          CarryError: the edit has `layer=`, which is data, so it is not known whether the value is made; or the type of
            the value changed.
        """
        if self._edit is None:
            raise CarryError(f"{name!r}: only a scoped edit carries values; a model passes its values as arguments")
        if self._edit.tap.layer is not None:
            raise CarryError(
                f"the edit at {self._edit.tap.address!r} with layer= cannot make the carried value {name!r}: its layer "
                "is data. Write the layer in the address, blocks.3.resid_post"
            )
        self.values.carry(name, value, self.place)

    def carried(self, name: str) -> PyTree:
        """A carried value that an earlier edit of this run has made.

        Raises:
          CarryError: no earlier edit has made the value.
        """
        if self._edit is None:
            raise CarryError(f"{name!r}: only a scoped edit uses carried values")
        return self.values.take(
            name, self.place, f"the edit {name_of(self._edit.tap.fn)} at {self._edit.tap.address!r}"
        )

    # ---- reading and editing --------------------------------------------------------------------------------

    @property
    def _outside_of(self) -> int:
        """The index of the first tap that sees names of this scope. Only outer surgeries see the values of an edit."""
        return 0 if self._edit is None else self._edit.index + 1

    def _read(self, r: Resolved, x: Array) -> None:
        place, values = self.place, self.values
        if not place.inside:
            self.trace.add_reading(r, x, has_layer_axis=False)
        elif values.finding_types or not (wanted := place.wanted(r)):
            return
        elif not place.is_scanned:
            values.readings[r.index] = x
        else:
            # The buffer has a row for each wanted layer of this segment. An unwanted layer writes the row of the next
            # wanted layer, which overwrites it. This needs no branch and no copy. After the last wanted layer, the
            # row is written back unchanged.
            buffer = values.readings[r.index]
            row = place.lookup([min(sum(w < layer for w in wanted), len(wanted) - 1) for layer in place.span])
            if wanted[-1] != place.layers[-1]:
                x = jnp.where(self.layer <= wanted[-1], x, jax.lax.dynamic_index_in_dim(buffer, row, keepdims=False))
            values.readings[r.index] = jax.lax.dynamic_update_index_in_dim(buffer, x, row, 0)

    def _apply(self, r: Resolved, x: Array, name: str, axes: tuple[str, ...]) -> Array:
        """The value after one edit; unchanged in layers where the edit does not act."""
        on = self.place.acts(r, self.trace.depth)
        if on is False or (self.values.finding_types and not r.is_scoped):
            return x
        if not r.is_scoped:
            act = lambda x: apply_edit(self.place.callable_of(r), r, x, axes, self.trace, None)
            return act(x) if on is True else checked_layer(r, jax.lax.cond(on, act, lambda x: x, x), self.trace)

        def scoped(x: Array) -> tuple[Array, BodyValues]:
            values = self.values.copy()
            scope = Site(self.trace, self.place.below(r), values, prefix=f"{name}.", edit=r, axes=axes)
            return apply_edit(self.place.callable_of(r), r, x, axes, self.trace, scope), values

        if self.values.finding_types:
            try:
                y, values = scoped(x)
            except NotYetMade:
                return x
        elif on is True:
            y, values = scoped(x)
        else:
            y, values = self._branch(on, scoped, x)
            y = checked_layer(r, y, self.trace)
        self.values.update(values)
        return y

    def _branch(
        self, on: Array, scoped: Callable[[Array], tuple[Array, BodyValues]], x: Array
    ) -> tuple[Array, BodyValues]:
        """`lax.cond(on, scoped, identity)`. Readings and carried values are outputs of both branches.

        If the edit is off, they keep their earlier values, or are zeros if there were none.
        """
        before, after = self.values, self.values.copy()

        def act(x):
            y, values = scoped(x)
            after.made_here = values.made_here
            return y, *values.changed_since(before)

        _, readings, carried = jax.eval_shape(act, x)

        def skip(x):
            kept = lambda old, kinds: {
                k: old[k] if k in old else jax.tree.map(zeros_like_type, kinds[k]) for k in kinds
            }
            return x, kept(before.readings, readings), kept(before.carried, carried)

        y, readings, carried = jax.lax.cond(on, act, skip, x)
        after.readings |= readings
        after.carried |= carried
        return y, after
