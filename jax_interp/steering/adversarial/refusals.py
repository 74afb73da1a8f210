"""Harmful requests with two responses each: the harmful one, and a refusal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.monitors.defences import REQUEST, RESPONSE


def with_refusal(data: LabelledTokens, refusal: Sequence[int]) -> tuple[LabelledTokens, LabelledTokens]:
    """The examples as they are, and with a refusal in place of the response. Both have the same width.

    Up to the first token of the response, which predicts the first word, both are the same. So a perturbation of the
    request is the same perturbation in both.

    Args:
      data: requests with responses, padded on the right, with the spans `request` and `response`.
      refusal: the token ids of the refusal.

    Raises:
      UserError: the refusal is empty, padding is on the left, or a request reaches past the start of the response.
    """
    words = np.asarray(refusal, np.int32)
    if words.ndim != 1 or not len(words):
        raise UserError("refusal= needs the token ids of a refusal, at least one")
    if missing := [name for name in (REQUEST, RESPONSE) if name not in data.spans]:
        raise UserError(f"{data.name} has no span {missing[0]!r}; it has {', '.join(data.spans) or 'none'}")
    if len(data) and not np.asarray(data.mask)[:, 0].all():
        raise UserError(f"{data.name} is padded on the left: give examples that are padded on the right")
    request, response = np.asarray(data.spans[REQUEST]), np.asarray(data.spans[RESPONSE])
    first = np.argmax(response, axis=1)[:, None]
    pos = np.arange(data.tokens.shape[1])[None]
    if (late := (request & (pos > first)).any(axis=1)).any():
        raise UserError(f"{data.name}: the request of example {int(np.argmax(late))} goes on after its response begins")
    width = max(data.tokens.shape[1], int(first.max(initial=0)) + 1 + len(words))
    wide = _widened(data, width)
    pos = np.arange(width)[None]
    new = (pos > first) & (pos <= first + len(words))
    tokens = np.where(new, words[np.clip(pos - first - 1, 0, len(words) - 1)], np.where(pos <= first, wide.tokens, 0))
    mask = pos <= first + len(words)
    spans = {REQUEST: wide.spans[REQUEST], RESPONSE: (pos >= first) & mask}
    refused = LabelledTokens(
        f"{data.name}, refused", tokens.astype(wide.tokens.dtype), mask, mask & (pos > 0), data.labels, data.classes,
        groups=data.groups, spans=spans,
    )  # fmt: skip
    return wide, refused


def _widened(data: LabelledTokens, width: int) -> LabelledTokens:
    """The same examples with more padding on the right. Labels of tokens and texts are left out."""
    wider = lambda array: np.pad(np.asarray(array), ((0, 0), (0, width - array.shape[1])))
    spans = {name: wider(span) for name, span in data.spans.items()}
    return dataclasses.replace(
        data, tokens=wider(data.tokens), mask=wider(data.mask), readable=wider(data.readable), spans=spans,
        token_labels=None, texts=(),
    )  # fmt: skip
