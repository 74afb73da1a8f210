"""Surgery during generation: check the positions of edits, and collect the values that are read at each step."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jax_interp.core.errors import UserError
from jax_interp.surgery import Activations, Address, Edit, Read, survey
from jax_interp.surgery.address import depth_in
from jax_interp.surgery.contract import Model
from jax_interp.surgery.region import check_known
from jax_interp.surgery.taps import taps_of

Axes = Mapping[str, tuple[str, ...]]
"""The names of the axes of each value that is read, by its address."""


def has_reads(model: Model) -> bool:
    """Whether the model reads values."""
    return any(isinstance(tap, Read) for tap in taps_of(model))


def check_edits(model: Model, pos: int, n_new: int) -> None:
    """Check the surgery of a model that continues `pos` tokens by `n_new`.

    Raises:
      UserError: an edit names a position that the model never processes (that of the last new token, for example), or a
        read has `output=False`.
    """
    for tap in taps_of(model):
        if isinstance(tap, Edit):
            what = f"pos= of {tap.address!r}, in generating {n_new} tokens after {pos},"
            check_known(tap.region.pos, (pos, pos + n_new - 1), what)
        elif isinstance(tap, Read) and not tap.output:
            raise UserError(f"tokens are chosen from the output: read {tap.address!r} without output=False")


def axes_of(model: Model, tokens: Array, mask: Array | None) -> Axes:
    """The axes of every value that the model reads, including a layer axis. Nothing is computed.

    Raises:
      UserError: a value has no `batch` or no `pos` axis.
    """
    reads = [Address.parse(tap.address) for tap in taps_of(model) if isinstance(tap, Read)]
    named = survey(model)(tokens, mask=mask) if reads else {}
    depth = depth_in(named)
    axes_by_address = {}
    for address in reads:
        layers = address.resolve(depth)
        name = address.name if layers is None else f"blocks.{layers[0]}.{address.name}"
        axes = (
            named[name].axes if name in named else ("batch", "pos")
        )  # no such value: the model raises the error later
        if not {"batch", "pos"} <= set(axes):
            raise UserError(
                f"{str(address)!r} has the axes ({' '.join(axes)}): generation keeps values with batch and pos only"
            )
        axes_by_address[str(address)] = axes if address.is_single else ("layer", *axes)
    return axes_by_address


def padded(acts: Activations, axes: Axes, n_more: int) -> Activations:
    """The values of the prompts, padded with `n_more` positions of zeros."""

    def grown(address: str, x: Array) -> Array:
        return jnp.pad(x, [(0, n_more if name == "pos" else 0) for name in axes[address]])

    return Activations({address: grown(address, x) for address, x in acts.items()}, acts.depth)


def with_step(
    values: Activations, acts: Activations, axes: Axes, column: Int[Array, ""], stopped: Bool[Array, "batch"]
) -> Activations:
    """Write the values `acts` of one step to `column` of `values`. Rows that have stopped get zeros."""
    arrays = {}
    for address, x in acts.items():
        names = axes[address]
        ended = jnp.expand_dims(stopped, [i for i, name in enumerate(names) if name != "batch"])
        x = jnp.where(ended, jnp.zeros_like(x), x)
        arrays[address] = jax.lax.dynamic_update_slice_in_dim(values[address], x, column, axis=names.index("pos"))
    return Activations(arrays, values.depth)
