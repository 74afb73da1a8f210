"""What surgery means while a text grows: which positions edits may name, and how readings of each step are joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jax_interp.core.errors import UserError
from jax_interp.surgery import Activations, Address, Edit, Read, Tapped, survey
from jax_interp.surgery.address import depth_in
from jax_interp.surgery.region import check_known


def taps_of(model: Callable) -> Iterator[Any]:
    """Every tap of a nest of surgeries."""
    if isinstance(model, Tapped):
        yield from model.taps
        yield from taps_of(model.model)


def reads_of(model: Callable) -> list[str]:
    """The addresses that a model reads."""
    return [tap.address for tap in taps_of(model) if isinstance(tap, Read)]


def check_edits(model: Callable, pos: int, n_new: int) -> None:
    """Raise for surgery that a text of `pos` tokens and `n_new` more cannot have: an edit at a known position that the
    model never sees (the last new token's among them), and a reading without output."""
    for tap in taps_of(model):
        if isinstance(tap, Edit):
            what = f"pos= of {tap.address!r}, in generating {n_new} tokens after {pos},"
            check_known(tap.region.pos, (pos, pos + n_new - 1), what)
        elif isinstance(tap, Read) and not tap.output:
            raise UserError(f"tokens come from the output: read {tap.address!r} without output=False")


def axes_of(model: Callable, tokens: Array, mask: Any) -> dict[str, tuple[str, ...]]:
    """The names of the axes of everything that the model reads, a layer axis included. Nothing is computed."""
    found, reads = {}, [Address.parse(text) for text in reads_of(model)]
    named = survey(model)(tokens, mask=mask) if reads else {}
    depth = depth_in(named)
    for address in reads:
        layers = address.resolve(depth)
        name = address.name if layers is None else f"blocks.{layers[0]}.{address.name}"
        axes = named[name].axes if name in named else ("batch", "pos")  # no such value: the model itself will say so
        if not {"batch", "pos"} <= set(axes):
            raise UserError(f"{str(address)!r} has axes ({' '.join(axes)}): only values of rows and positions are kept")
        found[str(address)] = axes if address.is_single else ("layer", *axes)
    return found


def with_room(acts: Activations, axes: dict[str, tuple[str, ...]], n_more: int) -> Activations:
    """What was read of the prompts, with room for `n_more` positions."""

    def grown(address: str, x: Array) -> Array:
        return jnp.pad(x, [(0, n_more if name == "pos" else 0) for name in axes[address]])

    return Activations({address: grown(address, x) for address, x in acts.items()}, acts.depth)


def written(
    kept: Activations,
    acts: Activations,
    axes: dict[str, tuple[str, ...]],
    at: Int[Array, ""],
    done: Bool[Array, "batch"],
) -> Activations:
    """`kept` with what one step read at column `at`, zero in the rows that are done."""
    arrays = {}
    for address, x in acts.items():
        names = axes[address]
        ended = jnp.expand_dims(done, [i for i, name in enumerate(names) if name != "batch"])
        x = jnp.where(ended, jnp.zeros_like(x), x)
        arrays[address] = jax.lax.dynamic_update_slice_in_dim(kept[address], x, at, axis=names.index("pos"))
    return Activations(arrays, kept.depth)
