"""A stream of shuffled activations, harvested from a model inside the training step.

Tokens go in, rows of one or several values come out in random order. The stream's whole state is one pytree: buffer,
key, cursor, and the statistics of the inputs, so a run resumes with the very rows it would have seen.

    stream = start_stream(key, model, addresses, batch_at, capacity=2**15)
    stream, x = advance(stream, model, addresses, *batch_at(int(stream.cursor)))     pure: jits with training
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.data.buffer import Buffer, draw, empty_buffer, put
from jax_interp.surgery import read

Addresses = str | Sequence[str]
EMPTY_BATCHES = 100
"""So many token batches in a row whose masks exclude every position are an error."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stream:
    """`scale` multiplies the raw values of each address so that E‖x‖² = its width; `mean` and `variance`
    (E‖x - mean‖² of each) are of the scaled ones. All are measured once, on the rows that first fill the buffer."""

    buffer: Buffer
    key: Key[Array, ""]
    cursor: Int[Array, ""]  # token batches consumed
    scale: Float[Array, " value"]
    mean: Float[Array, " d"]
    variance: Float[Array, " value"]
    widths: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def columns(self, per_value: Float[Array, " value"]) -> Float[Array, " d"]:
        """One number a value, repeated over the value's columns."""
        return columns(per_value, self.widths)


def columns(per_value: Float[Array, " value"], widths: tuple[int, ...]) -> Float[Array, " d"]:
    return jnp.repeat(per_value, jnp.asarray(widths), total_repeat_length=sum(widths))


def values(model: Any, addresses: Addresses, tokens: Int[Array, "seq pos"]) -> list[Float[Array, "row d"]]:
    """The value at each address for every token, as rows, from one forward pass; blocks after the last are not run.
    What has heads ("seq pos head d_head") is flattened. UserError where a value has no position axis of its own or
    holds several layers."""
    addresses = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    activations = read(model, *dict.fromkeys(addresses), output=False)(tokens)
    out = []
    for address in addresses:
        value = activations[address]
        if value.shape[: tokens.ndim] != tokens.shape or value.ndim not in (tokens.ndim + 1, tokens.ndim + 2):
            raise UserError(
                f"{address} has shape {value.shape} for tokens {tokens.shape}: a dictionary reads one vector per token "
                "(or one per head, taken together), at a single layer: blocks.3.resid_post, not blocks.*.resid_post"
            )
        out.append(value.reshape(tokens.size, -1))
    return out


def harvest(model: Any, addresses: Addresses, tokens: Int[Array, "seq pos"]) -> Float[Array, "row d"]:
    """`values`, side by side."""
    found = values(model, addresses, tokens)
    return found[0] if len(found) == 1 else jnp.concatenate(found, axis=-1)


def start_stream(
    key: Key[Array, ""],
    model: Any,
    addresses: Addresses,
    batch_at: Callable[[int], tuple[Int[Array, "seq pos"], Bool[Array, "seq pos"]]],
    capacity: int,
) -> Stream:
    """Fill a buffer of about `capacity` rows (a whole number of batches) from batches 0, 1, … and measure it.

    `batch_at(i)` gives (tokens, keep): `keep` is False at padding and special tokens, which never enter the buffer.
    UserError where `keep` leaves nothing.
    """
    rows_per_batch = batch_at(0)[0].size
    depth = max(capacity // rows_per_batch, 1)

    @jax.jit
    def pour(buffer, model, tokens, keep):
        return put(buffer, harvest(model, addresses, tokens), keep.reshape(-1))

    parts = jax.eval_shape(lambda model, tokens: values(model, addresses, tokens), model, batch_at(0)[0])
    widths = tuple(part.shape[1] for part in parts)
    buffer, cursor, empty = empty_buffer(rows_per_batch, depth, sum(widths), parts[0].dtype), 0, 0
    while (filled := int(buffer.filled)) < buffer.capacity:
        tokens, keep = batch_at(cursor)
        buffer, cursor = pour(buffer, model, tokens, keep), cursor + 1
        empty = empty + 1 if int(buffer.filled) == filled else 0
        if empty == EMPTY_BATCHES:
            raise UserError(f"the masks of {empty} token batches in a row exclude every position: nothing to train on")
    buffer, scale, mean, variance = jax.jit(measured, static_argnums=2)(buffer, key, widths)
    if not bool(jnp.isfinite(scale).all()):
        raise UserError(
            f"the activations at {addresses} are not finite, or are all zero: E‖x‖² gives the scale {scale}"
        )
    key = jax.random.fold_in(key, 1)
    return Stream(buffer, key, jnp.asarray(cursor, jnp.int32), scale, mean, variance, widths)


def measured(buffer: Buffer, key: Key[Array, ""], widths: tuple[int, ...]):
    """The buffer shuffled, and the statistics of its rows: (buffer, scale, mean, variance)."""
    order = jax.random.permutation(key, buffer.capacity)
    x = buffer.rows.astype(jnp.float32)
    ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
    square, mean = jnp.mean(x * x, axis=0), jnp.mean(x, axis=0)
    total = lambda a: jnp.stack([jnp.sum(part) for part in jnp.split(a, ends)])
    scale = jnp.sqrt(jnp.asarray(widths, x.dtype) / total(square))
    centred = x - mean[None, :]
    variance = total(jnp.mean(centred * centred, axis=0)) * scale * scale
    shuffled = dataclasses.replace(buffer, rows=buffer.rows[order])
    return shuffled, scale, mean * columns(scale, widths), variance


def advance(
    stream: Stream, model: Any, addresses: Addresses, tokens: Int[Array, "seq pos"], keep: Bool[Array, "seq pos"]
) -> tuple[Stream, Float[Array, "row d"]]:
    """(stream, rows): as many rows as there are tokens, drawn from the buffer, scaled, in float32. Fresh activations
    take the places of drawn rows; where `keep` excluded some, that many drawn rows stay and will be seen again."""
    return exchange(stream, harvest(model, addresses, tokens), keep)


def exchange(
    stream: Stream, fresh: Float[Array, "row d"], keep: Bool[Array, "seq pos"]
) -> tuple[Stream, Float[Array, "row d"]]:
    """`advance` with raw rows that were come by in another way (a store, another model)."""
    key, subkey = jax.random.split(stream.key)
    buffer, rows = draw(stream.buffer, subkey, fresh, keep.reshape(-1))
    x = rows.astype(jnp.float32) * stream.columns(stream.scale)[None, :]
    return dataclasses.replace(stream, buffer=buffer, key=key, cursor=stream.cursor + 1), x
