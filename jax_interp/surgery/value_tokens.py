"""`ValueTokens`: which tokens a value belongs to, for edits that depend on it.

The rows of a batch may be padded on either side, and in generation a call has the last token of every row only. With
`ValueTokens` an edit finds the entries of its own arrays for these tokens, and compares rows position by position.
Padding never enters a result at a real token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, Shaped

from jax_interp.core.layer import out_sharding_like, upcast
from jax_interp.surgery.region import POSITIONS_FROM_ZERO, Positions, of_this_call


@dataclasses.dataclass(frozen=True)
class ValueTokens:
    """Which tokens a value belongs to.

    Attributes:
      axes: the names of the axes of the value.
      positions: the positions of the forward pass, and padding.
      everywhere: whether the edit acts at all positions.
    """

    axes: tuple[str, ...]
    positions: Positions
    everywhere: bool = False

    def like(self, array: ArrayLike, x: Array) -> Array:
        """`array` broadcast from the right to the shape of the value `x`, in the dtype of `wide(x)`.

        If the call has a part of a text, the result has the entries of its tokens. A slot past the end of `array` has
        NaN: the edit must not act there.

        Raises:
          ValueError: the array does not fit, or ends too early.
        """
        array, positions = jnp.asarray(array).astype(wide(x).dtype), self.positions
        axis = self.axes.index("pos") - len(self.axes) + array.ndim if "pos" in self.axes else -1
        continues = positions.first_slot is not None and not isinstance(positions.first_slot, int)
        if continues and self.everywhere and axis >= 0 and 1 < array.shape[axis] < (positions.slots or 0):
            raise ValueError(
                f"its array ends after {array.shape[axis]} positions, and the text has up to {positions.slots}: give "
                "pos= or where=, or a longer array"
            )
        missing = jnp.nan if jnp.issubdtype(array.dtype, jnp.inexact) else 0
        return jnp.broadcast_to(of_this_call(array, x.shape, self.axes, positions, missing), x.shape)

    def mean_over_rows(self, x: Array) -> Array:
        """The mean over the rows that have a real token at the same absolute position. Padding keeps its value."""
        if self._rows_are_alike:
            return jnp.broadcast_to(jnp.mean(x, axis=0), x.shape)
        pos = self.axes.index("pos")

        def mean(x: Array, at: Array, real: Array, *keys: Array) -> Array:
            rows = jnp.moveaxis(self._sorted_keys(x, *keys), pos, 1)
            whole, flat = rows.shape, wide(rows).reshape(-1, *rows.shape[2:])
            counted = real.reshape(-1).astype(flat.dtype).reshape(-1, *(1,) * (flat.ndim - 1))
            # Every distinct position gets a number. There are at most as many as tokens.
            _, number = jnp.unique(jnp.where(real, at, -1).reshape(-1), size=real.size, return_inverse=True)
            add = lambda terms: jax.ops.segment_sum(terms, number.reshape(-1), real.size)
            means = add(jnp.where(counted > 0, flat, jnp.zeros_like(flat))) / jnp.maximum(add(counted), 1)
            means = jnp.moveaxis(means[number.reshape(-1)].reshape(whole), 1, pos).astype(x.dtype)
            return jnp.where(self.expanded(real, "pos"), self._unsorted_keys(means, *keys), x)

        return _on_every_device(mean, x, self.absolute(x), self._real(x), *self._real_keys)

    def from_rows(self, x: Array, donor: Int[ArrayLike, "batch"]) -> Array:
        """Row `i` becomes row `donor[i]`, at the same absolute positions.

        A token keeps its value if the donor has no real token at its position.
        """
        donor = jnp.asarray(donor)
        if self._rows_are_alike:
            return _on_every_device(lambda x, donor: jnp.take(x, donor, axis=0), x, donor)
        pos = self.axes.index("pos")

        def moved(x: Array, donor: Array, at: Array, real: Array, *keys: Array) -> Array:
            y = jnp.take(self._sorted_keys(x, *keys), donor, axis=0)
            # [batch, pos, pos of the donor]
            same = (at[:, :, None] == at[donor][:, None, :]) & real[donor][:, None, :]
            source = self.expanded(jnp.argmax(same, axis=-1), "pos")
            y = self._unsorted_keys(jnp.take_along_axis(y, source, axis=pos), *keys)
            return jnp.where(self.expanded(jnp.any(same, axis=-1) & real, "pos"), y, x)

        return _on_every_device(moved, x, donor, self.absolute(x), self._real(x), *self._real_keys)

    def noise(self, key: Key[Array, ""], x: Array) -> Float[Array, "..."]:
        """Standard normal noise for the value `x`, in at least float32.

        The noise at a token depends on the key, its row and its absolute position. So padding, the other tokens of the
        call and the dtype of the model do not change it, and each new token of a generated text has its own.
        """
        dtype = wide(x).dtype
        if not self.has_rows:
            return jax.random.normal(key, x.shape, jnp.float32).astype(dtype)

        def drawn(x: Array, key: Array, at: Array, *real_keys: Array) -> Array:
            sizes = dict(zip(self.axes, x.shape, strict=True))
            rows = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(sizes.pop("batch")))
            keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(rows, at)
            sizes.pop("pos")
            names = sorted(sizes, key=lambda name: name != "key")  # first, so that the number of keys changes no noise
            shape = tuple(sizes[name] for name in names)
            noise = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32)))(keys)
            noise = jnp.transpose(noise, [("batch", "pos", *names).index(name) for name in self.axes])
            return self._unsorted_keys(noise.astype(dtype), *real_keys)

        return _on_every_device(drawn, x, key, self.absolute(x), *self._real_keys)

    @property
    def are_whole_texts(self) -> bool:
        """Whether the call has whole texts without padding."""
        return self.positions.first_slot is None and self.positions.real is None

    @property
    def has_rows(self) -> bool:
        """Whether the value has a batch axis, first, and a pos axis."""
        return self.axes[:1] == ("batch",) and "pos" in self.axes

    @property
    def _rows_are_alike(self) -> bool:
        """Whether an entry of the value belongs to the same position in every row."""
        at = self.positions.at
        differ = at is not None and jnp.ndim(at) == 2 and jnp.shape(at)[0] > 1
        return not self.has_rows or (self.positions.real is None and not differ)

    def absolute(self, x: Array) -> Int[Array, "batch pos"]:
        """The absolute position of each token of the value `x`, which has a batch and a pos axis."""
        shape = (x.shape[0], x.shape[self.axes.index("pos")])
        at = jnp.arange(shape[1]) if self.positions.at is None else jnp.asarray(self.positions.at)
        return jnp.broadcast_to(at if at.ndim == 2 else at[None], shape)

    def _real(self, x: Array) -> Bool[Array, "batch pos"]:
        return jnp.ones_like(self.absolute(x), dtype=bool) if self.positions.real is None else self.positions.real

    @property
    def _real_keys(self) -> tuple[Bool[Array, "batch key"], ...]:
        """Which keys are real; nothing if the value has no keys, or all are real."""
        keys = self.positions.real_keys
        return () if keys is None or "key" not in self.axes else (keys,)

    def _sorted_keys(self, x: Array, keys: Bool[Array, "batch key"] | None = None) -> Array:
        """The value with the real keys of each row first."""
        if keys is None:
            return x
        order = jnp.argsort(~keys, axis=1, stable=True)
        return jnp.take_along_axis(x, self.expanded(order, "key"), axis=self.axes.index("key"))

    def _unsorted_keys(self, x: Array, keys: Bool[Array, "batch key"] | None = None) -> Array:
        """The inverse of `_sorted_keys` at real keys. Nothing attends to the other keys."""
        if keys is None:
            return x
        number = jnp.maximum(jnp.cumsum(keys, axis=1) - 1, 0)
        return jnp.take_along_axis(x, self.expanded(number, "key"), axis=self.axes.index("key"))

    def expanded(self, array: Shaped[Array, "batch n"], name: str = "pos") -> Array:
        """An array over (batch, `name`) with axes of length 1 in place of the other axes of the value."""
        return jnp.expand_dims(array, [i for i, axis in enumerate(self.axes) if axis not in ("batch", name)])


WHOLE_TEXT = ValueTokens((), POSITIONS_FROM_ZERO)
"""The tokens of a value of which nothing is known: whole texts of one length without padding."""


def wide(x: Array) -> Array:
    """`x` in float32 if it is a float of 16 bits, otherwise unchanged."""
    return upcast(x) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _on_every_device(fn: Callable[..., Array], x: Array, *args: Array) -> Array:
    """`fn(x, *args)` with the sharding of `x`. Under explicit axes, the compiler decides how rows are moved."""
    rows = out_sharding_like(x)
    return fn(x, *args) if rows is None else jax.sharding.auto_axes(out_sharding=rows)(fn)(x, *args)
