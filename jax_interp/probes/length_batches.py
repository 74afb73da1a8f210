"""Batches of examples of similar length, so that short texts are not padded to the longest one."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from jax_interp.core.errors import UserError

PROGRAMS = 4
"""The largest number of lengths, and so of compiled programs."""
WORTH = 0.9
"""One more length must save a tenth of the tokens: a program takes seconds to compile."""
LENGTHS = 64
"""The number of lengths that are tried."""


@dataclasses.dataclass(frozen=True, eq=False)
class LengthBatch:
    """Some examples, and how long their batch is.

    Args:
      rows: the numbers of the examples.
      filled: `rows`, and then copies of the last one, so that all batches of one length have one shape.
      length: the number of positions, padding included.
    """

    rows: Int[np.ndarray, " row"]
    filled: Int[np.ndarray, " filled"]
    length: int


def length_batches(
    mask: Bool[np.ndarray, "example pos"], batch: int, *, multiple: int = 1, exact: bool = False
) -> list[LengthBatch]:
    """Batches of few lengths, chosen so that the least tokens are computed.

    Examples that fit into one batch stay in one batch, in their order.

    Args:
      mask: True at real tokens.
      batch: the number of examples in a batch.
      multiple: the number of rows of a batch, copies included, is a multiple of it.
      exact: give each length its own batches, so that nothing is padded on the right.

    Raises:
      UserError: `batch` is not positive, or not a multiple of `multiple`.
    """
    if batch < 1 or batch % multiple:
        more = f" and a multiple of {multiple}, the number of devices that share a batch" if multiple > 1 else ""
        raise UserError(f"batch={batch} must be at least 1{more}")
    n, size = mask.shape
    lengths = size - np.argmax(mask[:, ::-1], axis=1)
    if exact:
        ends = np.unique(lengths)
    elif n <= batch:
        ends = lengths.max(keepdims=True)
    else:
        ends = _chosen_lengths(lengths, batch)
    found: list[LengthBatch] = []
    of_row = np.searchsorted(ends, lengths)
    for number, end in enumerate(ends.tolist()):
        members = np.flatnonzero(of_row == number)
        rows_of_batch = min(batch, -(-len(members) // multiple) * multiple)
        for start in range(0, len(members), batch):
            rows = members[start : start + batch]
            found.append(LengthBatch(rows, np.pad(rows, (0, rows_of_batch - len(rows)), mode="edge"), end))
    return found


def _chosen_lengths(lengths: np.ndarray, batch: int) -> np.ndarray:
    """The lengths of batches, ascending. Examples go to the shortest one that they fit into."""
    longest = int(lengths.max())
    step = -(-longest // LENGTHS)
    ends = np.minimum(np.unique(-(-lengths // step)) * step, longest)
    until = np.searchsorted(np.sort(lengths), ends, side="right")  # the number of examples up to each length
    before = np.concatenate([[0], until])
    tokens = lambda i, j: -(-(before[j + 1] - before[i]) // batch) * batch * ends[j]
    best = [(float(tokens(0, j)), [j]) for j in range(len(ends))]
    chosen = best[-1]
    for _ in range(PROGRAMS - 1):
        best = [
            min(
                [(best[i - 1][0] + float(tokens(i, j)), [*best[i - 1][1], j]) for i in range(1, j + 1)] + [best[j]],
                key=lambda found: found[0],
            )
            for j in range(len(ends))
        ]
        if best[-1][0] > WORTH * chosen[0]:
            break
        chosen = best[-1]
    return ends[np.asarray(chosen[1])]
