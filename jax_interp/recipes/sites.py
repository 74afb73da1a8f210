"""The recipe of `sites`: list the named values of a model. Only shapes are computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp

from jax_interp.core.errors import UserError
from jax_interp.models.hf import load_shapes
from jax_interp.surgery import Address, survey
from jax_interp.surgery.address import depth_in, suggest
from jax_interp.surgery.trace import NamedValue


def model_values(
    model: str, addresses: Sequence[str] = (), *, batch: int = 1, pos: int = 16
) -> tuple[dict[str, NamedValue], int]:
    """List the named values of a model. No weights are read and nothing is computed.

    Args:
      model: what `load` takes.
      addresses: only these values, such as "blocks.3.resid_post"; none for all.
      batch: sequences in the input.
      pos: tokens in each sequence.

    Returns:
      Axes, shape and dtype of each value by address, with a separate entry for every layer; and the number of blocks.

    Raises:
      UserError: there is no such model, or it has no such value.
    """
    if min(batch, pos) < 1:
        raise UserError(f"batch={batch} and pos={pos} must be at least 1")
    values = survey(load_shapes(model))(jax.ShapeDtypeStruct((batch, pos), jnp.int32))
    depth = depth_in(values)
    return (choose(values, addresses, depth) if addresses else dict(values)), depth


def choose(values: Mapping[str, NamedValue], addresses: Sequence[str], depth: int) -> dict[str, NamedValue]:
    """The values that `addresses` name, in the order of `values`. Raises UserError with the nearest names."""
    chosen: set[str] = set()
    for text in addresses:
        address = Address.parse(text)
        layers = address.resolve(depth)
        names = [address.name] if layers is None else [f"blocks.{i}.{address.name}" for i in layers]
        if any(name not in values for name in names):
            known = {f"blocks.*.{n.split('.', 2)[2]}" if n.startswith("blocks.") else n for n in values}
            asked = f"blocks.*.{address.name}" if layers is not None else address.name
            raise UserError(f"{text!r} names no value of this model.{suggest(asked, known)}")
        chosen.update(names)
    return {name: value for name, value in values.items() if name in chosen}


def collapse_layers(values: Mapping[str, NamedValue], depth: int) -> Iterator[tuple[str, NamedValue]]:
    """Join the layers in which a value has the same axes, shape and dtype.

    Args:
      values: the values, with a separate entry for every layer.
      depth: the number of blocks.

    Yields:
      `(address, value)`. The address is `blocks.*.name` for all layers, or `blocks.2:4.name` for some layers.
    """
    layers_of: dict[tuple[str, tuple], list[int]] = {}
    for name, value in values.items():
        if name.startswith("blocks."):
            _, layer, inner = name.split(".", 2)
            layers_of.setdefault((inner, _kind(value)), []).append(int(layer))
    for name, value in values.items():
        if not name.startswith("blocks."):
            yield name, value
            continue
        inner = name.split(".", 2)[2]
        for layers in _spelled(layers_of.pop((inner, _kind(value)), []), depth):
            yield f"blocks.{layers}.{inner}", value


def _kind(value: NamedValue) -> tuple:
    return value.axes, value.shape, str(value.dtype)


def _spelled(layers: list[int], depth: int) -> list[str]:
    """Layers as they are written in an address: "*", runs "2:5" and single layers "7"."""
    if len(layers) == depth > 1:
        return ["*"]
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][1] == layer:
            runs[-1][1] = layer + 1
        else:
            runs.append([layer, layer + 1])
    return [str(a) if b == a + 1 else f"{a}:{b}" for a, b in runs]
