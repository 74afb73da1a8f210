"""Slots: tokens that an attack may change, put into labelled examples as a named span."""

from __future__ import annotations

import dataclasses

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.probes.labelled_tokens import LabelledTokens

SLOTS = "attack"
"""The name of the span of the slots."""


def with_slots(data: LabelledTokens, after: str, count: int, token: int, *, name: str = SLOTS) -> LabelledTokens:
    """Put tokens right after a span of each example, such as a suffix after the user's turn.

    The other spans keep their tokens; the new tokens belong to the new span only. Texts are left out of the result,
    because they do not have these tokens.

    Args:
      data: the examples.
      after: the span that the slots follow.
      count: the number of slots.
      token: the token that they hold before an attack.
      name: the name of the new span.

    Raises:
      UserError: there is no such span, an example has no token in it, `name` is taken, or `count` is not positive.
    """
    if after not in data.spans:
        raise UserError(f"{data.name} has no span {after!r}; it has {', '.join(data.spans) or 'none'}")
    if name in data.spans:
        raise UserError(f"{data.name} has a span {name!r} already")
    if count < 1:
        raise UserError(f"count={count} must be at least 1")
    span = data.spans[after]
    if not (some := span.any(axis=1)).all():
        raise UserError(f"{data.name}: example {int(np.argmin(some))} has no token in the span {after!r}")
    length = span.shape[1]
    last = length - 1 - np.argmax(span[:, ::-1], axis=1)
    new = np.arange(length + count)[None, :]
    slot = (new > last[:, None]) & (new <= last[:, None] + count)
    old = np.where(new > last[:, None], new - count, new).clip(0)  # where each token comes from

    def spread(array: np.ndarray, fill: int | bool) -> np.ndarray:
        return np.where(slot, np.asarray(fill, array.dtype), np.take_along_axis(array, old, axis=1))

    labels = data.token_labels
    return dataclasses.replace(
        data,
        tokens=spread(data.tokens, token),
        mask=spread(data.mask, True),
        readable=spread(data.readable, True),
        spans={**{key: spread(of, False) for key, of in data.spans.items()}, name: slot},
        token_labels=None if labels is None else spread(labels, -1),
        texts=(),
    )
