"""Another set of edits for each row of a batch, as arrays: one compiled program for all of them.

A `RowEdits` is a table. For each layer, each slot and each row it has a vector, the number of an operator, a strength
and the positions. The shapes are fixed, so other edits do not compile again. Each layer sees only its part of the
table. The norm and the coefficient of the value are computed once; every operator gives two scalars from them, and the
number of the operator selects one pair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering.operators import OPERATORS
from jax_interp.steering.serving.request import Request, RequestEdit, check_request
from jax_interp.steering.steer import parts
from jax_interp.surgery import Each, Edit, Tapped, TokenEdit, ValueTokens, at, edit, survey
from jax_interp.surgery.address import Address, AddressError, depth_in, suggest
from jax_interp.surgery.contract import Model
from jax_interp.surgery.stack import index_layer
from jax_interp.surgery.value_tokens import wide
from jax_interp.surgery.verbs import flat_edits

NEVER = np.iinfo(np.int32).max
"""The end of an edit that has no end."""
NUMBER_OF = {name: number for number, name in enumerate(OPERATORS)}


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class RowEdits(TokenEdit):
    """The edits of each row at one value. The axis `slot` has the edits of a row that act one after the other.

    Positions are absolute in the text of the row, without padding. An empty slot has start = stop = 0.
    """

    unit: Float[Array | np.ndarray, "slot batch d"]
    """The vector divided by its norm."""
    norm: Float[Array | np.ndarray, "slot batch"]
    operator: Int[Array | np.ndarray, "slot batch"]
    strength: Float[Array | np.ndarray, "slot batch"]
    decay: Float[Array | np.ndarray, "slot batch"]
    start: Int[Array | np.ndarray, "slot batch"]
    stop: Int[Array | np.ndarray, "slot batch"]
    last: Int[Array | np.ndarray, "slot batch"]
    """The last position of the prompt. The decay begins after it."""

    def __call__(self, x: Float[Array, "batch pos d"], tokens: ValueTokens) -> Float[Array, "batch pos d"]:
        here = tokens.absolute(x)
        for slot in range(self.norm.shape[0]):
            x = index_layer(self, slot)._steered(wide(x), here)
        return x

    def _steered(self, x: Float[Array, "batch pos d"], here: Int[Array, "batch pos"]) -> Float[Array, "batch pos d"]:
        """The value after the edits of one slot."""
        column = lambda leaf: leaf[:, None]
        numbers = lambda leaf: jnp.broadcast_to(column(leaf.astype(x.dtype)), here.shape)
        unit, norm = column(self.unit.astype(x.dtype)), numbers(self.norm)
        new = jnp.maximum(here - column(self.last), 0).astype(x.dtype)
        strength = numbers(self.strength) * numbers(self.decay) ** new
        along, across = parts(x, unit)
        pairs = [operator(across, along, strength, norm) for operator in OPERATORS.values()]
        number = jnp.broadcast_to(column(self.operator), here.shape)
        scale, amount = (jax.lax.select_n(number, *scalars) for scalars in zip(*pairs, strict=True))
        acts = (here >= column(self.start)) & (here < column(self.stop)) & (norm > 0)
        return jnp.where(acts[..., None], scale[..., None] * x + amount[..., None] * unit, x)


@dataclasses.dataclass(frozen=True)
class ServedValue:
    """A value at which requests can have edits.

    Attributes:
      address: the address, such as "blocks.*.resid_post".
      layers: its layers.
      depth: the number of layers of the model.
      width: the number of entries of a vector there.
    """

    address: str
    layers: tuple[int, ...]
    depth: int
    width: int

    @property
    def name(self) -> str:
        return Address.parse(self.address).name


def served_values(model: Model, addresses: Sequence[str]) -> tuple[ServedValue, ...]:
    """The values at which requests can have edits.

    Args:
      model: a model, under surgery or not.
      addresses: such as "blocks.*.resid_post": one for each name.

    Raises:
      AddressError: the model has no such value.
      UserError: a value has other axes than batch, pos and one more, or is outside the blocks, or a name comes twice.
    """
    named = survey(model)(jnp.zeros((1, 1), jnp.int32))
    depth, served = depth_in(named), []
    for address in map(Address.parse, addresses):
        if address.layers in (None, ""):
            raise UserError(f"{str(address)!r}: requests are edited at values of blocks, such as 'blocks.*.resid_post'")
        layers = address.resolve(depth)
        assert layers is not None, "the address is inside the blocks"
        for one in (f"blocks.{layer}.{address.name}" for layer in layers):
            if one not in named:
                raise AddressError(f"the model has no value {one!r}.{suggest(one, named)}")
            if named[one].axes[:2] != ("batch", "pos") or len(named[one].axes) != 3:
                raise UserError(f"{one!r} has the axes ({' '.join(named[one].axes)}): a vector needs (batch pos d)")
        width = named[f"blocks.{layers[0]}.{address.name}"].shape[-1]
        served.append(ServedValue(str(address), layers, depth, width))
    if len({value.name for value in served}) < len(served):
        raise UserError(f"{', '.join(addresses)}: a value comes twice")
    return tuple(served)


def edit_rows(model: Model, requests: Sequence[Request], values: Sequence[str] | None = None) -> Tapped:
    """The model in which row `i` of a batch has the edits of request `i`.

    The edits are data. Other requests compile again only if there are more edits at one value, or other values.

    Args:
      model: a model, under surgery or not.
      requests: one request for each row.
      values: the addresses of the values that can be edited, such as ["blocks.*.resid_post"]. None: those that the
        requests have edits at, in all layers.

    Raises:
      UserError: a request is not valid for this model.

    Example:
        tokens, mask = pad_left([request.tokens for request in requests])
        new = generate(edit_rows(model, requests), tokens, 20, mask=mask)
    """
    for request in requests:
        check_request(request, model.config)  # type: ignore[attr-defined]
    edits = [one for request in requests for one in request.edits]
    if values is None:
        names = dict.fromkeys(Address.parse(one.address).name for one in edits)
        values = [f"blocks.*.{name}" for name in names]
    served = served_values(model, values)
    placed = [_placed(request, served) for request in requests]
    slots = max((len(here) for row in placed for here in row.values()), default=0)
    return edit(model, *table_edits(served, [_table(value, placed, slots) for value in served]) if slots else ())


def table_edits(served: Sequence[ServedValue], tables: Sequence[RowEdits]) -> tuple[Edit, ...]:
    """The edits of a model that apply the table of each served value."""
    pairs = zip(served, tables, strict=True)
    return tuple(flat_edits(at(value.address, Each(table)) for value, table in pairs))


def tables_of(request: Request, served: Sequence[ServedValue], slots: int) -> dict[ServedValue, RowEdits]:
    """The tables of one row, as NumPy arrays.

    Raises:
      UserError: an edit is at a value that is not served, its vector has another size, or a layer has more than `slots`
        edits.
    """
    placed = _placed(request, served)
    for (value, layer), here in placed.items():
        if len(here) > slots:
            where = f"blocks.{layer}.{value.name}"
            raise UserError(f"{len(here)} edits at {where!r}: a request has at most {slots} at one value")
    return {value: _table(value, [placed], slots) for value in served}


Placed = dict[tuple[ServedValue, int], list[tuple[RequestEdit, int]]]
"""For each value and layer: the edits and the length of the prompt."""


def _placed(request: Request, served: Sequence[ServedValue]) -> Placed:
    """The edits of a request by value and layer."""
    placed: Placed = {}
    for i, one in enumerate(request.edits):
        address = Address.parse(one.address)
        value = next((value for value in served if value.name == address.name), None)
        layers = () if value is None else address.resolve(value.depth) or ()
        if value is None or address.layers in (None, "") or not set(layers) <= set(value.layers):
            have = ", ".join(value.address for value in served) or "no value"
            raise UserError(f"edits[{i}] is at {one.address!r}: edits of requests can be at {have}")
        size = np.shape(one.vector)[0]
        if size != value.width:
            raise UserError(f"the vector of edits[{i}] has {size} entries, and {one.address!r} has {value.width}")
        for layer in layers if one.gate else ():
            placed.setdefault((value, layer), []).append((one, len(request.tokens)))
    return placed


def _table(value: ServedValue, rows: Sequence[Placed], slots: int) -> RowEdits:
    """The table of a value, with arrays `[layer, slot, batch, ...]`."""
    shape = (len(value.layers), slots, len(rows))
    unit = np.zeros((*shape, value.width), np.float32)
    norm, strength, decay = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.ones(shape, np.float32)
    operator, start, stop, last = (np.zeros(shape, np.int32) for _ in range(4))
    for row, placed in enumerate(rows):
        for i, layer in enumerate(value.layers):
            for slot, (one, length) in enumerate(placed.get((value, layer), ())):
                here = (i, slot, row)
                vector = np.asarray(one.vector).astype(np.float64)
                length_of_vector = np.linalg.norm(vector)
                norm[here], unit[here] = length_of_vector, vector / (length_of_vector or 1.0)
                operator[here], strength[here], decay[here] = NUMBER_OF[one.operator], one.strength, one.decay
                start[here] = max(one.start + length if one.start < 0 else one.start, 0)
                end = NEVER if one.stop is None else one.stop
                stop[here] = max(end + length if end < 0 else end, 0)
                last[here] = length - 1
    return RowEdits(unit, norm, operator, strength, decay, start, stop, last)
