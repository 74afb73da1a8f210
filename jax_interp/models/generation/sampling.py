"""Choosers: how to choose the next token.

A chooser is a callable pytree, `chooser(key, logits) -> tokens`: `Greedy`, `Sample`, or your own class. The class is
part of the compiled program. Its numbers are data, so changing them does not compile again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import is_known

Number = float | Float[Array, ""]


class Chooser(Protocol):
    """A callable pytree that chooses one token for each row."""

    def __call__(self, key: Array, logits: Float[Array, "batch vocab"], /) -> Int[Array, "batch"]: ...


@register_dataclass
@dataclass(frozen=True)
class Greedy:
    """A chooser that takes the most likely token. Among equally likely tokens it takes the lowest id."""

    def __call__(self, key: Array, logits: Float[Array, "batch vocab"]) -> Int[Array, "batch"]:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def log_probs(self, logits: Float[Array, "... vocab"]) -> Float[Array, "... vocab"]:
        """The log-probabilities of the choice: 0 for the chosen token, minus infinity for all others."""
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        ids = jnp.expand_dims(jnp.arange(logits.shape[-1]), range(logits.ndim - 1))
        return jnp.where(ids == best, 0.0, -jnp.inf).astype(logits.dtype)


@register_dataclass
@dataclass(frozen=True)
class Sample:
    """A chooser that samples from the softmax of the logits, after a temperature and three filters.

    The order is that of transformers: temperature, top-k, top-p, min-p. The remaining probabilities are renormalised.
    Tokens that tie at the threshold of a filter are all kept. `top_k` and `top_p` sort the vocabulary for each token.
    A number that is out of its range raises `UserError`. Where it is traced, the token is -1 and probabilities are NaN.

    Example:
        generate(model, tokens, 20, choose=Sample(temperature=0.8, top_p=0.95), key=jax.random.key(0))
    """

    temperature: Number = 1.0
    """The logits are divided by the temperature, at least 0. 0: take the most likely token."""
    top_k: int | Int[Array, ""] | None = None
    """Keep the `top_k` most likely tokens. None or 0: all."""
    top_p: Number | None = None
    """Keep the fewest most likely tokens whose total probability is at least `top_p`, 0 to 1 (Holtzman et al. 2020)."""
    min_p: Number | None = None
    """Keep tokens whose probability is at least `min_p`, 0 to 1, times the largest (Nguyen et al. 2024)."""

    def __post_init__(self) -> None:
        if is_number(self.top_k) and not jnp.issubdtype(jnp.result_type(self.top_k), jnp.integer):
            raise UserError(f"top_k={self.top_k} is a whole number of tokens")
        for name, (least, most) in _RANGES.items():
            check_number(name, getattr(self, name), least, most)

    def __call__(self, key: Array, logits: Float[Array, "batch vocab"]) -> Int[Array, "batch"]:
        greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        drawn = jax.random.categorical(key, self._filtered(logits))
        token = jnp.where(jnp.asarray(self.temperature) > 0, drawn.astype(jnp.int32), greedy)
        return jnp.where(self._in_range(), token, -1)

    def log_probs(self, logits: Float[Array, "... vocab"]) -> Float[Array, "... vocab"]:
        """The log-probabilities of the distribution that is sampled."""
        drawn = jax.nn.log_softmax(self._filtered(logits), axis=-1)
        known = jnp.where(jnp.asarray(self.temperature) > 0, drawn, Greedy().log_probs(logits))
        return jnp.where(self._in_range(), known, jnp.asarray(jnp.nan, logits.dtype))

    def _in_range(self) -> Bool[Array, ""]:
        """Whether all numbers are in their ranges. Traced numbers could not be checked before."""
        given = {name: getattr(self, name) for name in _RANGES if getattr(self, name) is not None}
        within = [
            (jnp.asarray(x) >= _RANGES[name][0]) & (jnp.asarray(x) <= _RANGES[name][1]) for name, x in given.items()
        ]
        return jnp.all(jnp.stack(within))

    def _filtered(self, logits: Float[Array, "... vocab"]) -> Float[Array, "... vocab"]:
        temperature = jnp.asarray(self.temperature, logits.dtype)
        return self.filter(logits / jnp.where(temperature > 0, temperature, jnp.ones_like(temperature)))

    def filter(self, logits: Float[Array, "... vocab"]) -> Float[Array, "... vocab"]:
        """The logits, with minus infinity at tokens that the filters remove."""
        if self.top_k is not None or self.top_p is not None:
            logits = self._filtered_by_rank(logits)
        if self.min_p is not None:  # p >= min_p * p of the likeliest, as logits
            edge = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(jnp.asarray(self.min_p, logits.dtype))
            logits = jnp.where(logits >= edge, logits, -jnp.inf)
        return logits

    def _filtered_by_rank(self, logits: Float[Array, "... vocab"]) -> Float[Array, "... vocab"]:
        falling = -jnp.sort(-logits, axis=-1)
        if self.top_k is not None:
            n = logits.shape[-1]
            k = jnp.asarray(self.top_k, jnp.int32)
            k = jnp.clip(jnp.where(k == 0, n, k), 1, n)
            edge = jax.lax.dynamic_index_in_dim(falling, k - 1, axis=-1, keepdims=True)
            logits, falling = (jnp.where(x >= edge, x, -jnp.inf) for x in (logits, falling))
        if self.top_p is not None:
            p = jax.nn.softmax(falling, axis=-1)
            before = jnp.cumsum(p, axis=-1) - p  # the likeliest token has nothing before it, and always stays
            first = jnp.expand_dims(jnp.arange(p.shape[-1]) == 0, range(p.ndim - 1))
            kept = (before < jnp.asarray(self.top_p, p.dtype)) | first
            edge = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits >= edge, logits, -jnp.inf)
        return logits


LARGEST = float(np.finfo(np.float32).max)
_RANGES = {
    "temperature": (0, LARGEST),
    "top_k": (0, np.iinfo(np.int32).max),
    "top_p": (0, 1),
    "min_p": (0, 1),
}
"""The least and the largest value of each number of `Sample`."""


def is_number(x: Any) -> bool:
    """Whether `x` is one number, or an array, with known values."""
    return is_known(x) or isinstance(x, (int, float, np.generic))


def check_number(name: str, x: Any, least: float, most: float, *, above: bool = False) -> None:
    """Raise `UserError` if `x` is known and not from `least` (with `above`: above `least`) to `most`."""
    if not is_number(x):
        return
    values = np.asarray(x, np.float64)
    if not (((values > least) if above else (values >= least)) & (values <= most)).all():
        upper = f"at most {most}" if most <= 1 else "finite"
        raise UserError(f"{name}={x} must be {'above' if above else 'at least'} {least}, and {upper}")


def seen_tokens(
    tokens: Int[Array, "batch pos"], mask: Bool[Array, "batch pos"] | None, vocab: int
) -> Bool[Array, "batch vocab"]:
    """Which token ids occur in each row. Padding is ignored."""
    ids = tokens if mask is None else jnp.where(mask, tokens, vocab)  # outside the table: dropped
    return jax.vmap(lambda row: jnp.zeros(vocab, bool).at[row].set(True, mode="drop"))(ids)


def penalized(
    logits: Float[Array, "batch vocab"], seen: Bool[Array, "batch vocab"], penalty: Float[Array, ""]
) -> Float[Array, "batch vocab"]:
    """Apply the repetition penalty to the tokens in `seen` (Keskar et al. 2019, §4.1).

    Positive logits are divided by the penalty, and negative logits are multiplied by it, as in transformers. The
    published formula always divides, which would raise a negative logit.
    """
    penalty = jnp.asarray(penalty, logits.dtype)
    penalty = jnp.where((penalty > 0) & (penalty < jnp.inf), penalty, jnp.asarray(jnp.nan, logits.dtype))
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)
