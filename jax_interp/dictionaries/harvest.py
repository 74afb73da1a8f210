"""A stream of shuffled activations, harvested from a model inside the training step.

Tokens go in, rows of one site's value come out in random order. The stream's whole state is one pytree: buffer, key,
cursor, and the statistics of the inputs, so a run resumes with the very rows it would have seen.

    stream = start_stream(key, model, address, batch_at, capacity=2**15)
    stream, x = advance(stream, model, address, *batch_at(int(stream.cursor)))       pure: jits with training
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.data.buffer import Buffer, draw, empty_buffer, put
from jax_interp.errors import UserError
from jax_interp.surgery import read


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stream:
    """`scale` multiplies raw activations so that E‖x‖² = d; `mean` and `variance` = E‖x - mean‖² are of the scaled
    ones. All three are measured once, on the rows that first fill the buffer."""

    buffer: Buffer
    key: Key[Array, ""]
    cursor: Int[Array, ""]  # token batches consumed
    scale: Float[Array, ""]
    mean: Float[Array, " d"]
    variance: Float[Array, ""]


def harvest(model: Any, address: str, tokens: Int[Array, "seq pos"]) -> Float[Array, "row d"]:
    """The value at `address` for every token, as rows. Blocks after it are not run. UserError where the value has other
    axes than [seq, pos, d]."""
    value = read(model, address, output=False)(tokens)[address]
    if value.shape[:-1] != tokens.shape:
        raise UserError(
            f"{address} has shape {value.shape} for tokens {tokens.shape}: a dictionary reads one vector per token, "
            "at a single layer (blocks.3.resid_post, not blocks.*.resid_post) and not per head"
        )
    return value.reshape(tokens.size, -1)


def start_stream(
    key: Key[Array, ""],
    model: Any,
    address: str,
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
        return put(buffer, harvest(model, address, tokens), keep.reshape(-1))

    row = jax.eval_shape(lambda model, tokens: harvest(model, address, tokens), model, batch_at(0)[0])
    buffer, cursor = empty_buffer(rows_per_batch, depth, row.shape[1], row.dtype), 0
    while (filled := int(buffer.filled)) < buffer.capacity:
        tokens, keep = batch_at(cursor)
        buffer, cursor = pour(buffer, model, tokens, keep), cursor + 1
        if cursor > 10 * depth and filled == 0:
            raise UserError(f"the masks of {cursor} token batches exclude every position: nothing to train on")
    buffer, scale, mean, variance = jax.jit(_measured)(buffer, key)
    if not bool(jnp.isfinite(scale)):
        raise UserError(f"the activations at {address} are not finite, or are all zero: E‖x‖² gives the scale {scale}")
    key = jax.random.fold_in(key, 1)
    return Stream(buffer, key, jnp.asarray(cursor, jnp.int32), scale, mean, variance)


def _measured(buffer: Buffer, key: Key[Array, ""]):
    """The buffer shuffled, and its statistics."""
    order = jax.random.permutation(key, buffer.capacity)
    x = buffer.rows.astype(jnp.float32)
    square, mean = jnp.mean(jnp.sum(x * x, axis=1)), jnp.mean(x, axis=0)
    scale = jnp.sqrt(jnp.asarray(x.shape[1], x.dtype) / square)
    centred = x - jnp.broadcast_to(mean, x.shape)
    variance = jnp.mean(jnp.sum(centred * centred, axis=1)) * scale * scale
    shuffled = dataclasses.replace(buffer, rows=buffer.rows[order])
    return shuffled, scale, mean * scale, variance


def advance(
    stream: Stream, model: Any, address: str, tokens: Int[Array, "seq pos"], keep: Bool[Array, "seq pos"]
) -> tuple[Stream, Float[Array, "row d"]]:
    """(stream, rows): as many rows as there are tokens, drawn from the buffer, scaled, in float32. Fresh activations
    take the places of drawn rows; where `keep` excluded some, that many drawn rows stay and will be seen again."""
    key, subkey = jax.random.split(stream.key)
    fresh = harvest(model, address, tokens)
    buffer, rows = draw(stream.buffer, subkey, fresh, keep.reshape(-1))
    x = rows.astype(jnp.float32) * stream.scale
    return dataclasses.replace(stream, buffer=buffer, key=key, cursor=stream.cursor + 1), x
