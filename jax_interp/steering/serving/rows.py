"""The rows of a running batch: requests enter free rows and leave, and no program compiles again.

All rows share one axis of slots. Every step writes the next slot of every row, so the texts of all rows end at the same
slot, `cache.length`. They are rows of different lengths with padding before them, which the model handles in any case:
positions count the real tokens of a row, and padding is masked. A new request is run alone, padded to one of a few
lengths, and its keys and values are written so that its prompt ends at the current slot. When the slots are used up,
all rows are moved back by what the longest text leaves free.

Keys and values come from the edited run: a cache that was made without the edits would be wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.cache import Cache, empty_cache
from jax_interp.models.generation.row_sampling import SampleRows
from jax_interp.models.generation.unstacking import unstacked_cache
from jax_interp.steering.serving.request import Request
from jax_interp.steering.serving.row_edits import RowEdits, ServedValue, table_edits, tables_of
from jax_interp.surgery import edit
from jax_interp.surgery.contract import Model

NO_TOKEN = -2
"""In place of a token: the row was free in this step."""
IMPOSSIBLE = -1
"""In place of a token: the logits are NaN, or all minus infinity."""


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class RowSettings:
    """The settings of each row: what a request says besides its prompt."""

    tables: tuple[RowEdits, ...]
    """One table for each served value, `[layer, slot, row, ...]`."""
    sampling: SampleRows
    limit: Int[Array, "row"]
    """The most new tokens."""
    stop: Int[Array, "row stops"]
    """The token ids that end the text. -1 fills the rest."""

    def next_token(self, count: Int[Array, "row"], logits: Float[Array, "row 1 vocab"]) -> Int[Array, "row"]:
        """The next token of each row, which has `count` new tokens."""
        logits = upcast(logits[:, 0])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), count)
        possible = jnp.max(logits, axis=-1) > -jnp.inf  # False for NaN too
        return jnp.where(possible, self.sampling.chosen(keys, logits), IMPOSSIBLE)

    def ends(self, count: Int[Array, "row"], token: Int[Array, "row"]) -> Bool[Array, "row"]:
        """Whether a row ends with this token, after which it has `count` new tokens."""
        stops = jnp.any(token[:, None] == self.stop, axis=1)
        return stops | (token == IMPOSSIBLE) | (count >= self.limit)

    def with_row(self, row: Int[Array, ""], one: RowSettings) -> RowSettings:
        """These settings, with the settings of one request in a row."""
        put = lambda axis: lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, row, axis)
        tables = jax.tree.map(put(2), self.tables, one.tables)
        rest = (self.sampling, self.limit, self.stop)
        return RowSettings(tables, *jax.tree.map(put(0), rest, (one.sampling, one.limit, one.stop)))


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The state of a running batch."""

    cache: Cache
    token: Int[Array, "row"]
    """The last token of each row. The model has not processed it yet."""
    count: Int[Array, "row"]
    """The number of new tokens of each row."""
    live: Bool[Array, "row"]
    settings: RowSettings


def settings_of(request: Request, served: Sequence[ServedValue], n_edits: int, n_stops: int) -> RowSettings:
    """The settings of one request as a batch of one row, in NumPy arrays."""
    tables = tuple(tables_of(request, served, n_edits).values())
    sampling = SampleRows(
        *(np.asarray([x], dtype) for x, dtype in (  # type: ignore[arg-type]
            (request.temperature, np.float32), (request.top_k, np.int32),
            (request.top_p, np.float32), (request.seed, np.uint32),
        ))
    )  # fmt: skip
    stop = np.full((1, n_stops), NO_TOKEN, np.int32)
    stop[0, : len(request.stop)] = list(request.stop)
    return RowSettings(tables, sampling, np.asarray([request.n_new], np.int32), stop)  # type: ignore[arg-type]


@partial(jax.jit, static_argnames=("rows", "slots"))
def empty_rows(model: Any, one: RowSettings, rows: int, slots: int) -> Rows:
    """A batch of free rows. `one` are the settings of any request: they give the shapes."""
    cache = empty_cache(model.blocks, jnp.zeros((rows, 1), jnp.int32), slots, jnp.ones((rows, 1), jnp.int32))
    every = lambda axis: lambda leaf: jnp.zeros_like(jnp.repeat(leaf, rows, axis))
    settings = RowSettings(
        jax.tree.map(every(2), one.tables), *jax.tree.map(every(0), (one.sampling, one.limit, one.stop))
    )
    whole = jnp.zeros(rows, jnp.int32)
    return Rows(cache, whole, whole + 0, jnp.zeros(rows, bool), settings)


@partial(jax.jit, static_argnames="served", donate_argnames="state")
def admit(
    model: Model,
    views: Model | None,
    served: tuple[ServedValue, ...],
    state: Rows,
    row: Int[Array, ""],
    tokens: Int[Array, "1 pos"],
    mask: Bool[Array, "1 pos"],
    one: RowSettings,
) -> tuple[Rows, Int[Array, ""]]:
    """Run a prompt with its edits, and put the request into a free row. Also returns its first new token.

    Args:
      model: the model that runs the prompt.
      views: the model that runs the steps, if it has another layout (`stepping_model`).
      served: the values that requests can edit.
      state: the batch. At least as many slots are filled as the prompt has tokens.
      row: the free row.
      tokens: the prompt, padded on the left.
      mask: True for its tokens.
      one: the settings of the request.
    """
    edited = edit(model, *table_edits(served, one.tables))
    logits, cache = edited(tokens, mask=mask, cache=tokens.shape[1], last_only=True)
    cache = cache if views is None else unstacked_cache(cache, model)
    token = one.next_token(jnp.zeros(1, jnp.int32), logits)
    slots, length = state.cache.slots, state.cache.length

    def written(all_rows: Array, new: Array, batch: int) -> Array:
        """The row gets the prompt, which ends at the current slot."""
        rest = [(0, slots - tokens.shape[1] if axis == batch + 1 else 0) for axis in range(new.ndim)]
        line = jnp.roll(jnp.pad(new, rest), length - tokens.shape[1], axis=batch + 1)
        return jax.lax.dynamic_update_slice_in_dim(all_rows, line, row, axis=batch)

    layers = jax.tree.map(lambda old, new: written(old, new, old.ndim - 4), state.cache.layers, cache.layers)
    put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, row, axis=0)
    cache = Cache(
        layers,
        written(state.cache.valid, mask, 0),
        length,
        put(state.cache.prompt_length, cache.prompt_length),
    )
    count = jnp.ones(1, jnp.int32)
    live = put(state.live, ~one.ends(count, token))
    settings = state.settings.with_row(row, one)
    return Rows(cache, put(state.token, token), put(state.count, count), live, settings), token[0]


@partial(jax.jit, static_argnames=("served", "steps"), donate_argnames="state")
def advance(
    model: Model, served: tuple[ServedValue, ...], state: Rows, steps: int, hurry: Bool[Array, ""]
) -> tuple[Rows, Int[Array, "step row"], Bool[Array, "row"], Int[Array, ""]]:
    """Take up to `steps` steps.

    It takes fewer if no row is live any more or the slots are used up, or, in a hurry, if a row has ended.

    Returns:
      The batch, the new tokens (`NO_TOKEN` where there is none), which rows are still live, and the number of steps.
    """
    edited = edit(model, *table_edits(served, state.settings.tables))
    before, settings = state.live, state.settings

    def unfinished(carry: tuple) -> Array:
        i, state, _ = carry
        waits = hurry & jnp.any(before & ~state.live)
        return (i < steps) & jnp.any(state.live) & (state.cache.length < state.cache.slots) & ~waits

    def step(carry: tuple) -> tuple:
        i, state, out = carry
        logits, cache = edited(state.token[:, None], mask=state.live[:, None], cache=state.cache, last_only=True)
        token = settings.next_token(state.count, logits)
        count = state.count + state.live.astype(jnp.int32)
        out = jax.lax.dynamic_update_index_in_dim(out, jnp.where(state.live, token, NO_TOKEN), i, 0)
        live = state.live & ~settings.ends(count, token)
        after = dataclasses.replace(state, cache=cache, token=jnp.maximum(token, 0), count=count, live=live)
        return i + 1, after, out

    out = jnp.full((steps, state.token.shape[0]), NO_TOKEN, jnp.int32)
    n, state, out = jax.lax.while_loop(unfinished, step, (jnp.int32(0), state, out))
    return state, out, state.live, n


@partial(jax.jit, donate_argnames="state")
def release(state: Rows, keep: Bool[Array, "row"]) -> Rows:
    """Free all rows except those in `keep`."""
    return dataclasses.replace(state, live=state.live & keep)


@partial(jax.jit, donate_argnames="state")
def move(state: Rows, length: Int[Array, ""]) -> Rows:
    """Move all texts along the slots, so that they end at slot `length`."""
    cache, by = state.cache, length - state.cache.length
    layers = jax.tree.map(lambda leaf: jnp.roll(leaf, by, axis=leaf.ndim - 3), cache.layers)
    filled = jnp.arange(cache.slots, dtype=jnp.int32)[None] < length
    valid = jnp.roll(cache.valid, by, axis=1) & filled
    return dataclasses.replace(state, cache=Cache(layers, valid, length, cache.prompt_length))
