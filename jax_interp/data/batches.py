"""Batches of tokens as a pure function of (seed, step): windows of a flat token array, and changes to them.

The windows of a batch depend only on the seed and the step. A resume therefore needs only the number of the step, and
the batch of any step can be computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from jax_interp.core.errors import UserError
from jax_interp.data.shuffling import mix64, seed_bits, shuffled

_OFFSETS = np.uint64(0x0FF5E7)  # separate hash domains: offsets and repeats must not depend on the window order
_REPEATS = np.uint64(0x9E3779B9)
_DOCUMENTS = np.uint64(0xD0C5_0000_0000)
_RANDOM_ROWS = 0x72616E64  # keeps these draws apart from every other use of a seed


@dataclass(frozen=True)
class WindowSampler:
    """Batches of windows of a token array: `batch_at(step)` is a pure function of the seed and the step.

    Each epoch visits every window once, in an order that depends on the epoch. The offset of the first window also
    depends on the epoch, so documents are not always cut at the same places. A batch may extend into the next epoch.

    Example:
        sampler = WindowSampler(store.tokens, batch=8, length=257, seed=0)
        tokens = sampler.batch_at(step)  # [8, 257]
    """

    tokens: Int[Array, " n"]
    batch: int
    """Windows in a batch."""
    length: int
    """Tokens in a window."""
    seed: int = 0
    stride: int | None = None
    """Tokens between the starts of neighbouring windows. Default: `length - 1`. The last token of a window is then also
    the first token of the next window, and each token is predicted once in an epoch."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.length < 2 or self.step_size < 1:
            raise UserError(
                f"batch={self.batch}, length={self.length} and stride={self.stride} must be at least 1, 2 and 1"
            )
        if self.windows < 1:
            raise UserError(f"{self.tokens.size} tokens are fewer than one window of {self.length} at any offset")

    @property
    def step_size(self) -> int:
        """Tokens between the starts of consecutive windows."""
        return self.length - 1 if self.stride is None else self.stride

    @property
    def windows(self) -> int:
        """The number of windows in an epoch: the number that fits at every offset."""
        return (int(self.tokens.size) - self.length - (self.step_size - 1)) // self.step_size + 1

    def starts_at(self, step: int, start: int = 0, stop: int | None = None) -> Int[Array, " row"]:
        """The starts of the windows `start` to `stop - 1` of batch `step`. The cost depends only on their number."""
        rows = np.arange(start, self.batch if stop is None else stop, dtype=np.int64)
        index = int(step) * self.batch + rows
        epoch = (index // self.windows).astype(np.uint64)
        window = shuffled(index % self.windows, self.windows, seed=self.seed, epoch=epoch)
        offset = mix64(mix64(seed_bits(self.seed)) ^ mix64(epoch ^ _OFFSETS)) % np.uint64(self.step_size)
        return window * self.step_size + offset.astype(np.int64)

    def batch_at(self, step: int) -> Int[Array, "batch length"]:
        """The tokens of batch `step`, int32."""
        return self.rows(step, 0, self.batch)

    def rows(self, step: int, start: int, stop: int) -> Int[Array, "row length"]:
        """The rows `start` to `stop - 1` of batch `step`, int32. Other windows are not read."""
        starts = self.starts_at(step, start, stop)
        return self.tokens[starts[:, None] + np.arange(self.length)].astype(np.int32)


def repeat_stretches(
    tokens: Int[Array, "batch length"], step: int, *, fraction: float, seed: int = 0, first: int = 0
) -> Int[Array, "batch length"]:
    """Repeat a span of tokens in some rows of a batch, so that the model learns early to copy from the context.

    In a chosen row, the m tokens after some position repeat the m tokens before it: `row[i] = row[i - m]`. m is random,
    between an eighth and a half of the row, so the distance to the copied token varies.

    Args:
      tokens: a batch.
      step: the step of the batch. The result is a pure function of (seed, step).
      fraction: the probability that a row is chosen.
      seed: the seed.
      first: the number of the first of these rows in the batch, if they are not the whole batch.

    Returns:
      The changed batch.
    """
    batch, length = tokens.shape
    row = np.arange(first, first + batch, dtype=np.uint64)
    key = mix64(mix64(seed_bits(seed)) ^ np.uint64(step))
    draw = [mix64(key ^ (row + _REPEATS * np.uint64(k))) for k in (1, 2, 3)]
    chosen = (draw[0] >> np.uint64(11)).astype(np.float64) * 2.0**-53 < fraction
    low, high = max(1, length // 8), max(1, length // 2)
    period = low + (draw[1] % np.uint64(high - low + 1)).astype(np.int64)
    start = (draw[2] % (length - 2 * period + 1).astype(np.uint64)).astype(np.int64)
    place = np.arange(length)
    second = (place >= (start + period)[:, None]) & (place < (start + 2 * period)[:, None])
    source = np.where(second & chosen[:, None], place - period[:, None], place)
    return np.take_along_axis(tokens, source, axis=1)


def random_repeats(
    tokens: Int[Array, "batch length"],
    step: int,
    *,
    fraction: float,
    vocab_size: int,
    bos_id: int,
    seed: int = 0,
    first: int = 0,
    of: int | None = None,
) -> Int[Array, "batch length"]:
    """Replace some rows of a batch by repeated random tokens. Only copying from the context can predict them.

    Such a row is BOS, then m uniformly random tokens (not BOS), which are repeated to the end of the row. m is random,
    between 8 and half of the row.

    Args:
      tokens: a batch.
      step: the step of the batch. The result is a pure function of (seed, step).
      fraction: the probability that a row is replaced.
      vocab_size: the size of the vocabulary.
      bos_id: the id of BOS.
      seed: the seed.
      first: the number of the first of these rows in the batch, if they are not the whole batch.
      of: the number of rows in the whole batch. None: these are all rows.

    Returns:
      The changed batch.
    """
    if fraction <= 0:
        return tokens
    length, batch = tokens.shape[1], len(tokens) if of is None else of
    rng = np.random.default_rng([int(seed_bits(seed)), step, _RANDOM_ROWS])
    chosen = rng.random(batch) < fraction
    period = rng.integers(8, max(9, length // 2), size=batch)
    drawn = rng.integers(0, vocab_size - 1, size=(batch, length))
    drawn += drawn >= bos_id
    rows = np.take_along_axis(drawn, np.arange(length) % period[:, None], axis=1)
    rows[:, 0] = bos_id
    here = slice(first, first + len(tokens))  # all rows are drawn, so that a row does not depend on where it is made
    return np.where(chosen[here, None], rows[here], tokens).astype(tokens.dtype)


def begin_as_documents(
    tokens: Int[Array, "batch length"], step: int, *, fraction: float, bos_id: int, seed: int = 0, first: int = 0
) -> Int[Array, "batch length"]:
    """Replace the first token of some rows by BOS. Every prompt begins with BOS, but few training windows do.

    Args:
      tokens: a batch.
      step: the step of the batch. The result is a pure function of (seed, step).
      fraction: the probability that a row is chosen.
      bos_id: the id of BOS.
      seed: the seed.
      first: the number of the first of these rows in the batch, if they are not the whole batch.

    Returns:
      The changed batch.
    """
    row = np.arange(first, first + len(tokens), dtype=np.uint64)
    draw = mix64(mix64(mix64(seed_bits(seed)) ^ np.uint64(step)) ^ (row + _DOCUMENTS))
    out = tokens.copy()
    out[(draw >> np.uint64(11)).astype(np.float64) * 2.0**-53 < fraction, 0] = bos_id
    return out


def evaluation_windows(
    tokens: Int[Array, " n"], length: int, *, pad_id: int, overlap: int = 1
) -> Int[Array, "windows length"]:
    """Cut all tokens into windows, in order, for evaluation.

    Args:
      tokens: a flat token array.
      length: tokens in a window.
      pad_id: the token id that fills up the last window.
      overlap: the number of tokens that neighbouring windows share. With 1, every token except the very first is
        predicted once.

    Returns:
      int32 `[windows, length]`.
    """
    stride = length - overlap
    count = max(1, math.ceil((tokens.size - overlap) / stride))
    padded = np.full(overlap + count * stride, pad_id, np.int32)
    padded[: tokens.size] = tokens
    return padded[np.arange(count)[:, None] * stride + np.arange(length)]


def special_mask(tokens: Int[Array, "*shape"], special_ids: Iterable[int]) -> Bool[Array, "*shape"]:
    """True where a token is not one of `special_ids` (BOS, padding)."""
    return ~np.isin(tokens, sorted(special_ids))
