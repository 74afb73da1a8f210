"""Activation and model surgery: read, change and differentiate the named values of a model, as JAX transforms."""

from jax_interp.surgery.activations import Activations
from jax_interp.surgery.address import Address, AddressError, canonical
from jax_interp.surgery.body import CarryError
from jax_interp.surgery.calling import call, is_known
from jax_interp.surgery.contract import Block, Dictionary, Model, PlainEdit, ScopedEdit, TokenEdit
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
from jax_interp.surgery.region import Positions, Region, RegionError, Span
from jax_interp.surgery.remat import Remat, remat
from jax_interp.surgery.resuming import block_inputs, resumed
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
from jax_interp.surgery.value_tokens import ValueTokens
from jax_interp.surgery.verbs import at, edit, grad_at, read, restore, sites, survey, values_at

__all__ = [
    "Activations", "Add", "Address", "AddressError", "Block", "CarryError", "Clamp", "Dictionary", "Each", "Edit",
    "EditError", "Freeze", "Mean", "Model", "Noise", "PlainEdit", "Positions", "ProjectOut", "Read", "Region",
    "RegionError", "Remat", "Replace", "Resample", "Rotate", "SavingError", "Scale", "ScopedEdit", "Segment", "Site",
    "Span", "Splice", "Stack", "Tapped", "TokenEdit", "ValueTokens", "Zero", "at", "block_inputs", "blocks_as_pytree",
    "call", "canonical", "depth_of", "edit", "get_block", "grad_at", "is_known", "iter_blocks", "iter_segments",
    "load_edits", "map_blocks", "read", "remat", "replan", "restore", "resumed", "run_blocks", "save_edits", "sites",
    "survey", "values_at",
]  # fmt: skip
