"""Activations of a model as rows, and a stream of shuffled rows that is harvested inside the training step.

Tokens go in, rows of one or several values come out in random order. The whole state of the stream is one pytree: the
buffer, the key, the cursor, and the statistics of the inputs. A run that resumes therefore sees the very rows that it
would have seen.

    stream = init_stream(key, model, addresses, batch_at, capacity=2**15)
    stream, x = advance(stream, model, addresses, *batch_at(int(stream.cursor)))     pure: jits with training
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
"""Tokens, and which of their positions count: False at padding and special tokens. NumPy's or JAX's arrays."""
EMPTY_BATCHES = 100
"""This many token batches in a row whose masks exclude every position are an error."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stream:
    """A stream of shuffled activations. Make one with `init_stream`, take rows with `advance`.

    The statistics are measured once, on the rows that first fill the buffer.
    """

    buffer: Buffer
    key: Key[Array, ""]
    cursor: Int[Array, ""]
    """How many token batches have been consumed."""
    scale: Float[Array, " value"]
    """What multiplies the raw values of each address, so that E‖x‖² is the width of the value."""
    mean: Float[Array, " d"]
    """The mean of the scaled rows."""
    variance: Float[Array, " value"]
    """E‖x - mean‖² of each scaled value."""
    widths: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """The width of each value. A row has them side by side."""

    def columns(self, per_value: Float[Array, " value"]) -> Float[Array, " d"]:
        """One number for each value, repeated over the value's columns."""
        return columns(per_value, self.widths)


def columns(per_value: Float[Array, " value"], widths: tuple[int, ...]) -> Float[Array, " d"]:
    """One number for each value, repeated over the columns of a row of values side by side."""
    return jnp.repeat(per_value, jnp.asarray(widths), total_repeat_length=sum(widths))


def values(model: Model, addresses: Addresses, tokens: Int[Array, "seq pos"]) -> list[Float[Array, "row d"]]:
    """The value at each address for every token, as rows, from one forward pass.

    Blocks after the last address are not run.

    Args:
      model: any model that names its values. Surgeries on it act.
      addresses: one address or several, of values with a position axis, each in a single layer.
      tokens: `[seq, pos]`.

    Returns:
      For each address an array `[seq * pos, d]`. A value with heads (`[seq, pos, head, d_head]`) is flattened.

    Raises:
      UserError: a value has no position axis of its own, or holds several layers.

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
                "(or one per head, taken together), at a single layer: blocks.3.resid_post, not blocks.*.resid_post"
            )
        rows.append(value.reshape(tokens.size, -1))
    return rows


def harvest(model: Model, addresses: Addresses, tokens: Int[Array, "seq pos"]) -> Float[Array, "row d"]:
    """The rows of `values` side by side: `[seq * pos, sum of the widths]`."""
    rows = values(model, addresses, tokens)
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=-1)


def init_stream(
    key: Key[Array, ""],
    model: Model,
    addresses: Addresses,
    batch_at: Callable[[int], TokenBatch],
    capacity: int,
) -> Stream:
    """Fill a buffer from the batches 0, 1, ... and measure the rows in it.

    Args:
      key: random key of the stream.
      model: any model that names its values.
      addresses: what is harvested, as in `values`.
      batch_at: batch number -> (tokens, keep). Positions where `keep` is False never enter the buffer.
      capacity: about how many rows the buffer holds; rounded down to whole batches, at least one.

    Returns:
      The stream. Its cursor is the number of batches that filled the buffer.

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
    """Harvest one token batch into the stream, and draw as many rows as it has tokens.

    Args:
      stream: the stream.
      model: any model that names its values.
      addresses: the addresses of `init_stream`.
      tokens: `[seq, pos]`, of the shape that the stream began with.
      keep: which positions enter the buffer. Where some are excluded, that many drawn rows stay and are seen again.

    Returns:
      The stream after the batch, and rows `[seq * pos, d]`: scaled, float32.
    """
    key, subkey = jax.random.split(stream.key)
    buffer, rows = draw(stream.buffer, subkey, harvest(model, addresses, tokens), keep.reshape(-1))
    x = rows.astype(jnp.float32) * stream.columns(stream.scale)[None, :]
    return dataclasses.replace(stream, buffer=buffer, key=key, cursor=stream.cursor + 1), x
