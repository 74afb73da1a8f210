"""`Nodes`: named values cut into units, as a static description. `make_nodes` in `nodes.py` makes it.

An array over units is flat, `[..., unit]`. `split` cuts it into one array for each address, `labelled` names its axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Each, Edit, TokenEdit, ValueTokens, at
from jax_interp.surgery.address import Address, canonical
from jax_interp.surgery.taps import static
from jax_interp.surgery.value_tokens import WHOLE_TEXT, wide

ArrayOrNumpy = TypeVar("ArrayOrNumpy", Array, np.ndarray)


@dataclasses.dataclass(frozen=True)
class NodeValue:
    """One address of `Nodes`, and how its value is cut.

    Attributes:
      address: the address, in the package's spelling.
      layers: the layers of the address; None for a value outside the blocks.
      axes: the names of the axes of the value in one layer. The first is `batch`.
      cut: for each axis after `batch`, whether the value is cut along it.
      sizes: the sizes of the axes that it is cut along.
    """

    address: str
    layers: tuple[int, ...] | None
    axes: tuple[str, ...]
    cut: tuple[bool, ...]
    sizes: tuple[int, ...]

    @property
    def has_layer_axis(self) -> bool:
        return not Address.parse(self.address).is_single

    @property
    def unit_axes(self) -> dict[str, tuple[int, ...]]:
        """The axes of the array of units, with the labels of their entries."""
        names = [name for name, cut in zip(self.axes[1:], self.cut) if cut]
        axes = {name: tuple(range(size)) for name, size in zip(names, self.sizes)}
        return {"layer": self.layers or (), **axes} if self.has_layer_axis else axes

    @property
    def unit_shape(self) -> tuple[int, ...]:
        return tuple(len(labels) for labels in self.unit_axes.values())

    def expanded(self, units: Shaped[Array, "*prompt *units"], prompts: bool) -> Array:
        """Units as an array that is broadcast to the value: axes of size 1 where the value is not cut."""
        if prompts and self.has_layer_axis:
            units = jnp.moveaxis(units, 0, 1)
        elif not prompts:
            units = jnp.expand_dims(units, int(self.has_layer_axis))
        first = 1 + self.has_layer_axis
        return jnp.expand_dims(units, [first + i for i, cut in enumerate(self.cut) if not cut])


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Nodes:
    """Named values cut into units. `make_nodes` makes it. It is static: a pytree without arrays, and hashable.

    All units have one order: by address, then by layer, then along the axes that the value is cut along. An array over
    units is `[..., unit]` in this order.
    """

    values: tuple[NodeValue, ...] = static()

    def __post_init__(self):
        # Which of two mixtures of one value acts first would matter.
        seen: set[tuple[str, int | None]] = set()
        for value in self.values:
            name = Address.parse(value.address).name
            for layer in value.layers or (None,):
                if (name, layer) in seen:
                    where = name if layer is None else f"blocks.{layer}.{name}"
                    raise UserError(f"{where!r} is named twice: give each value once, and cut it along several axes")
                seen.add((name, layer))

    @property
    def addresses(self) -> list[str]:
        """The address of each value."""
        return [value.address for value in self.values]

    @property
    def size(self) -> int:
        """The number of units."""
        return sum(math.prod(value.unit_shape) for value in self.values)

    def __add__(self, other: Nodes) -> Nodes:
        """The units of both."""
        return Nodes((*self.values, *other.values))

    def split(self, units: ArrayOrNumpy) -> dict[str, ArrayOrNumpy]:
        """An array over units `[..., unit]`, cut into one array for each address: `[..., layer, head]`, for example."""
        if not units.shape or units.shape[-1] != self.size:
            raise UserError(f"an array over units has shape {units.shape}: there are {self.size} units")
        ends = np.cumsum([math.prod(value.unit_shape) for value in self.values]).tolist()
        starts = [0, *ends[:-1]]
        parts = zip(self.values, starts, ends)
        return {v.address: units[..., i:j].reshape(*units.shape[:-1], *v.unit_shape) for v, i, j in parts}

    def join(self, parts: Mapping[str, Array]) -> Shaped[Array, "*more unit"]:
        """The inverse of `split`."""
        flat = []
        for value in self.values:
            array, n = jnp.asarray(parts[value.address]), len(value.unit_shape)
            if array.shape[array.ndim - n :] != value.unit_shape:
                raise UserError(f"the units at {value.address!r} have shape {value.unit_shape}, not {array.shape}")
            flat.append(array.reshape(*array.shape[: array.ndim - n], -1))
        return jnp.concatenate(flat, axis=-1)

    def names(self) -> list[str]:
        """The name of each unit, such as `blocks.3.attn.z[head 1, pos 5]`."""
        found = []
        for value in self.values:
            address = Address.parse(value.address)
            axes = dict(value.unit_axes)
            layers = axes.pop("layer", (None,)) if value.has_layer_axis else (None,)
            for layer in layers:
                base = value.address if layer is None else f"blocks.{layer}.{address.name}"
                for index in np.ndindex(*(len(labels) for labels in axes.values())):
                    place = ", ".join(f"{name} {i}" for name, i in zip(axes, index))
                    found.append(f"{base}[{place}]" if place else base)
        return found

    def index(self, address: str, **places: int) -> int:
        """The number of one unit: `nodes.index("blocks.3.attn.z", head=1)`.

        Args:
          address: the address of one value.
          places: the index along each axis that the value is cut along. `head` also means key/value heads.

        Raises:
          UserError: there is no such unit.
        """
        wanted = Address.parse(canonical(address))
        for value, numbers in zip(self.values, self.split(np.arange(self.size)).values()):
            have, axes = Address.parse(value.address), value.unit_axes
            layers = (None,) if wanted.layers is None else (int(wanted.layers),) if wanted.is_single else ()
            if have.name != wanted.name or (wanted.layers is None) != (value.layers is None) or not layers:
                continue
            if value.layers is not None and layers[0] not in value.layers:
                continue
            row = numbers[value.layers.index(layers[0])] if value.has_layer_axis and value.layers else numbers
            names = [name for name in axes if name != "layer"]
            given = {axis_named(name, value.axes) or name: i for name, i in places.items()}
            if set(given) != set(names) or any(not 0 <= i < len(axes[name]) for name, i in given.items()):
                sizes = ", ".join(f"{name}= below {len(axes[name])}" for name in names) or "nothing"
                raise UserError(f"units at {address!r} are chosen by {sizes}; got {places}")
            return int(np.asarray(row)[tuple(given[name] for name in names)])
        raise UserError(f"there is no unit at {address!r}; there are units at {', '.join(self.addresses)}")

    def labelled(self, units: Shaped[Array | np.ndarray, "*prompt unit"], name: str = "value") -> dict[str, Labelled]:
        """An array over units as one array with named axes for each address.

        Args:
          units: one number for each unit, `[unit]` or `[prompt, unit]`.
          name: what the numbers are.
        """
        array = np.asarray(units)
        prompts = {"prompt": range(array.shape[0])} if array.ndim == 2 else {}
        parts = self.split(array)
        return {v.address: Labelled(parts[v.address], {**prompts, **v.unit_axes}, name) for v in self.values}

    def edits(self, keep: Float[Array, "*prompt unit"], other: Mapping[str, Array]) -> list[Edit]:
        """The edits that make each value `keep * value + (1 - keep) * other`, exact where keep is 0 or 1."""
        prompts = keep.ndim == 2
        parts, found = self.split(keep), []
        for value in self.values:
            fn = Mix(value.expanded(parts[value.address], prompts), jnp.asarray(other[value.address]))
            found.append(at(value.address, Each(fn) if value.has_layer_axis else fn))
        return found


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Mix(TokenEdit):
    """keep * value + (1 - keep) * other. The fields are broadcast to the value from the right."""

    keep: Float[Array, "..."]
    other: Shaped[Array, "..."]

    def __call__(self, x: Array, tokens: ValueTokens = WHOLE_TEXT) -> Array:
        keep = tokens.like(self.keep, x)
        return keep * wide(x) + (1 - keep) * tokens.like(self.other, x)


def axis_named(name: str, axes: tuple[str, ...]) -> str | None:
    """The axis that the user means by a name; None if the value has none. The batch axis is not cut."""
    if name == "feature":
        return axes[-1]
    return next((axis for axis in (name, f"kv_{name}") if axis in axes[1:]), None)
