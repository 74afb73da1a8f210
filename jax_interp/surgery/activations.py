"""`Activations`: the values that `read` collects, by address."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.short_repr import short_repr
from jax_interp.surgery.address import Address, AddressError
from jax_interp.surgery.taps import static

_SHOWN = 20
"""The number of values that a repr shows."""


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Activations(Mapping[str, Array]):
    """A mapping from address to array, and a pytree. The array of several layers is `[layer, ...]`.

    Any spelling of an address works as a key. If several layers were read together, one of them can be looked up alone.

    Example:
        _, acts = call(read(model, "blocks.*.resid_post"), tokens)
        acts["blocks.*.resid_post"]            # [layer, batch, pos, d_model]
        acts["blocks.-1.hook_resid_post"]      # the last layer
        acts.stack("resid_post")               # all layers that were read, even under several addresses
    """

    arrays: dict[str, Shaped[Array, "..."]]
    depth: int = static()

    def __getitem__(self, address: str) -> Array:
        if not isinstance(address, str):
            raise AddressError(
                f"activations are looked up by address, got {address!r}. Read were: {', '.join(self.arrays)}. A model "
                "under read(..., output=False) returns only the activations, without the output"
            )
        if address in self.arrays:
            return self.arrays[address]
        wanted = Address.parse(address)
        layers = wanted.resolve(self.depth)
        for key, array in self.arrays.items():
            have = Address.parse(key)
            held = have.resolve(self.depth)
            if have.name != wanted.name or wanted.layers == "" or (held is None) != (layers is None):
                continue
            if held is None or layers is None:
                return array
            if set(layers) <= set(held):
                rows = array[None] if have.is_single else array
                rows = rows if layers == held else rows[jnp.asarray([held.index(i) for i in layers])]
                return rows[0] if wanted.is_single else rows
        raise AddressError(f"{address!r} was not read. Read were: {', '.join(self.arrays) or 'nothing'}.")

    def get(self, address: str, default: Any = None) -> Any:
        """The value at `address`, or `default` if it was not read."""
        try:  # `Mapping.get` looks for a KeyError
            return self[address]
        except AddressError:
            return default

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __contains__(self, address: object) -> bool:
        try:
            self[address]  # type: ignore[index]
        except AddressError:
            return False
        return True

    def __repr__(self) -> str:
        rows = [f"  {key}: {short_repr(array)}" for key, array in list(self.items())[:_SHOWN]]
        rows += [f"  … {len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        return "Activations(\n" + "\n".join(rows) + "\n)"

    def layers(self, name: str) -> tuple[int, ...]:
        """The layers at which the block value `name` was read, ascending."""
        return tuple(sorted(layer for layers, _ in self._readings(name) for layer in layers))

    def stack(self, name: str) -> Shaped[Array, "layer ..."]:
        """All layers of the block value `name` that were read, as one array in the order of the layers."""
        readings = self._readings(name)
        taken = [layer for layers, _ in readings for layer in layers]
        if len(set(taken)) != len(taken):
            raise AddressError(f"{name!r} was read more than once at some layer: ask for one of {', '.join(self)}")
        rows = readings[0][1] if len(readings) == 1 else jnp.concatenate([array for _, array in readings])
        order = sorted(range(len(taken)), key=taken.__getitem__)
        return rows if order == list(range(len(taken))) else rows[jnp.asarray(order)]

    def _readings(self, name: str) -> list[tuple[tuple[int, ...], Array]]:
        name = Address.parse(name).name
        found = []
        for key, array in self.arrays.items():
            address = Address.parse(key)
            if address.name == name and (layers := address.resolve(self.depth)) is not None:
                found.append((layers, array[None] if address.is_single else array))
        if not found:
            raise AddressError(f"{name!r} was read at no layer. Read were: {', '.join(self.arrays) or 'nothing'}.")
        return found
