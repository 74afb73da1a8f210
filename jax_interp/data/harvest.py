"""Activations of a model as rows, and a stream of shuffled rows that is computed inside the training step.

The stream takes tokens and returns rows of one or several values in random order. Its whole state is one pytree: the
buffer, the key, the cursor, and the statistics of the rows. A resumed run therefore gets exactly the same rows as an
uninterrupted run.

    stream = init_stream(key, model, addresses, batch_at, capacity=2**15)
    stream, x = advance(stream, model, addresses, *batch_at(int(stream.cursor)))     pure: can be jitted with training
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.data.shuffling import Buffer, draw, fill, init_buffer
from jax_interp.surgery import Model, values_at
from jax_interp.training.placement import automatic
from jax_interp.training.planning.planned import PlannedStep
from jax_interp.training.sharding import Rules

AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)
Addresses = str | Sequence[str]
TokenBatch = tuple[Int[Array | np.ndarray, "seq pos"], Bool[Array | np.ndarray, "seq pos"]]
"""Tokens, and a mask of the positions to use: False at padding and special tokens. NumPy or JAX arrays."""
LONG_MEAN = 0.1
"""A mean is long if E‖x - E x‖² is below this fraction of E‖x‖²."""
EMPTY_BATCHES = 100
"""It is an error if the masks of this many consecutive token batches exclude every position."""


@register_dataclass
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
    """The factor of each raw value that makes E‖x‖² equal to its width (`scale_of`)."""
    mean: Float[Array, " d"]
    """The mean of the scaled rows."""
    variance: Float[Array, " value"]
    """E‖x - mean‖² of each scaled value."""
    widths: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """The width of each value. A row is the concatenation of all values."""
    longest: Float[Array, " value"] | None = None
    """The largest norm of each raw value in a row that enters the buffer. None: there is no limit."""

    @property
    def centre(self) -> Float[Array, " d"]:
        """The part of a scaled row that `advance` subtracts (`long_means`)."""
        return long_means(self.mean, self.variance, self.widths)

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
    activations = values_at(model, *dict.fromkeys(addresses))(tokens)
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


def later_positions(keep: Bool[Array | np.ndarray, "seq pos"], first: int) -> Bool[Array | np.ndarray, "seq pos"]:
    """The mask `keep` without the first positions of each sequence.

    Args:
      keep: the mask, a NumPy or JAX array.
      first: the number of positions to leave out.

    Raises:
      UserError: the sequences have no more positions than this.
    """
    if not first:
        return keep
    if first >= keep.shape[1]:
        raise UserError(f"skip_first={first} leaves nothing of sequences of {keep.shape[1]} tokens")
    return keep & (np.arange(keep.shape[1]) >= first)[None, :]


def harvest(model: Model, addresses: Addresses, tokens: Int[Array, "seq pos"]) -> Float[Array, "row d"]:
    """The rows of `values`, concatenated: `[seq * pos, sum of the widths]`."""
    rows = values(model, addresses, tokens)
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=-1)


def planned(model: Model, rules: Rules, addresses: Addresses, batch: tuple[Any, Any], batches: int = 1) -> PlannedStep:
    """One batch of rows of `harvest`, by shapes (`training.planning`).

    Args:
      model: the shapes of the model.
      rules: its sharding rules.
      addresses: the addresses of the values.
      batch: the shapes of tokens and mask.
      batches: the number of batches of the whole harvest.
    """
    step = lambda _, batch, model: harvest(model, addresses, batch[0])
    return PlannedStep(step, (), batch, ((model, rules),), (), lambda _: "state", batches, batch[0].size, donated=False)


def init_stream(
    key: Key[Array, ""],
    model: Model,
    addresses: Addresses,
    batch_at: Callable[[int], TokenBatch],
    capacity: int,
    max_norm: float | None = None,
) -> Stream:
    """Fill a buffer from the batches 0, 1, ... and measure the statistics of its rows.

    Args:
      key: the random key of the stream.
      model: any model that names its values.
      addresses: the addresses of the values, as in `values`.
      batch_at: batch number -> (tokens, keep). Positions where `keep` is False do not enter the buffer.
      capacity: the number of rows in the buffer. It is rounded down to whole batches, to at least one batch.
      max_norm: rows in which a value is longer than this many times its median norm do not enter the buffer. The median
        is measured on the first rows. None: no row is left out.

    Returns:
      The stream. Its cursor is the number of batches that were used to fill the buffer.

    Raises:
      UserError: `keep` excludes every position, or the activations are not finite, all zero or all equal.
    """
    rows_per_batch = batch_at(0)[0].size
    depth = max(capacity // rows_per_batch, 1)
    of_tokens = automatic(lambda model, tokens: values(model, addresses, tokens))
    parts = jax.eval_shape(of_tokens, model, batch_at(0)[0])
    widths = tuple(part.shape[1] for part in parts)

    @jax.jit
    @automatic
    def add_batch(buffer, model, tokens, keep, longest):
        rows = harvest(model, addresses, tokens)
        return fill(buffer, rows, keep.reshape(-1) & _within(rows, widths, longest))

    def filled_buffer(longest: Array | None) -> tuple[Buffer, int]:
        buffer, cursor, empty = init_buffer(rows_per_batch, depth, sum(widths), parts[0].dtype), 0, 0
        while (filled := int(buffer.filled)) < buffer.capacity:
            buffer, cursor = add_batch(buffer, model, *batch_at(cursor), longest), cursor + 1
            empty = empty + 1 if int(buffer.filled) == filled else 0
            if empty == EMPTY_BATCHES:
                raise UserError(
                    f"the masks of {empty} token batches in a row exclude every position: nothing to train on"
                )
        return buffer, cursor

    buffer, cursor = filled_buffer(None)
    longest = None if max_norm is None else max_norm * jnp.median(_norms(buffer.rows, widths), axis=0)
    if longest is not None:
        buffer, cursor = filled_buffer(longest)
    buffer, scale, mean, variance = jax.jit(automatic(shuffle_and_measure), static_argnums=2)(buffer, key, widths)
    if not bool(jnp.isfinite(scale).all()):
        raise UserError(
            f"the activations at {addresses} are not finite, or are all zero: E‖x‖² gives the scale {scale}"
        )
    if not bool((variance > 1e-9 * jnp.asarray(widths, variance.dtype)).all()):
        raise UserError(f"the activations at {addresses} are equal at every position: there is nothing to learn")
    key = jax.random.fold_in(key, 1)
    return Stream(buffer, key, jnp.asarray(cursor, jnp.int32), scale, mean, variance, widths, longest)


def stream_shapes(
    model: Model, addresses: Addresses, batch: tuple[Any, Any], capacity: int, max_norm: float | None = None
) -> Stream:
    """The shapes of the stream that `init_stream` makes. Nothing is computed.

    Args:
      model: the model, or its shapes.
      addresses: as in `init_stream`.
      batch: the shapes of a batch: tokens and mask.
      capacity: as in `init_stream`.
      max_norm: as in `init_stream`.
    """
    tokens = batch[0]
    depth = max(capacity // math.prod(tokens.shape), 1)
    parts = jax.eval_shape(lambda model, tokens: values(model, addresses, tokens), model, tokens)
    widths = tuple(part.shape[1] for part in parts)

    def shapes() -> Stream:
        key = jax.random.key(0)
        buffer = init_buffer(math.prod(tokens.shape), depth, sum(widths), parts[0].dtype)
        buffer, scale, mean, variance = shuffle_and_measure(buffer, key, widths)
        longest = None if max_norm is None else jnp.median(_norms(buffer.rows, widths), axis=0)
        return Stream(buffer, key, jnp.zeros((), jnp.int32), scale, mean, variance, widths, longest)

    return jax.eval_shape(shapes)


def _norms(rows: Float[Array, "row d"], widths: tuple[int, ...]) -> Float[Array, "row value"]:
    """The norm of each value in each row."""
    ends = np.cumsum(widths)[:-1].tolist()
    squares = jnp.split(rows.astype(jnp.float32) ** 2, ends, axis=1)
    return jnp.sqrt(jnp.stack([jnp.sum(part, axis=1) for part in squares], axis=1))


def _within(
    rows: Float[Array, "row d"], widths: tuple[int, ...], longest: Float[Array, " value"] | None
) -> Bool[Array, " row"]:
    """Whether no value of a row is longer than `longest`."""
    if longest is None:
        return jnp.ones((rows.shape[0],), bool)
    return jnp.all(_norms(rows, widths) <= longest[None, :], axis=1)


def shuffle_and_measure(
    buffer: Buffer, key: Key[Array, ""], widths: tuple[int, ...]
) -> tuple[Buffer, Float[Array, " value"], Float[Array, " d"], Float[Array, " value"]]:
    """The buffer with its rows shuffled, and the `scale`, `mean` and `variance` of a `Stream` with these rows."""
    order = jax.random.permutation(key, buffer.capacity)
    x = buffer.rows.astype(jnp.float32)
    ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
    square, mean = jnp.mean(x * x, axis=0), jnp.mean(x, axis=0)
    total = lambda a: jnp.stack([jnp.sum(part) for part in jnp.split(a, ends)])
    centred = x - mean[None, :]
    spread = total(jnp.mean(centred * centred, axis=0))
    scale = scale_of(widths, total(square), spread)
    shuffled = dataclasses.replace(buffer, rows=buffer.rows[order])
    return shuffled, scale, mean * columns(scale, widths), spread * scale * scale


def scale_of(
    widths: Sequence[int], square: Float[AnyArray, " value"], spread: Float[AnyArray, " value"]
) -> Float[AnyArray, " value"]:
    """The factor on each value before training: it makes E‖x‖² the width of the value.

    Where the mean is more than three times as long as the spread around it, the factor makes E‖x - E x‖² the width. The
    thresholds and penalties of configs are for values of this size, and the mean is no part of what they act on.

    Args:
      widths: the width of each value.
      square: E‖x‖² of each value, a NumPy or JAX array.
      spread: E‖x - E x‖² of each value, an array of the same kind.
    """
    xp = jnp if isinstance(square, jax.Array) else np
    is_constant = spread <= 1e-10 * square
    size = xp.where((spread < LONG_MEAN * square) & ~is_constant, spread, square)
    factor: Any = xp.sqrt(xp.asarray(widths, square.dtype) / size)
    return factor


def long_means(
    mean: Float[Array, " d"], variance: Float[Array, " value"], widths: tuple[int, ...]
) -> Float[Array, " d"]:
    """The means that are subtracted from rows before training: those of values that were scaled by their spread.

    A gradient for an encoder is a sum over rows of x. A long mean would be most of it, and training would be slow.

    Args:
      mean: the mean of the scaled rows.
      variance: E‖x - mean‖² of each scaled value.
      widths: the width of each value.

    Returns:
      The mean of each such value, and 0 in the columns of all other values. Their E‖x‖² is their width.
    """
    ends = np.cumsum(widths)[:-1].tolist()
    square = jnp.stack([jnp.sum(part * part) for part in jnp.split(mean, ends)]) + variance
    is_long = square > 2 * jnp.asarray(widths, square.dtype)
    return jnp.where(jnp.repeat(is_long, jnp.asarray(widths), total_repeat_length=sum(widths)), mean, 0.0)


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
      The stream after the batch, and scaled rows `[seq * pos, d]` in float32, less `stream.centre`.
    """
    key, subkey = jax.random.split(stream.key)
    fresh = harvest(model, addresses, tokens)
    enter = keep.reshape(-1) & _within(fresh, stream.widths, stream.longest)
    buffer, rows = draw(stream.buffer, subkey, fresh, enter)
    x = rows.astype(jnp.float32) * stream.columns(stream.scale)[None, :] - stream.centre[None, :]
    return dataclasses.replace(stream, buffer=buffer, key=key, cursor=stream.cursor + 1), x
