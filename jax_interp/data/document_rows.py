"""Rows of documents: every row belongs to one document and begins with BOS.

Windows of a packed text (`batches.WindowSampler`) begin anywhere and may hold the end of one document and the beginning
of the next. Here no row crosses a document. A document that is longer than a row is cut into several rows, and a row
that is not full is padded at its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from jax_interp.core.errors import UserError
from jax_interp.data.shuffling import shuffled
from jax_interp.training.row_batches import RowBatches


@dataclass(frozen=True)
class DocumentRows:
    """The rows of a text, in order or as batches that are a pure function of the seed and the step.

    Attributes:
      tokens: concatenated documents.
      starts: the positions in `tokens` at which documents start.
      length: tokens in a row.
      bos_id: the first token of each row. It is not repeated where the document has it already. None: no BOS.
      pad_id: the token id that fills up a row.
    """

    tokens: Int[Array, " n"]
    starts: Int[Array, " documents"]
    length: int
    bos_id: int | None
    pad_id: int

    def __post_init__(self) -> None:
        if self.length < 2:
            raise UserError(f"rows of {self.length} tokens leave nothing to predict: at least 2")
        if not len(self):
            raise UserError("the text has no document")

    @cached_property
    def _rows(self) -> tuple[Array, Array]:
        """The start of each row in `tokens`, and the number of its tokens, without BOS."""
        start = np.asarray(self.starts, np.int64)
        end = np.append(start[1:], self.tokens.size)
        if self.bos_id is not None:
            start = start + ((start < end) & (self.tokens[np.minimum(start, self.tokens.size - 1)] == self.bos_id))
        room = self.length - (self.bos_id is not None)
        rows = -(-(end - start) // room)
        place = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
        first = np.repeat(start, rows) + place * room
        return first, np.minimum(np.repeat(end, rows) - first, room)

    def __len__(self) -> int:
        return len(self._rows[0])

    def at(self, rows: Int[Array, " rows"]) -> tuple[Int[Array, "rows length"], Bool[Array, "rows length"]]:
        """Some rows, and where they hold tokens of the text (False at padding)."""
        first, count = (x[rows] for x in self._rows)
        place = np.arange(self.length - (self.bos_id is not None))
        real = place < count[:, None]
        tokens = self.tokens[np.minimum(first[:, None] + place, self.tokens.size - 1)]
        tokens = np.where(real, tokens, self.pad_id).astype(np.int32)
        if self.bos_id is not None:
            tokens = np.pad(tokens, ((0, 0), (1, 0)), constant_values=self.bos_id)
            real = np.pad(real, ((0, 0), (1, 0)), constant_values=True)
        return tokens, real

    def batch_at(
        self, step: int, batch: int, seed: int
    ) -> tuple[Int[Array, "batch length"], Bool[Array, "batch length"]]:
        """Batch `step`: each epoch has every row once, in an order that depends on the seed and the epoch."""
        return self.batches(batch, seed)(step)

    def batches(self, batch: int, seed: int) -> RowBatches[tuple[Int[Array, "row length"], Bool[Array, "row length"]]]:
        """The batches `batch_at(step, batch, seed)`, whose rows can be made separately."""
        return RowBatches(batch, lambda step, start, stop: self._at_places(step * batch, start, stop, seed))

    def _at_places(self, before: int, start: int, stop: int, seed: int) -> tuple[Array, Array]:
        index = before + np.arange(start, stop, dtype=np.int64)
        epoch = (index // len(self)).astype(np.uint64)
        return self.at(shuffled(index % len(self), len(self), seed=seed, epoch=epoch))
