"""Labelled rows of an activation store as vectors for probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jax_interp.core.errors import UserError
from jax_interp.data.activation_store import ActivationStore
from jax_interp.probes.class_numbers import joined_groups, numbered
from jax_interp.probes.gather import Vectors
from jax_interp.probes.host_memory import check_fits
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.token_rules import ALL


def gather_rows(
    store: ActivationStore,
    labels: Sequence[Any],
    *,
    rows: Int[np.ndarray, " example"] | None = None,
    groups: Sequence[Any] | None = None,
    name: str = "stored rows",
) -> Vectors:
    """Read rows of a store, each of which is one example.

    Args:
      store: an open store. Its addresses are the sites.
      labels: the label of each row that is read, as in `tokenized`.
      rows: the numbers of the rows to read. None: all.
      groups: what leaks between rows, such as the text that a token is from. Rows of one group stay on one side of each
        split. None: each row is its own group, which is wrong if several rows are tokens of one text.
      name: the name of the set in tables.

    Raises:
      UserError: there is not one label (and group) for each row, a row is outside the store, a value is not finite, or
        the rows do not fit into memory.

    Example:
        vectors = gather_rows(open_activation_store("acts"), labels, groups=text_of_row)
    """
    at = np.arange(store.rows) if rows is None else np.asarray(rows)
    if (
        at.ndim != 1
        or not np.issubdtype(at.dtype, np.integer)
        or (len(at) and not 0 <= at.min() <= at.max() < store.rows)
    ):
        raise UserError(f"{name}: rows must be numbers from 0 to {store.rows - 1}, the last row of {store.directory}")
    if len(labels) != len(at) or (groups is not None and len(groups) != len(at)) or not len(at):
        raise UserError(f"{name}: {len(at)} rows need as many labels and groups, and got {len(labels)} labels")
    size = 2 * 4 * len(at) * sum(store.widths)  # the rows, and their parts
    check_fits(size, f"{len(at)} rows of {store.directory}", "give fewer rows=")
    numbers, classes = numbered(name, labels)
    x = store.take(at)
    if not (finite := np.isfinite(x).all(axis=1)).all():
        raise UserError(f"{name}: row {int(at[np.argmin(finite)])} of {store.directory} is not finite")
    of_group = joined_groups(len(at), None if groups is None else list(map(str, groups)), at.tolist())
    real = np.ones((len(at), 1), bool)
    data = LabelledTokens(name, np.zeros((len(at), 1), np.int32), real, real, numbers, classes, of_group)
    parts = np.split(x, np.cumsum(store.widths)[:-1], axis=1)
    return Vectors(data, (ALL,), {site: part[None] for site, part in zip(store.addresses, parts, strict=True)})
