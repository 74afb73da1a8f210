"""`jax-interp sites MODEL`: the names of a model's values. Nothing is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.core.errors import UserError
from jax_interp.surgery import Address
from jax_interp.surgery.address import depth_in, suggest
from jax_interp.views import tables


@dataclass(frozen=True)
class Sites:
    """List the named values of a model: addresses, axes, shapes, dtypes. Nothing is computed.

    The same value of all blocks is one row, blocks.*.name; write a layer's number or a range (blocks.2:4.name) for
    the star to read or edit there. Layers whose values differ are listed apart.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[MODEL]")] = "stdlib-small"
    """A name of the package's, a Hugging Face directory or hub name."""
    address: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[ADDRESS ...]")] = ()
    """Only these values, such as blocks.3.resid_post; an unknown one is an error with the nearest names."""
    batch: int = 1
    pos: int = 16
    """The shapes are those of tokens [batch, pos]."""
    json: bool = False
    """As JSON, one entry per layer."""


def run(argv: Sequence[str]) -> int:
    asked = parse(Sites, argv, command="sites")
    if min(asked.batch, asked.pos) < 1:
        raise UserError(f"batch={asked.batch} and pos={asked.pos} must be at least 1")
    import jax
    import jax.numpy as jnp

    from jax_interp.models.hf import load_shapes
    from jax_interp.surgery import survey

    everything = survey(load_shapes(asked.model))(jax.ShapeDtypeStruct((asked.batch, asked.pos), jnp.int32))
    found = chosen(everything, asked.address)
    if asked.json:
        import json

        entries = {name: {"axes": v.axes, "shape": v.shape, "dtype": str(v.dtype)} for name, v in found.items()}
        print(json.dumps(entries, indent=2))
        return 0
    depth = depth_in(everything)
    rows = [
        (name, " ".join(value.axes), " × ".join(map(str, value.shape)), str(value.dtype))
        for name, value in collapsed(found, depth)
    ]
    tables.show(["value", "axes", "shape", "dtype"], rows, title=f"{asked.model}: {depth} blocks")
    return 0


def chosen(found: Mapping[str, Any], addresses: Sequence[str]) -> dict[str, Any]:
    """The named values that `addresses` mean, all where there is none. Raises UserError with the nearest names."""
    if not addresses:
        return dict(found)
    depth = depth_in(found)
    names: set[str] = set()
    for text in addresses:
        address = Address.parse(text)
        layers = address.resolve(depth)
        wanted = [address.name] if layers is None else [f"blocks.{i}.{address.name}" for i in layers]
        missing = [name for name in wanted if name not in found]
        if missing:
            names_of_all = {f"blocks.*.{n.split('.', 2)[2]}" if n.startswith("blocks.") else n for n in found}
            asked = f"blocks.*.{address.name}" if layers is not None else address.name
            raise UserError(f"{text!r} names no value of this model.{suggest(asked, names_of_all)}")
        names.update(wanted)
    return {name: value for name, value in found.items() if name in names}


def collapsed(found: Mapping[str, Any], depth: int) -> Iterable[tuple[str, Any]]:
    """`(address, value)` with values that agree in all their layers as one `blocks.*.name` (or `blocks.2:4.name`)."""
    layers_of: dict[tuple[str, tuple], list[int]] = {}
    for name, value in found.items():
        if name.startswith("blocks."):
            _, layer, inner = name.split(".", 2)
            layers_of.setdefault((inner, _kind(value)), []).append(int(layer))
    done = set()
    for name, value in found.items():
        if not name.startswith("blocks."):
            yield name, value
            continue
        inner = name.split(".", 2)[2]
        layers = layers_of[inner, _kind(value)]
        if (inner, _kind(value)) in done:
            continue
        done.add((inner, _kind(value)))
        for spelled in _spelled(layers, depth):
            yield f"blocks.{spelled}.{inner}", value


def _kind(value: Any) -> tuple:
    return value.axes, value.shape, str(value.dtype)


def _spelled(layers: list[int], depth: int) -> list[str]:
    """Layers as they are written in an address: "*", or runs "2:5" and single ones "7"."""
    if len(layers) == depth > 1:
        return ["*"]
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][1] == layer:
            runs[-1][1] = layer + 1
        else:
            runs.append([layer, layer + 1])
    return [str(a) if b == a + 1 else f"{a}:{b}" for a, b in runs]
