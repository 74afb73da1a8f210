"""`jax-interp sites MODEL`: the names of a model's values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.core.terminal import print_text


@dataclass(frozen=True)
class Sites:
    """List the named values of a model: addresses, axes, shapes, dtypes. Nothing is computed.

    If a value has the same type in all blocks, it is one row, blocks.*.name. To read or edit it in some layers, replace
    the star by a number or a range: blocks.3.name, blocks.2:4.name.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[MODEL]")] = "stdlib-small"
    """A model of the package, a Hugging Face directory, or a name on the Hugging Face hub."""
    address: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[ADDRESS ...]")] = ()
    """Only these values, such as blocks.3.resid_post. An unknown address is an error that names the nearest address."""
    batch: int = 1
    """The number of sequences in the input, for the shapes."""
    pos: int = 16
    """The number of tokens in each sequence, for the shapes."""
    json: bool = False
    """Print JSON, with a separate entry for each layer."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp sites` with these arguments. Returns the exit code."""
    options = parse(Sites, argv, command="sites")
    from jax_interp.recipes.sites import collapse_layers, model_values
    from jax_interp.views import tables

    values, depth = model_values(options.model, options.address, batch=options.batch, pos=options.pos)
    if options.json:
        entries = {name: {"axes": v.axes, "shape": v.shape, "dtype": str(v.dtype)} for name, v in values.items()}
        print_text(json.dumps(entries, indent=2))
        return 0
    rows = [
        (name, " ".join(value.axes), " × ".join(map(str, value.shape)), str(value.dtype))
        for name, value in collapse_layers(values, depth)
    ]
    tables.print_table(["value", "axes", "shape", "dtype"], rows, title=f"{options.model}: {depth} blocks")
    return 0
