"""Activations of a model as rows, and a stream of shuffled rows that is computed inside the training step.

The stream takes tokens and returns rows of one or several values in random order. Its whole state is one pytree: the
buffer, the key, the cursor, and the statistics of the rows. A resumed run therefore gets exactly the same rows as an
uninterrupted run.

    stream = init_stream(key, model, addresses, batch_at, capacity=2**15)
    stream, x = advance(stream, model, addresses, *batch_at(int(stream.cursor)))     pure: can be jitted with training
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.data.shuffling import Buffer, draw, fill, init_buffer
from jax_interp.surgery import Model, read

Addresses = str | Sequence[str]
TokenBatch = tuple[Int[Array | np.ndarray, "seq pos"], Bool[Array | np.ndarray, "seq pos"]]
"""Tokens, and a mask of the positions to use: False at padding and special tokens. NumPy or JAX arrays."""
EMPTY_BATCHES = 100
"""It is an error if the masks of this many consecutive token batches exclude every position."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stream:
    """A stream of shuffled activations. `init_stream` makes it, and `advance` takes rows from it.

    The statistics are measured once, on the first rows that fill the buffer.
    """

    buffer: Buffer
    key: Key[Array, ""]
    cursor: Int[Array, ""]
    """The number of token batches that have been used."""
    scale: Float[Array, " value"]
    """The factor of each raw value that makes E‖x‖² equal to its width."""
    mean: Float[Array, " d"]
    """The mean of the scaled rows."""
    variance: Float[Array, " value"]
    """E‖x - mean‖² of each scaled value."""
    widths: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """The width of each value. A row is the concatenation of all values."""

    def columns(self, per_value: Float[Array, " value"]) -> Float[Array, " d"]:
        """Repeat the number of each value over the columns of this value in a row."""
        return columns(per_value, self.widths)


def columns(per_value: Float[Array, " value"], widths: tuple[int, ...]) -> Float[Array, " d"]:
    """Repeat the number of each value over the columns of this value in a row. `widths`: the widths of the values."""
    return jnp.repeat(per_value, jnp.asarray(widths), total_repeat_length=sum(widths))


def values(model: Model, addresses: Addresses, tokens: Int[Array, "seq pos"]) -> list[Float[Array, "row d"]]:
    """The value at each address for every token, as rows, from one forward pass.

    Blocks after the last address are not run.

    Args:
      model: any model that names its values, with or without edits.
      addresses: one or several addresses. Each must name a single value with a position axis.
      tokens: `[seq, pos]`.

    Returns:
      For each address an array `[seq * pos, d]`. A value with heads (`[seq, pos, head, d_head]`) is flattened.

    Raises:
      UserError: a value has no position axis, or an address names several layers.

    Example:
        resid, mlp = values(model, ("blocks.2.resid_post", "blocks.2.mlp_out"), tokens)
    """
    addresses = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    activations = read(model, *dict.fromkeys(addresses), output=False)(tokens)
    rows = []
    for address in addresses:
        value = activations[address]
        if value.shape[: tokens.ndim] != tokens.shape or value.ndim not in (tokens.ndim + 1, tokens.ndim + 2):
            raise UserError(
                f"{address} has shape {value.shape} for tokens {tokens.shape}: a dictionary reads one vector per token "
                "(or one per head, concatenated) of a single layer: blocks.3.resid_post, not blocks.*.resid_post"
            )
        rows.append(value.reshape(tokens.size, -1))
    return rows


def harvest(model: Model, addresses: Addresses, tokens: Int[Array, "seq pos"]) -> Float[Array, "row d"]:
    """The rows of `values`, concatenated: `[seq * pos, sum of the widths]`."""
    rows = values(model, addresses, tokens)
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=-1)


def init_stream(
    key: Key[Array, ""],
    model: Model,
    addresses: Addresses,
    batch_at: Callable[[int], TokenBatch],
    capacity: int,
) -> Stream:
    """Fill a buffer from the batches 0, 1, ... and measure the statistics of its rows.

    Args:
      key: the random key of the stream.
      model: any model that names its values.
      addresses: the addresses of the values, as in `values`.
      batch_at: batch number -> (tokens, keep). Positions where `keep` is False do not enter the buffer.
      capacity: the number of rows in the buffer. It is rounded down to whole batches, to at least one batch.

    Returns:
      The stream. Its cursor is the number of batches that were used to fill the buffer.

    Raises:
      UserError: `keep` excludes every position, or the activations are not finite or all zero.
    """
    rows_per_batch = batch_at(0)[0].size
    depth = max(capacity // rows_per_batch, 1)

    @jax.jit
    def add_batch(buffer, model, tokens, keep):
        return fill(buffer, harvest(model, addresses, tokens), keep.reshape(-1))

    parts = jax.eval_shape(lambda model, tokens: values(model, addresses, tokens), model, batch_at(0)[0])
    widths = tuple(part.shape[1] for part in parts)
    buffer, cursor, empty = init_buffer(rows_per_batch, depth, sum(widths), parts[0].dtype), 0, 0
    while (filled := int(buffer.filled)) < buffer.capacity:
        tokens, keep = batch_at(cursor)
        buffer, cursor = add_batch(buffer, model, tokens, keep), cursor + 1
        empty = empty + 1 if int(buffer.filled) == filled else 0
        if empty == EMPTY_BATCHES:
            raise UserError(f"the masks of {empty} token batches in a row exclude every position: nothing to train on")
    buffer, scale, mean, variance = jax.jit(shuffle_and_measure, static_argnums=2)(buffer, key, widths)
    if not bool(jnp.isfinite(scale).all()):
        raise UserError(
            f"the activations at {addresses} are not finite, or are all zero: E‖x‖² gives the scale {scale}"
        )
    key = jax.random.fold_in(key, 1)
    return Stream(buffer, key, jnp.asarray(cursor, jnp.int32), scale, mean, variance, widths)


def shuffle_and_measure(
    buffer: Buffer, key: Key[Array, ""], widths: tuple[int, ...]
) -> tuple[Buffer, Float[Array, " value"], Float[Array, " d"], Float[Array, " value"]]:
    """The buffer with its rows shuffled, and the `scale`, `mean` and `variance` of a `Stream` with these rows."""
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
    stream: Stream, model: Model, addresses: Addresses, tokens: Int[Array, "seq pos"], keep: Bool[Array, "seq pos"]
) -> tuple[Stream, Float[Array, "row d"]]:
    """Put the activations of one token batch into the stream, and draw as many rows as the batch has tokens.

    Args:
      stream: the stream.
      model: any model that names its values.
      addresses: the addresses that were given to `init_stream`.
      tokens: `[seq, pos]`, in the same shape as the batches of `init_stream`.
      keep: which positions enter the buffer. If n positions are excluded, n of the drawn rows also stay in the buffer
        and can be drawn again.

    Returns:
      The stream after the batch, and scaled rows `[seq * pos, d]` in float32.
    """
    key, subkey = jax.random.split(stream.key)
    buffer, rows = draw(stream.buffer, subkey, harvest(model, addresses, tokens), keep.reshape(-1))
    x = rows.astype(jnp.float32) * stream.columns(stream.scale)[None, :]
    return dataclasses.replace(stream, buffer=buffer, key=key, cursor=stream.cursor + 1), x
