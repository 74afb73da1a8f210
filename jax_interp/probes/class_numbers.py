"""Numbers for classes and for groups: what labels and leaking columns become in `LabelledTokens`."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jax_interp.core.errors import UserError


def numbered(
    name: str, labels: Sequence[Any]
) -> tuple[Int[np.ndarray, " example"] | Float[np.ndarray, " example"], tuple[str, ...]]:
    """The number of each label's class, and the names of the classes.

    Args:
      name: the name of the set, for messages.
      labels: strings, integers or booleans, which name classes; or floats, the targets of a regression. Strings are
        sorted as strings and integers as numbers, so False comes before True and 2 before 10.

    Returns:
      (int32 numbers, names), or (float32 targets, ()) if the labels are floats.

    Raises:
      UserError: a label is missing, is not finite, or is of another type than the first one.
    """
    plain: list[Any] = [label.item() if isinstance(label, np.generic) else label for label in labels]
    for row, label in enumerate(plain):
        if is_missing(label):
            raise UserError(f"{name}: example {row} has no label: leave it out, or give it one")
        if type(label) is not type(plain[0]):
            raise UserError(
                f"{name}: the label of example {row} is {label!r}, and that of example 0 is {plain[0]!r}: labels must "
                "be of one type"
            )
    if plain and isinstance(plain[0], float):
        targets = np.asarray(plain, np.float32)
        if not np.isfinite(targets).all():
            raise UserError(f"{name}: the target of example {int(np.argmin(np.isfinite(targets)))} is not finite")
        return targets, ()
    if plain and not isinstance(plain[0], (bool, int, str)):
        raise UserError(f"{name}: a label is a {type(plain[0]).__name__}: use strings, integers, booleans or floats")
    classes = sorted(set(plain))
    numbers = {label: i for i, label in enumerate(classes)}
    return np.asarray([numbers[label] for label in plain], np.int32), tuple(map(str, classes))


def is_missing(label: Any) -> bool:
    """Whether a label is None, NaN, or an empty string."""
    return label is None or (isinstance(label, (float, np.floating)) and np.isnan(label)) or label == ""


def joined_groups(
    n: int, *reasons: Iterable[Hashable] | None, pairs: Int[np.ndarray, "pair 2"] | None = None
) -> Int[np.ndarray, " example"] | None:
    """Groups of examples that must stay on one side of a split.

    Args:
      n: the number of examples.
      reasons: columns with one entry for each example. Examples with an equal entry in one of them are in one group,
        and so are examples that are connected through others. None, and None as an entry: no reason.
      pairs: the numbers of two examples that are in one group.

    Returns:
      The number of each example's group, in the order of their first examples. None if each example is alone.
    """
    from scipy.sparse import coo_array  # JAX requires scipy, so it is installed
    from scipy.sparse.csgraph import connected_components

    links = [] if pairs is None else [tuple(pair) for pair in np.asarray(pairs).tolist()]
    for reason in reasons:
        first: dict[Hashable, int] = {}
        for i, key in enumerate(() if reason is None else reason):
            if key is not None:
                links.append((i, first.setdefault(key, i)))
    a, b = np.asarray(links, np.int64).reshape(-1, 2).T
    count, group = connected_components(coo_array((np.ones(a.size), (a, b)), shape=(n, n)), directed=False)
    if count == n and all(reason is None for reason in reasons[:1]):
        return None
    return group.astype(np.int32)
