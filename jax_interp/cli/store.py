"""`jax-interp store DIR`: write the activations of a model to disk, or show what a store holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.core.errors import UserError
from jax_interp.recipes.store import StoreConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclass(frozen=True, kw_only=True)
class Store:
    """Write a store of activations, or show what one holds.

    With --address the store is written: rows of these values, from the training part of a text. The same command
    completes a store that was stopped or killed. Without --address nothing is written. To train on a store, give
    `train-dictionary CONFIG --store DIR`.

    Over several processes each one writes its own files. Without --mesh each runs the whole model on one device, and
    the files are the same for any number of processes.
    """

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The directory of the store."""
    config: Annotated[StoreConfig, tyro.conf.arg(name="")] = field(default_factory=StoreConfig)
    mesh: Annotated[str | None, tyro.conf.arg(metavar="AXIS=SIZE[,...]")] = None
    """Run the model on several devices together, such as data=2,tensor=2."""
    verify: bool = False
    """Read all rows, and compare every file with its SHA-256."""
    quiet: bool = False
    """Do not show progress."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp store` with these arguments. Returns the exit code."""
    options = parse(Store, argv, command="store")
    from jax_interp.recipes.store import describe_store, is_store, write_store
    from jax_interp.views import tables

    if options.config.address:
        write_store(options.config, options.directory, mesh=_mesh(options.mesh), quiet=options.quiet)
    elif not is_store(options.directory):
        raise UserError(f"{options.directory} has no store: give --address to write one, such as blocks.2.resid_post")
    rows = describe_store(options.directory, verify=options.verify)
    tables.print_table(["", ""], rows, title=f"store {options.directory}")
    return 0


def _mesh(text: str | None) -> Mesh | None:
    if text is None:
        return None
    from jax_interp.training.meshes import mesh_of

    return mesh_of(text)
