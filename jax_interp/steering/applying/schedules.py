"""Schedules: a factor of the strength that depends on how many new tokens there are. They are placements.

    vector.using(tokens=linear_decay(20))                      ever weaker, and off after 20 new tokens
    vector.using(tokens=(generated(), exponential_decay(0.9)))
    vector.using(tokens=schedule([1.0, 1.0, 0.5, 0.0]))
    vector.using(tokens=until_chosen(8))                       the first 8 new tokens are chosen with steering

The count at a token is the number of new tokens up to it, itself included: 0 in the prompt, whose last token chooses
the first new token. Another schedule of the same kind does not compile again.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering.applying.windows import FAR, Window, per_row, prompt_lengths
from jax_interp.steering.placement import Placement
from jax_interp.surgery import ValueTokens, is_known


def new_tokens(x: Array, tokens: ValueTokens, prompt: Int[ArrayLike, "batch"] | None = None) -> Int[Array, "batch pos"]:
    """The number of new tokens up to each token of a value, itself included; 0 in the prompt."""
    here = tokens.absolute(x)
    return jnp.maximum(here - prompt_lengths(x, tokens, prompt).astype(here.dtype) + 1, 0)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LinearDecay(Placement):
    """1 in the prompt, 0 after `n` new tokens, and a straight line between.

    Args:
      n: the number of new tokens; a number, or one for each row.
      prompt: the length of the prompt in each row, as in `Window`.
    """

    n: Float[ArrayLike, "..."]
    prompt: Int[ArrayLike, "batch"] | None = None

    def factor(self, x: Array, tokens: ValueTokens) -> Float[Array, "#batch #pos"]:
        count = new_tokens(x, tokens, self.prompt).astype(jnp.float32)
        return jnp.clip(1 - count / per_row(self.n, "n").astype(jnp.float32), 0.0, 1.0)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ExponentialDecay(Placement):
    """1 in the prompt, and `rate` times the last factor at each new token.

    Args:
      rate: from 0 to 1; a number, or one for each row.
      prompt: the length of the prompt in each row, as in `Window`.
    """

    rate: Float[ArrayLike, "..."]
    prompt: Int[ArrayLike, "batch"] | None = None

    def factor(self, x: Array, tokens: ValueTokens) -> Float[Array, "#batch #pos"]:
        count = new_tokens(x, tokens, self.prompt).astype(jnp.float32)
        return per_row(self.rate, "rate").astype(jnp.float32) ** count


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Schedule(Placement):
    """Given factors: entry 0 in the prompt, entry n at the nth new token. The last entry stays.

    Args:
      factors: `[n]`, or `[batch, n]` for each row.
      prompt: the length of the prompt in each row, as in `Window`.
    """

    factors: Float[Array, "n"] | Float[Array, "batch n"]
    prompt: Int[ArrayLike, "batch"] | None = None

    def factor(self, x: Array, tokens: ValueTokens) -> Float[Array, "#batch #pos"]:
        factors = jnp.atleast_2d(jnp.asarray(self.factors, jnp.float32))
        count = jnp.minimum(new_tokens(x, tokens, self.prompt), factors.shape[1] - 1)
        if factors.shape[0] == 1:
            return factors[0][count]
        return jnp.take_along_axis(factors, count, axis=1)


def linear_decay(n: float | Float[Array, "batch"], lengths: Int[ArrayLike, "batch"] | None = None) -> LinearDecay:
    """A factor that falls to 0 within `n` new tokens. Raises `UserError` if n is not positive."""
    _check("n", n, float(np.finfo(np.float32).tiny), FAR)
    return LinearDecay(jnp.asarray(n, jnp.float32), lengths)


def exponential_decay(
    rate: float | Float[Array, "batch"], lengths: Int[ArrayLike, "batch"] | None = None
) -> ExponentialDecay:
    """A factor that falls by `rate` at each new token. Raises `UserError` if the rate is not from 0 to 1."""
    _check("rate", rate, 0.0, 1.0)
    return ExponentialDecay(jnp.asarray(rate, jnp.float32), lengths)


def schedule(factors: Any, lengths: Int[ArrayLike, "batch"] | None = None) -> Schedule:
    """Given factors, `[n]` or `[batch, n]`, by the number of new tokens. Raises `UserError` for another shape."""
    given = jnp.asarray(factors, jnp.float32)
    if given.ndim not in (1, 2) or not given.size:
        raise UserError(f"factors are numbers, [n] or [batch, n]; got shape {given.shape}")
    largest = float(np.finfo(np.float32).max)
    _check("factors", given, -largest, largest)
    return Schedule(given, lengths)


def until_chosen(n: int | Int[Array, "batch"], lengths: Int[ArrayLike, "batch"] | None = None) -> Window:
    """The prompt and the first new tokens, so that exactly the first `n` new tokens are chosen with steering."""
    return Window(-FAR, jnp.asarray(n, jnp.int32) - 1, relative=True, prompt=lengths)


def _check(name: str, value: Any, least: float, most: float) -> None:
    if isinstance(value, (int, float, np.ndarray, np.generic)) or is_known(value):
        known = np.asarray(value, np.float64)
        if not ((known >= least) & (known <= most)).all():
            raise UserError(f"{name}={value} must be from {least:g} to {most:g}")
