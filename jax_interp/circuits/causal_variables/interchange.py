"""Run a network with values of other runs: interchange interventions at named places.

    locations = [Location("blocks.2.resid_post", pos="x")]
    logits = interchange(model, data, locations, [Subspace(basis)])

There is one location for each source. The source runs first, its value is read at its own positions, and put into the
run of the base at the base's positions.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.circuits.causal_variables.features import Features, Whole
from jax_interp.circuits.causal_variables.interchange_data import InterchangeData
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Address, Model, at, canonical, edit, is_known, survey, values_at
from jax_interp.surgery.taps import Wrapper


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a value is exchanged.

    Args:
      address: the address of the value, of one layer: "blocks.2.resid_post", "blocks.1.attn.z", "hidden".
      pos: the name of a position of the data, an integer, or several of them. All get the same features, each position
        for itself. None: all positions, or a value without positions.
      head: one head of a value with heads. None: the heads together are one vector.
    """

    address: str
    pos: str | int | tuple[str | int, ...] | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", canonical(self.address))
        parsed = Address.parse(self.address)
        if not parsed.is_single:
            raise UserError(f"{self.address!r} names several values: give the address of one layer")
        if isinstance(self.pos, list):
            object.__setattr__(self, "pos", tuple(self.pos))
        if self.pos == ():
            raise UserError("pos=() exchanges nothing: name a position, or give None for all of them")

    @property
    def names(self) -> tuple[str | int, ...]:
        """The positions as a tuple. Empty: all."""
        return () if self.pos is None else self.pos if isinstance(self.pos, tuple) else (self.pos,)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Exchange:
    """The edit: features of the value come from a donor.

    Args:
      features: which part is exchanged.
      donor: the values of the source, at the positions of the base.
      merged: whether the axes after (batch, pos) are one vector.
    """

    features: Features
    donor: Float[Array, "batch ..."]
    merged: bool = dataclasses.field(default=False, metadata={"static": True})

    def __call__(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        shape = (*x.shape[:2], -1) if self.merged else x.shape
        return self.features.exchange(x.reshape(shape), self.donor.reshape(shape)).reshape(x.shape)


def interchange(
    model: Model, data: InterchangeData, locations: Sequence[Location], features: Sequence[Features]
) -> Float[Array, "pair ... class"]:
    """The logits of the bases with features of their sources. It can be traced and differentiated.

    Args:
      model: any model that keeps the surgery contract. Its own edits act in both runs.
      data: the pairs.
      locations: for each source, where its value is exchanged.
      features: for each source, which part of the value. Features of two sources at one location act in this order.

    Returns:
      The logits, of the last position only if the data reads no others.

    Raises:
      UserError: a location does not fit the model or the data, or the features do not fit the value.
    """
    check_locations(model, data, locations, features)
    return interchanged(model, data, [Where.of(data, location, i) for i, location in enumerate(locations)], features)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Where:
    """A location as data, so that layers, positions and heads can be mapped over.

    Args:
      take: for each position of the base, the position of the source that its value comes from, or -1. None: the whole
        value.
      layer: the layer, for an address without one. None: the address has it.
      head: the head. None: all.
      address: the address.
    """

    take: Int[Array, "pair pos"] | None
    layer: Int[Array, ""] | None
    head: Int[Array, ""] | None
    address: str = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, data: InterchangeData, location: Location, source: int) -> Where:
        """The location of one source."""
        head = None if location.head is None else jnp.asarray(location.head, jnp.int32)
        return cls(take_map(data, location.names, source), None, head, location.address)


def take_map(data: InterchangeData, names: Sequence[str | int], source: int) -> Int[Array, "pair pos"] | None:
    """For each position of the base, the position of the source to take, or -1. None if no positions are named."""
    if not names:
        return None
    length, take = data.base.shape[1], jnp.full(data.base.shape[:2], -1, jnp.int32)
    for name in names:
        if isinstance(name, str):
            here, there = data.positions[name][0], data.positions[name][1 + source]
        else:
            here = jnp.full(len(data), name % length, jnp.int32)
            there = jnp.full(len(data), name % data.sources.shape[2], jnp.int32)
        take = jnp.where(jnp.arange(length, dtype=jnp.int32)[None, :] == here[:, None], there[:, None], take)
    return take


def interchanged(
    model: Model, data: InterchangeData, places: Sequence[Where], features: Sequence[Features]
) -> Float[Array, "pair ... class"]:
    """`interchange` without its checks."""
    edits = []
    for i, (where, of_source) in enumerate(zip(places, features, strict=True)):
        address = where.address if where.layer is None else where.address.replace("blocks.", "blocks.*.", 1)
        donor = values_at(model, address)(data.sources[i])[address]
        if where.layer is not None:
            donor = jax.lax.dynamic_index_in_dim(donor, where.layer, keepdims=False)
        mask, merged = None, where.head is None and not isinstance(of_source, Whole) and donor.ndim > 3
        if where.take is not None:
            mask = where.take >= 0
            index = jnp.maximum(where.take, 0).reshape(*where.take.shape, *(1,) * (donor.ndim - 2))
            donor = jnp.take_along_axis(donor, index, axis=1)
        edits.append(
            at(where.address, Exchange(of_source, donor, merged), layer=where.layer, head=where.head, where=mask)
        )
    logits = edit(model, *edits)(data.base, **(last_only(model) if data.last_only else {}))
    return logits[:, -1:] if data.last_only else logits


def last_only(model: Model) -> dict[str, Any]:
    """`last_only=True` if the model takes it."""
    while isinstance(model, Wrapper):
        model = model.model
    return {"last_only": True} if "last_only" in inspect.signature(type(model).__call__).parameters else {}


def check_locations(
    model: Model, data: InterchangeData, locations: Sequence[Location], features: Sequence[Features | None]
) -> list[int]:
    """Check that locations and features fit the model and the data.

    Args:
      model: the model.
      data: the pairs.
      locations: one for each source.
      features: one for each source. None: not known yet.

    Returns:
      For each location, the number of entries of the exchanged vector.
    """
    if not len(locations) == len(features) == data.sources.shape[0]:
        raise UserError(
            f"{len(locations)} locations and {len(features)} features for {data.sources.shape[0]} sources: give one of "
            "each for each source"
        )
    named = survey(model)(data.base)
    widths = []
    for source, (location, one) in enumerate(zip(locations, features)):
        address = _in_survey(location.address, named)
        value = named[address]
        _check_positions(data, location, source, value.axes)
        if location.head is not None:
            if "head" not in value.axes or value.axes[-1] == "key":
                raise UserError(
                    f"head={location.head}: {address} has the axes {value.axes}, without heads to choose from"
                )
            heads = value.shape[value.axes.index("head")]
            if not -heads <= location.head < heads:
                raise UserError(f"head={location.head}: {address} has {heads} heads")
        vectors = value.axes[:2] == ("batch", "pos") or len(value.shape) == 2
        if not isinstance(one, Whole) and not vectors:
            raise UserError(f"{address} has the axes {value.axes}: only a whole value of this kind can be exchanged")
        widths.append(
            value.shape[-1] if location.head is not None else int(np.prod(value.shape[min(2, len(value.shape) - 1) :]))
        )
        if one is not None:
            one.check(widths[-1])
    return widths


def _in_survey(address: str, named: Mapping[str, Any]) -> str:
    """The address with its layer counted from 0, as a survey has it."""
    if address in named:
        return address
    parsed = Address.parse(address)
    depth = 1 + max((int(name.split(".")[1]) for name in named if name.startswith("blocks.")), default=-1)
    layers = parsed.resolve(depth)
    found = address if layers is None else f"blocks.{layers[0]}.{parsed.name}"
    if found not in named:
        import difflib

        near = difflib.get_close_matches(address, named, n=3, cutoff=0.4)
        raise UserError(f"the model has no value {address!r}; near: {', '.join(near) or ', '.join(list(named)[:8])}")
    return found


def _check_positions(data: InterchangeData, location: Location, source: int, axes: tuple[str, ...]) -> None:
    if not location.names:
        if data.base.shape != data.sources.shape[1:]:
            raise UserError(
                f"{location.address}: bases {data.base.shape} and sources {data.sources.shape[1:]} differ in shape, so "
                "their values do not fit position by position: give pos="
            )
        return
    if axes[:2] != ("batch", "pos") or data.base.ndim != 2:
        raise UserError(f"pos={location.pos!r}: {location.address} has the axes {axes}, without positions")
    for name in location.names:
        if isinstance(name, str) and name not in data.positions:
            raise UserError(f"there is no position {name!r}; the data has {', '.join(data.positions) or 'none'}")
        lengths = (data.base.shape[1], data.sources.shape[2])
        if not isinstance(name, str) and not all(-n <= name < n for n in lengths):
            raise UserError(f"pos={name} is outside prompts of {lengths[0]} and {lengths[1]} tokens")
    take = take_map(data, location.names, source)
    if take is not None and is_known(take) and len(location.names) > 1:
        together = jnp.sum(take >= 0, axis=1) < len(location.names)
        if bool(together.any()):
            raise UserError(
                f"pos={location.pos!r}: two of these positions are the same token of the base in "
                f"{int(together.sum())} pairs"
            )


def read_positions(
    logits: Float[Array, "pair *pos class"], target: Int[Array, "pair *pos"]
) -> Bool[Array, "pair *pos"]:
    """Where the logits are read.

    Raises:
      UserError: the logits do not have the shape that the targets need.
    """
    if logits.shape[:-1] != target.shape:
        raise UserError(
            f"the network returns logits {logits.shape}, and the data has answers {target.shape}: logits should be "
            "[pair, pos, class], or [pair, class] with read_at=None"
        )
    return target >= 0


def of_target(
    logits: Float[Array, "pair *pos class"], target: Int[Array, "pair *pos"], choices: Int[Array, " choice"] | None
) -> tuple[Float[Array, "pair *pos class"], Float[Array, "pair *pos"]]:
    """(the logits with other classes than `choices` at -inf, the logit of the target), in float32 at least."""
    logits = upcast(logits)
    if choices is not None:
        allowed = jnp.zeros(logits.shape[-1], bool).at[choices].set(True, mode="drop")
        logits = jnp.where(jnp.broadcast_to(allowed, logits.shape), logits, -jnp.inf)
    index = jnp.where(target < 0, 0, target)[..., None]
    return logits, jnp.take_along_axis(logits, index, axis=-1, mode="fill", fill_value=jnp.nan)[..., 0]
