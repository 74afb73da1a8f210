"""`TokenStream`: batches of tokens with a label for each token, for probes that are fitted without keeping activations.

stream = stream_of(data, Span("assistant"), batch=32)
stream = TokenStream(lambda i: (tokens_at(i), None, is_quoted(tokens_at(i))), steps=2000, classes=("no", "yes"))
moments = stream_moments(model, "blocks.*.resid_post", stream)
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.length_batches import length_batches
from jax_interp.probes.token_rules import ALL, TokenRule, tokens_of

TokenRows = tuple[
    Int[Array | np.ndarray, "seq pos"],
    Bool[Array | np.ndarray, "seq pos"] | None,
    Int[Array | np.ndarray, "seq pos"] | Float[Array | np.ndarray, "seq pos"],
]
"""Tokens; the mask of real tokens, or None if all are real; and for each token the number of its class, or -1 if it has
none. For a regression, real numbers, NaN where there is none."""


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStream:
    """Batches of labelled tokens: each token with a label is one row for a probe.

    Args:
      batch_at: the batch of a step, a pure function of the number of the step.
      steps: the number of batches.
      classes: the names of the classes. (): the labels are real numbers.
      rule: the name of the tokens with a label, for tables.
    """

    batch_at: Callable[[int], TokenRows]
    steps: int
    classes: tuple[str, ...]
    rule: str = "all"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps={self.steps}: a stream has at least one batch")
        if len(self.classes) == 1:
            raise UserError(f"the stream has one class, {self.classes[0]!r}: give two or more, or () for real numbers")

    @property
    def digest(self) -> str:
        """The SHA-256 of the first batch. A run on a stream can only be resumed with the same one."""
        found = hashlib.sha256()
        for part in self.batch_at(0):
            found.update(b"none" if part is None else np.ascontiguousarray(part).tobytes())
        return found.hexdigest()


def stream_of(
    data: LabelledTokens, rule: TokenRule = ALL, *, batch: int = 32, epochs: int = 1, seed: int = 0, multiple: int = 1
) -> TokenStream:
    """The tokens of a labelled set as a stream, in random order.

    Args:
      data: the examples. A token has its own label if the set has labels of tokens, else that of its example.
      rule: the tokens that are read.
      batch: the number of examples in a batch. Batches have few different lengths (`length_batches`).
      epochs: how often each example is seen.
      seed: the seed of the order.
      multiple: the number of devices that share a batch.

    Raises:
      UserError: the rule names no token of an example, or no token has a label.
    """
    read = tokens_of(rule, data)
    target = np.broadcast_to(data.labels[:, None], read.shape) if data.token_labels is None else data.token_labels
    absent = np.float32(np.nan) if not data.classes else np.int32(-1)
    y = np.where(read, target, absent).astype(absent.dtype)
    if data.classes and not (y >= 0).any():
        raise UserError(f"{data.name}: no token of the rule {rule} has a label")
    order = np.random.default_rng(seed).permutation(len(data))
    batches = length_batches(data.mask[order], batch, multiple=multiple)
    masked = not data.mask.all()

    def batch_at(step: int) -> TokenRows:
        epoch, number = divmod(step, len(batches))
        some = batches[np.random.default_rng((seed, epoch)).permutation(len(batches))[number]]
        rows = order[some.filled]
        labels = y[rows, : some.length].copy()
        labels[len(some.rows) :] = absent  # copies that fill up the batch are not read twice
        return data.tokens[rows, : some.length], data.mask[rows, : some.length] if masked else None, labels

    return TokenStream(batch_at, epochs * len(batches), data.classes, str(rule))
