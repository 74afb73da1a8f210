"""`from_tokens`: labelled examples from token ids, with labels that may be functions of the tokens.

data = from_tokens(tokens, mask, label=lambda tokens: tokens == quote, special_ids=[tokenizer.bos_id])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from jax_interp.core.errors import UserError
from jax_interp.probes.class_numbers import joined_groups, numbered
from jax_interp.probes.labelled_tokens import LabelledTokens


def from_tokens(
    tokens: Int[np.ndarray, "example pos"],
    mask: Bool[np.ndarray, "example pos"] | None = None,
    *,
    label: Any,
    classes: Sequence[str] | None = None,
    special_ids: Sequence[int] = (),
    name: str = "examples",
    groups: Sequence[Any] | None = None,
) -> LabelledTokens:
    """Make examples from tokens. Rows with equal tokens are always in one group.

    Args:
      tokens: the tokens.
      mask: True at real tokens. None: all are real.
      label: the class (or real target) of each example; or the class of each token `[example pos]`, -1 where it has
        none; or a function of `tokens` that returns one of these. With classes of tokens, the class of an example is
        the largest class of its tokens: whether one of them is positive, if there are two.
      classes: the names of the classes. The labels are then their numbers. None: the labels name the classes.
      special_ids: tokens that are not read, such as BOS.
      name: the name of the set in tables.
      groups: as in `tokenized`.

    Raises:
      UserError: shapes differ, a label is missing, or an example has no token with a class.

    Example:
        data = from_tokens(tokens, label=lambda tokens: tokens % 2 == 0, special_ids=[tokenizer.bos_id])
    """
    tokens = np.asarray(tokens)
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask).astype(bool)
    if tokens.ndim != 2 or mask.shape != tokens.shape:
        raise UserError(f"{name}: tokens {tokens.shape} and mask {mask.shape} must both be [example, position]")
    readable = mask & ~np.isin(tokens, list(special_ids))
    found = np.asarray(label(tokens) if callable(label) else label)
    if found.shape not in (tokens.shape, tokens.shape[:1]):
        raise UserError(f"{name}: labels of shape {found.shape} fit neither the examples nor the tokens {tokens.shape}")
    of_token = None
    if found.ndim == 2:
        of_token, names = _classes_of_tokens(name, found, readable, classes)
        found = of_token.max(axis=1)
        if (found < 0).any():
            raise UserError(f"{name}: no token of example {int(np.argmax(found < 0))} has a class")
    elif classes is None:
        found, names = numbered(name, list(found))
    else:
        names = tuple(classes)
    rows = map(np.ndarray.tobytes, np.where(mask, tokens, -1))
    by_name = None if groups is None else [None if group is None else str(group) for group in groups]
    if by_name is not None and len(by_name) != len(tokens):
        raise UserError(f"{name}: {len(tokens)} examples need as many groups, not {len(by_name)}")
    of_group = joined_groups(len(tokens), by_name, rows)
    ids = tokens.astype(np.int32)
    return LabelledTokens(name, ids, mask, readable, found, names, of_group, token_labels=of_token)


def _classes_of_tokens(
    name: str, found: np.ndarray, readable: np.ndarray, classes: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(the class of each token, -1 where it has none; the names of the classes)."""
    if np.issubdtype(found.dtype, np.floating):
        raise UserError(f"{name}: the labels of tokens are real numbers: give the number of a class, or -1 for none")
    has_class = readable & (found >= 0 if found.dtype != bool else True)
    if classes is not None:
        return np.where(has_class, found, -1).astype(np.int32), tuple(classes)
    if not has_class.any():
        raise UserError(f"{name}: no token has a class")
    numbers, names = numbered(name, list(found[has_class]))
    of_token = np.full(found.shape, -1, np.int32)
    of_token[has_class] = numbers
    return of_token, names
