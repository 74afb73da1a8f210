"""`Nodes`: named values cut into units, and runs in which some of the units have the value of another run.

A unit is a head, a neuron, a feature of a dictionary, a component of a decomposed matrix, a whole layer, each at one
position or at all positions: any part of a named value that is cut along its axes.

    heads = make_nodes(model, contrast, "blocks.*.attn.z", per="head")                 # layer × head units
    neurons = make_nodes(model, contrast, "blocks.*.mlp.post", per=("pos", "feature"))
    both = heads + make_nodes(model, contrast, "blocks.*.mlp_out")                     # heads, and each MLP as a whole
    node_metric(model, contrast, both, keep)      keep [unit]: 1 own value, 0 the corrupted value
    node_effects(model, contrast, heads)          each unit patched alone: [prompt, unit]

The run of a set of units recomputes what is kept: a kept unit has the value that follows from its own inputs, which may
be changed by the units that are not kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from jax_interp.circuits.contrast import Contrast, Direction, inputs_of, measure
from jax_interp.circuits.units import Nodes, NodeValue, axis_named
from jax_interp.core.errors import UserError
from jax_interp.dictionaries.replacement import Replacement
from jax_interp.surgery import Activations, depth_of, edit, values_at
from jax_interp.surgery.address import Address, AddressError, canonical, depth_in, flatten, suggest
from jax_interp.surgery.contract import Model
from jax_interp.surgery.taps import Wrapper
from jax_interp.surgery.verbs import survey

Other = Literal["corrupted", "zero"] | Mapping[str, Array]
"""What a unit has that is not kept. corrupted: its value in the corrupted run, position for position. zero: 0. A
mapping from address to array, such as the means over a dataset: this array, broadcast to the value from the right. An
address of several layers needs a leading layer axis."""


def make_nodes(model: Model, contrast: Contrast, addresses: str | Iterable, *, per: str | Sequence[str] = ()) -> Nodes:
    """Cut named values into units.

    Args:
      model: any model that keeps the surgery contract, under surgery or not. Latents of a spliced dictionary and
        components of a decomposed model are named values too. Nothing is computed.
      contrast: the prompts. The number of positions is that of these prompts; padding has positions too.
      addresses: the values: an address, or a (nested) list of them. No value may be named twice.
      per: the axis or axes along which each value is cut: `head` (also key/value heads), `pos`, `feature` (the last
        axis), or any other name of an axis. A value that does not have the axis is not cut along it. Several layers are
        always separate units. Empty: each value is one unit in each layer.

    Returns:
      The units.

    Raises:
      AddressError: an address names no value.
      UserError: no value has an axis of `per`, a value has no batch axis, or a value is named twice.

    Example:
        make_nodes(model, contrast, ["blocks.*.attn.z", "blocks.*.mlp_out"], per=("head", "pos"))
        make_nodes(edit(model, at("blocks.2.resid_post", Splice(sae, error=True))), contrast,
                   "blocks.2.resid_post.latents", per="feature")
    """
    per = (per,) if isinstance(per, str) else tuple(per)
    named = survey(model)(contrast.clean, **inputs_of(model, contrast))
    depth, values, used = depth_in(named) or depth_of(model), [], set()
    for text in flatten(addresses):
        address = Address.parse(canonical(text))
        if address.layers == "":
            raise AddressError(f"{text!r} does not say which layers: write 'blocks.*.{address.name}'")
        layers = address.resolve(depth)
        each = [address.name] if layers is None else [f"blocks.{layer}.{address.name}" for layer in layers]
        if missing := [one for one in each if one not in named]:
            raise AddressError(f"{missing[0]!r} names no value of this model.{suggest(missing[0], named)}")
        kinds = {(named[one].axes, named[one].shape) for one in each}
        axes, shape = next(iter(kinds))
        if len(kinds) > 1:
            raise UserError(f"{text!r}: the layers have values of different shapes; name the layers one by one")
        if axes[:1] != ("batch",) or shape[0] != contrast.clean.shape[0]:
            raise UserError(
                f"{text!r} has axes ({' '.join(axes)}): a value of units needs a first axis for the prompts"
            )
        chosen = {axis_named(name, axes) for name in per if axis_named(name, axes) is not None}
        used |= {name for name in per if axis_named(name, axes) is not None}
        cut = tuple(name in chosen for name in axes[1:])
        sizes = tuple(n for n, is_cut in zip(shape[1:], cut) if is_cut)
        values.append(NodeValue(str(address), layers, axes, cut, sizes))
    if unused := [name for name in per if name not in used]:
        have = sorted({axis for value in values for axis in value.axes[1:]})
        raise UserError(
            f"per={unused[0]!r}: no value has this axis; there are {', '.join(have)}, and feature (the last)"
        )
    if not values:
        raise UserError("there is no address: name a value, such as 'blocks.*.attn.z'")
    return Nodes(tuple(values))


def other_values(
    model: Model, contrast: Contrast, nodes: Nodes, other: Other = "corrupted"
) -> dict[str, Shaped[Array, "..."]]:
    """The values that units have where they are not kept, by address. It can be traced. See `Other`."""
    addresses = [value.address for value in nodes.values]
    if isinstance(other, str):
        if other == "zero":
            return {address: jnp.zeros((), jnp.float32) for address in addresses}
        if other != "corrupted":
            raise UserError(f"other={other!r}: choose corrupted or zero, or give arrays by address")
        _refuse_fixed_errors(model)
        found: Mapping[str, Any] = values_at(model, *addresses)(contrast.corrupted, **inputs_of(model, contrast))
        return {address: found[address] for address in addresses}
    given = other if isinstance(other, Activations) else {canonical(name): array for name, array in other.items()}
    if missing := [address for address in addresses if address not in given]:
        raise UserError(f"other= has no values for {missing[0]!r}; it has {', '.join(given)}")
    return {address: jnp.asarray(given[address]) for address in addresses}


def node_metric(
    model: Model,
    contrast: Contrast,
    nodes: Nodes,
    keep: Float[Array, "*prompt unit"],
    *,
    other: Other = "corrupted",
) -> Float[Array, " prompt"]:
    """The metric of the clean prompts when only some units keep their own values. It can be traced.

    A function of `keep` for `jax.vmap` (several sets of units) and `jax.grad` (masks that are trained).

    Args:
      model: any model that keeps the surgery contract.
      contrast: prompts and metric.
      nodes: the units.
      keep: for each unit, 1: its own value, 0: the other value; in between, the mixture. Bools are accepted. With a
        leading axis, each prompt has its own set.
      other: what a unit has that is not kept.

    Returns:
      The metric of each prompt. If all are kept it is exactly that of the clean run. If none is kept, all values at the
      addresses are the other values.
    """
    return _metric(model, contrast, nodes, keep, other_values(model, contrast, nodes, other))


def node_effects(
    model: Model,
    contrast: Contrast,
    nodes: Nodes,
    units: Sequence[int] | Array | np.ndarray | None = None,
    *,
    direction: Direction = "noise",
    other: Other = "corrupted",
    rows: int = 64,
) -> Float[Array, "prompt unit"]:
    """The effect of patching each unit alone: the metric of the patched run minus that of the run without a patch.

    All runs are one compiled program. Its memory does not grow with the number of units.

    Args:
      model: any model that keeps the surgery contract.
      contrast: prompts and metric.
      nodes: the units.
      units: the numbers of the units to patch. None: all.
      direction: noise: run the clean prompts, with the corrupted value of the unit. denoise: run the corrupted prompts,
        with the clean value of the unit.
      other: what the unit is patched with. Other than "corrupted", it is the same in both directions.
      rows: how many prompts run at once, all units of a step together: it bounds the memory.

    Returns:
      The effects, in the order of `units`.

    Raises:
      UserError: a unit does not exist.
    """
    chosen = np.arange(nodes.size) if units is None else np.asarray(units)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or ((chosen < 0) | (chosen >= nodes.size)).any():
        raise UserError(f"units={units!r}: give numbers from 0 to {nodes.size - 1}")
    at_once = max(1, min(rows // contrast.clean.shape[0], len(chosen)))
    padded = np.concatenate([chosen, np.zeros(-len(chosen) % at_once, chosen.dtype)])
    run = swapped(contrast) if direction_of(direction) == "denoise" else contrast
    how, given = (other, None) if isinstance(other, str) else ("given", other)
    found = _node_effects(model, run, nodes, jnp.asarray(padded, jnp.int32), given, how=how, at_once=at_once)
    return found[: len(chosen)].T


def direction_of(direction: str) -> Direction:
    """The direction, checked."""
    if direction not in ("denoise", "noise"):
        raise UserError(f"direction={direction!r}: choose denoise (clean into corrupted) or noise (the other way)")
    return direction


def swapped(contrast: Contrast) -> Contrast:
    """The contrast with clean and corrupted prompts exchanged. What patches corrupted values into the clean run, then
    patches clean values into the corrupted run."""
    return dataclasses.replace(contrast, clean=contrast.corrupted, corrupted=contrast.clean)


def resampled(contrast: Contrast, key: Key[Array, ""]) -> Contrast:
    """The contrast for resample ablation: the corrupted prompt of each prompt is another clean prompt, drawn at random.

    Each prompt gives its values to exactly one other prompt. Positions must have the same role in all prompts, and a
    mask must be the same in all.

    Raises:
      UserError: there is one prompt only, or the rows of the mask differ.
    """
    n = contrast.clean.shape[0]
    if n < 2:
        raise UserError("there is one prompt: resample ablation takes values from another prompt, so give two or more")
    if contrast.mask is not None and bool((contrast.mask != contrast.mask[:1]).any()):
        raise UserError("the prompts have different padding: resample ablation needs positions that fit in all prompts")
    order = jax.random.permutation(key, n)
    donor = jnp.zeros_like(order).at[order].set(jnp.roll(order, 1))
    return dataclasses.replace(contrast, corrupted=contrast.clean[donor])


@partial(jax.jit, static_argnames=("how", "at_once"))
def _node_effects(
    model: Model, contrast: Contrast, nodes: Nodes, units: Array, given: Any, *, how: Any, at_once: int
) -> Float[Array, "unit prompt"]:
    others = other_values(model, contrast, nodes, how if given is None else given)
    base = measure(model, contrast.clean, contrast)

    def effect(unit: Array) -> Array:
        return _metric(model, contrast, nodes, jnp.ones(nodes.size).at[unit].set(0.0), others) - base

    return jax.lax.map(effect, units, batch_size=at_once)


def _metric(model: Model, contrast: Contrast, nodes: Nodes, keep: Array, others: Mapping[str, Array]) -> Array:
    keep = jnp.asarray(keep)
    keep = keep if jnp.issubdtype(keep.dtype, jnp.floating) else keep.astype(jnp.float32)
    if keep.ndim not in (1, 2) or (keep.ndim == 2 and keep.shape[0] != contrast.clean.shape[0]):
        raise UserError(
            f"keep has shape {keep.shape}: give [unit], or [prompt, unit] for {len(contrast.clean)} prompts"
        )
    return measure(edit(model, nodes.edits(keep, others)), contrast.clean, contrast)


def _refuse_fixed_errors(model: Model) -> None:
    while isinstance(model, Wrapper):
        if isinstance(model, Replacement) and model.errors is not None:
            raise UserError(
                "the replacement model adds the errors of one run, which are not those of the corrupted prompts: "
                "compute the corrupted values with the errors of the corrupted prompts, and give them as other="
            )
        model = model.model
