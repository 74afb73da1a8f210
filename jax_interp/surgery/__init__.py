"""Activation and model surgery: read, change and differentiate the named values of a model, as JAX transforms."""

from jax_interp.surgery.activations import Activations
from jax_interp.surgery.address import Address, AddressError
from jax_interp.surgery.body import CarryError
from jax_interp.surgery.calling import call
from jax_interp.surgery.contract import Block, Dictionary, Model, PlainEdit, ScopedEdit
from jax_interp.surgery.editing import EditError
from jax_interp.surgery.edits import (
    Add,
    Clamp,
    Freeze,
    Mean,
    Noise,
    ProjectOut,
    Replace,
    Resample,
    Rotate,
    Scale,
    Splice,
    Zero,
)
from jax_interp.surgery.region import Region, RegionError, Span
from jax_interp.surgery.running import run_blocks
from jax_interp.surgery.saving import SavingError, load_edits, save_edits
from jax_interp.surgery.site import Site
from jax_interp.surgery.stack import (
    Segment,
    Stack,
    blocks_as_pytree,
    depth_of,
    get_block,
    iter_blocks,
    iter_segments,
    map_blocks,
    replan,
)
from jax_interp.surgery.taps import Each, Edit, Read, Tapped
from jax_interp.surgery.verbs import at, edit, grad_at, read, restore, sites, survey

__all__ = [
    "Activations", "Add", "Address", "AddressError", "Block", "CarryError", "Clamp", "Dictionary", "Each", "Edit",
    "EditError", "Freeze", "Mean", "Model", "Noise", "PlainEdit", "ProjectOut", "Read", "Region", "RegionError",
    "Replace", "Resample", "Rotate", "SavingError", "Scale", "ScopedEdit", "Segment", "Site", "Span", "Splice",
    "Stack", "Tapped", "Zero", "at", "blocks_as_pytree", "call", "depth_of", "edit", "get_block", "grad_at",
    "iter_blocks", "iter_segments", "load_edits", "map_blocks", "read", "replan", "restore", "run_blocks",
    "save_edits", "sites", "survey",
]  # fmt: skip
